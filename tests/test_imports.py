"""Imports point one way: what a package builds on knows nothing of it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import fxlrp

ROOT = Path(fxlrp.__file__).parent
LAYERS = (
    "errors identity recent whole_files nodes emit ops ray_pool",
    "rules",
    "capture",
    "reports",
    "patterns",
    "methods",
    "engine",
    "acceleration fast",
    "graph",
    "show",
    "attribution boxes agreement original relevance_pass",
    "targets plans",
    "answers rows shifts",
    "export zero_maps",
    "compiled",
    "inside",
    "explainer",
    "inputs adapters text gae examples",
    "explaining",
    "data",
    "cli",
)
"""From the bottom to the top: each imports from those above it in this list, and from its own line."""
LAZY = {("acceleration", "fast"), ("fast", "graph")}
"""`fast` may be missing: it is imported where it is used, and builds on the graph."""
LEVEL = {package: i for i, line in enumerate(LAYERS) for package in line.split()}


def imported(body: list[ast.stmt]) -> Iterator[str]:
    """The modules of ours that are imported when a module is, not within functions or for types alone."""
    for node in body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "fxlrp":
            yield from [node.module] if node.module != "fxlrp" else [f"fxlrp.{n.name}" for n in node.names]
        elif isinstance(node, ast.Try) or (isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.dump(node.test)):
            yield from imported(node.body)


def test_imports_point_one_way() -> None:
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        package = path.relative_to(ROOT).with_suffix("").parts[0]
        if package in ("__init__", "__main__"):
            continue
        assert package in LEVEL, f"{package} has no place in LAYERS"
        for module in imported(ast.parse(path.read_text()).body):
            other = module.split(".")[1]
            if LEVEL.get(other, -1) > LEVEL[package] and (package, other) not in LAZY:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert not wrong, "\n".join(wrong)


def test_rules_know_no_graph() -> None:
    for path in (ROOT / "rules").glob("*.py"):
        if path.name != "registry.py":  # which types graph passes
            assert "fx" not in {n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.alias)}, path


def test_no_file_is_long() -> None:
    """Each can be read at one go."""
    long = {str(p.relative_to(ROOT)): n for p in ROOT.rglob("*.py") if (n := p.read_text().count("\n")) > 350}
    assert not long
