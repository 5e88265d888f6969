"""Finds the inputs, modules or nodes where relevance is read, and why it is not read at other inputs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx

from fxlrp.capture.calls import finite
from fxlrp.capture.model import Capture
from fxlrp.errors import FxlrpError
from fxlrp.graph.analyse import by_derivative, find_active
from fxlrp.graph.lookups import Trail, find_given
from fxlrp.ops import about, carriers
from fxlrp.patterns.sparse import is_sparse
from fxlrp.rules.weighted import ones_for

aten = torch.ops.aten
Place = int | str
"""The index of an input, or the name of a module or node inside the model."""
ASIDE = re.compile(r"mask|position_?ids|pos_ids")
"""Names of inputs that only locate others; these are explained on request, or if no other input can be."""


def mark_reads(gm: fx.GraphModule, parameters: Sequence[str], names: Sequence[str]) -> dict[fx.Node, str]:
    """The nodes of the requested readouts, and their names: inputs, and aliases, which it puts behind nodes and outputs
    of modules to keep patterns from fusing them with later nodes.

    Raises FxlrpError for a name of none of these.
    """
    inputs = dict(zip(parameters, gm.graph.find_nodes(op="placeholder"), strict=True))
    given = find_given(gm.graph)
    inside = [n for n in gm.graph.nodes if n.op == "call_function" and n in given and _is_float(n)]
    marked: dict[fx.Node, str] = {}
    for name in names:
        if name in inputs:
            marked[inputs[name]] = name
            continue
        calls: dict[str, list[fx.Node]] = {}
        for n in inside:
            stack = (n.meta.get("nn_module_stack") or {}).items()
            called = [key for key, (path, _) in stack if path.removeprefix("model").lstrip(".") == name]
            if called or n.name == name:
                calls.setdefault([*called, name][0], []).append(n)
        if not calls:
            paths = sorted({p for n in inside for p, _ in (n.meta.get("nn_module_stack") or {}).values()})
            modules = ", ".join([p.removeprefix("model.") for p in paths if "." in p][:8])
            raise FxlrpError(
                f"read={name!r} names no input, module or node that depends on the inputs; inputs are "
                f"{', '.join(inputs)}; modules are, among others, {modules or 'none'}."
            )
        for k, nodes in enumerate(calls.values()):
            last = ([n for n in nodes if any(u not in nodes for u in n.users)] or nodes)[-1]
            with gm.graph.inserting_after(last):
                alias = gm.graph.call_function(aten.alias.default)
            last.replace_all_uses_with(alias)
            alias.args, alias.meta = (last,), dict(last.meta)
            marked[alias] = f"{name}@{k}" if k else name
    return marked


def find_readouts(captured: Capture, marked: Mapping[fx.Node, str]) -> dict[Place, list[fx.Node]]:
    """The nodes where relevance is read: the ones that `mark_reads` returned, if any, or else those of each input.

    A float input is read at itself and at the ones that stand for it in first layers, and any input at the vectors that
    it looks up.  If there are none of these, integer inputs are read where they become numbers, and if need be also
    inputs named as masks or positions, left out until then.  Masks with infinite values are never read.
    """
    gm = captured.graph
    placeholders = enumerate(gm.graph.find_nodes(op="placeholder"))
    inputs = {
        i: n
        for i, n in placeholders
        if isinstance(n.meta["val"], Tensor) and not is_sparse(n) and finite(captured.inputs[i])
    }
    given = find_given(gm.graph)

    def readouts_of(start: fx.Node, numbers: bool, counted: bool) -> list[fx.Node]:
        own_nodes = [start, *(n for n in start.users if n.target is ones_for)] if _is_float(start) else []
        return own_nodes + Trail(start, given, counted=counted).lookups(numbers=numbers and not own_nodes)

    if marked:
        out: dict[Place, list[fx.Node]] = {
            i: readouts_of(n, False, True) or readouts_of(n, True, True) for i, n in inputs.items() if n in marked
        }
        return out | {marked[n]: [n] for n in gm.graph.nodes if n in marked and n.op != "placeholder"}
    set_aside = {i for i, name in enumerate(captured.parameters) if ASIDE.search(name)}
    for numbers, left_out in ((False, set_aside), (True, set_aside), (True, ())):
        out = {i: readouts_of(n, numbers, not left_out and numbers) for i, n in inputs.items() if i not in left_out}
        if any(out.values()):
            break
    return {i: nodes for i, nodes in out.items() if nodes}


def find_left_out(captured: Capture, explained: Sequence[Place], end: fx.Node, rulebook: str) -> dict[str, str]:
    """The reason why each input that is not explained gets no relevance."""
    gm = captured.graph
    needed = {end}
    for node in reversed(gm.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes if about(node.target).kind == "step" else carriers(node))

    def reason(name: str, node: fx.Node, value: Tensor) -> str:
        if node not in needed:
            return "the explained output does not depend on its values"
        if is_sparse(node):
            return "a sparse tensor, which is a constant"
        if not finite(value):
            return "a mask of infinite values"
        derivable = _is_float(node) and end in find_active(gm, [node], end, by_derivative)
        if ASIDE.search(name) and (derivable or Trail(node, counted=True).lookups()):
            return f"a mask or positions, by its name; read={name!r} explains it"
        if not _is_float(node):
            return "integers that look up no vectors: they pick, mask or are numbers beside others"
        return f"no rule of {rulebook} gives it any" if derivable else "no derivative leads to it"

    placeholders = gm.graph.find_nodes(op="placeholder")
    inputs = enumerate(zip(captured.parameters, placeholders, captured.inputs, strict=True))
    return {name: reason(name, node, value) for i, (name, node, value) in inputs if i not in explained}


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
