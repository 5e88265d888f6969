"""Reads: at which inputs of a call, or modules or nodes inside, relevance is read, and why it is not at the others."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from fxlrp.capture.calls import finite
from fxlrp.capture.model import Capture
from fxlrp.errors import FxlrpError
from fxlrp.graph.lookups import Trail, find_given
from fxlrp.ops import carriers
from fxlrp.patterns.sparse import is_sparse
from fxlrp.rules.weighted import ones_for

aten = torch.ops.aten
Place = int | str
"""An input by its number, or what was named inside."""
ASIDE = re.compile(r"mask|position_?ids|pos_ids")
"""Inputs of such names say where the others are: they are explained if they are asked for."""


def mark_reads(gm: fx.GraphModule, parameters: Sequence[str], names: Sequence[str]) -> None:
    """Note in the graph what was asked to be read: inputs by name, and nodes and the outputs of modules, each behind an
    alias, so that no pattern joins it with what follows.

    Raises FxlrpError for a name of none of these.
    """
    inputs = dict(zip(parameters, gm.graph.find_nodes(op="placeholder"), strict=True))
    given = find_given(gm.graph)
    inside = [n for n in gm.graph.nodes if n.op == "call_function" and n in given and _is_float(n)]
    for name in names:
        if name in inputs:
            inputs[name].meta["read"] = name
            continue
        calls: dict[str, list[fx.Node]] = {}
        for n in inside:
            stack = (n.meta.get("nn_module_stack") or {}).items()
            called = [key for key, (path, _) in stack if path.removeprefix("model").lstrip(".") == name]
            if called or n.name == name:
                calls.setdefault([*called, name][0], []).append(n)
        if not calls:
            known = sorted({p for n in inside for p, _ in (n.meta.get("nn_module_stack") or {}).values()})
            modules = ", ".join([p.removeprefix("model.") for p in known if "." in p][:8])
            raise FxlrpError(
                f"read={name!r} names no input, module or node that depends on the inputs; inputs are "
                f"{', '.join(inputs)}; modules are, among others, {modules or 'none'}."
            )
        for k, nodes in enumerate(calls.values()):
            last = ([n for n in nodes if any(u not in nodes for u in n.users)] or nodes)[-1]
            with gm.graph.inserting_after(last):
                alias = gm.graph.call_function(aten.alias.default)
            last.replace_all_uses_with(alias)
            alias.args, alias.meta = (last,), {**last.meta, "read": f"{name}@{k}" if k else name}
    gm.recompile()


def find_readouts(captured: Capture) -> dict[Place, list[fx.Node]]:
    """Where relevance is read: at what was marked, or else for each input: float inputs at themselves and at the ones
    that stand for them in first layers, and all at the vectors that they look up; or, where that is all there is,
    integer ones at the numbers they become, and those that are named masks or positions too; nowhere for masks with
    infinite values."""
    gm = captured.graph
    marked = [n for n in gm.graph.nodes if "read" in n.meta]
    placeholders = enumerate(gm.graph.find_nodes(op="placeholder"))
    inputs = {
        i: n
        for i, n in placeholders
        if isinstance(n.meta["val"], Tensor) and not is_sparse(n) and finite(captured.inputs[i])
    }
    given = find_given(gm.graph)

    def at(start: fx.Node, numbers: bool, counted: bool) -> list[fx.Node]:
        own = [start, *(n for n in start.users if n.target is ones_for)] if _is_float(start) else []
        return own + Trail(start, given, counted=counted).lookups(numbers=numbers and not own)

    if marked:
        out: dict[Place, list[fx.Node]] = {
            i: at(n, False, True) or at(n, True, True) for i, n in inputs.items() if n in marked
        }
        return out | {n.meta["read"]: [n] for n in marked if n.op != "placeholder"}
    aside = {i for i, name in enumerate(captured.parameters) if ASIDE.search(name)}
    for numbers, left_out in ((False, aside), (True, aside), (True, ())):
        out = {i: at(n, numbers, not left_out and numbers) for i, n in inputs.items() if i not in left_out}
        if any(out.values()):
            break
    return {i: nodes for i, nodes in out.items() if nodes}


def find_left_out(
    gm: fx.GraphModule, parameters: Sequence[str], explained: Sequence[Place], end: fx.Node
) -> dict[str, str]:
    """Why there is no relevance for the inputs that are not explained."""
    needed = {end}
    for node in reversed(gm.graph.nodes):
        if node in needed:
            needed.update(carriers(node))

    def why(name: str, node: fx.Node) -> str:
        if node not in needed:
            return "the explained output does not depend on its values"
        if is_sparse(node):
            return "a sparse tensor, which is a constant"
        if not _is_float(node) and ASIDE.search(name) and Trail(node, counted=True).lookups():
            return f"a mask or positions, by its name; read={name!r} explains it"
        if not _is_float(node):
            return "integers that look up no vectors: they pick, mask or are numbers beside others"
        return "no derivative leads to it, or it is a mask of infinite values"

    inputs = enumerate(zip(parameters, gm.graph.find_nodes(op="placeholder"), strict=True))
    return {name: why(name, node) for i, (name, node) in inputs if i not in explained}


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
