"""Rulebooks: the methods, each a table from ops to rules and how an explanation begins.

The modules publish theirs when they are imported; what stands here needs no torch.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

DEFAULT = "abslrp-hybrid"
"""The rulebook of `convert`, the text functions, the adapters and every command, where no other is asked for."""
MODULES = ("abslrp", "published", "hybrid", "transformers", "classic", "gradients")


@cache
def publish_all() -> None:
    """Imports every module here, so that all rulebooks are known by name."""
    for module in MODULES:
        import_module(f"{__name__}.{module}")


class Described(NamedTuple):
    """A rulebook's name, its parameters with their defaults, and what it does."""

    name: str
    parameters: dict[str, object]
    doc: str


def described() -> Iterator[Described]:
    """The rulebooks here as their sources describe them, for who only wants to read of them: torch takes seconds."""
    for module in MODULES:
        tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
        constants: dict[str, object] = {}
        for node in tree.body:
            match node:
                case ast.FunctionDef(decorator_list=[ast.Name("publish")], args=args):
                    values = [
                        constants[v.id] if isinstance(v, ast.Name) else ast.literal_eval(v) for v in args.defaults
                    ]
                    parameters = dict(zip([a.arg for a in args.args], values, strict=True))
                    yield Described(node.name.replace("_", "-"), parameters, _one_line(ast.get_docstring(node)))
                case ast.Assign(value=ast.Call(ast.Name("publish"), [ast.Call(args=made, keywords=named)])):
                    keywords = {k.arg: k.value.value for k in named if isinstance(k.value, ast.Constant)}
                    name, doc = [a.value for a in made[:2] if isinstance(a, ast.Constant)] or (
                        keywords["name"],
                        keywords["doc"],
                    )
                    yield Described(str(name), {}, str(doc))
                case ast.Assign([target], value):
                    constants |= _constants(target, value)


def _constants(target: ast.expr, value: ast.expr) -> dict[str, object]:
    """The names that an assignment gives literal values."""
    try:
        names = [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
        values = ast.literal_eval(value)
    except ValueError:
        return {}
    return dict(zip(names, values if len(names) > 1 else [values], strict=True))


def _one_line(doc: str | None) -> str:
    return " ".join((doc or "").split())
