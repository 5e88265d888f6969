"""Finds the blocks of a network by the structure of its graph: attentions, pairs of layers, or modules of a depth."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.inside.places import op_of, short_name, weighted_by
from fxlrp.nodes import outputs_of
from fxlrp.ops import about
from fxlrp.patterns.elementwise import Elementwise
from fxlrp.reports.report import row_of

LAYERS = ("linear", "addmm", "mm")
"""Products with weights, beside convolutions."""


def nodes_of(plan: Plan, names: Sequence[str] | None, depth: int | None) -> dict[str, str]:
    """The nodes of a plan's graph that modules end in, by the modules' names, in the order of the graph.

    names: the modules; without them those of a `depth`, or the blocks found by structure.

    Raises FxlrpError for a name that relevance does not pass, and where there is no module.
    """
    wanted = list(names) if names is not None else modules_at(plan, depth) if depth else blocks(plan)
    end = outputs_of(plan.graph)[plan.logits]
    modules: dict[str, fx.Node] = {}
    for name in wanted:
        try:
            node = plan.named(name)
        except FxlrpError:
            if names is not None:
                raise
            continue
        if node not in modules.values() and (node is not end or names is not None):
            modules[name] = node
    if not modules:
        raise FxlrpError("No modules were found in this graph: name nodes=[…] of it; explainer.report() lists them.")
    order = {n: i for i, n in enumerate(plan.graph.graph.nodes)}
    return {name: node.name for name, node in sorted(modules.items(), key=lambda item: order[item[1]])}


def modules_at(plan: Plan, depth: int) -> list[str]:
    """The modules of a depth, 1 for the model's own children, that relevance passes."""
    paths = (_path(n) for n in plan.graph.graph.nodes if n.name in plan.active)
    return list(dict.fromkeys(".".join(p[:depth]) for p in paths if p))


def blocks(plan: Plan) -> list[str]:
    """Every attention, with the layer that joins its heads, and every pair of layers with an activation between them;
    without an attention, the modules of the first depth that has three or more."""
    nodes = [n for n in plan.graph.graph.nodes if n.op == "call_function"]
    after = _depends(nodes)
    layers = [n for n in nodes if _is_layer(n)]
    attentions: list[tuple[str, ...]] = []
    for product in filter(None, map(weighted_by, nodes)):
        following = next((n for n in layers if product in after[n]), None)
        if following is not None and (path := _common(_path(product), _path(following))):
            attentions.append(path)
    if not attentions:
        deep = max((len(_path(n)) for n in nodes), default=0)
        several = (modules for depth in range(1, deep + 1) if len(modules := modules_at(plan, depth)) > 2)
        return next(several, modules_at(plan, 1))
    paths = list(dict.fromkeys(attentions))
    for node in nodes:
        if node.name not in plan.active or not _is_activation(node):
            continue
        first = next((n for n in reversed(layers) if n in after[node]), None)
        second = next((n for n in layers if node in after[n]), None)
        path = _common(_path(first), _path(second)) if first and second else ()
        if (
            first and second and any(a[: len(path)] == path for a in attentions)
        ):  # they lie in modules beside each other
            path = _path(second)[: len(path) + 1]
        if path and not any(a[: len(path)] == path or path[: len(a)] == a for a in attentions):
            paths.append(path)
    return [".".join(path) for path in dict.fromkeys(paths)]


def _is_layer(node: fx.Node) -> bool:
    return short_name(node) in LAYERS or about(op_of(node)).kind == "convolution"


def _is_activation(node: fx.Node) -> bool:
    """Whether a node is an entry-wise function: one of torch's, or one written out."""
    op = op_of(node)
    return about(op).kind in ("activation", "function") or isinstance(op, Elementwise) or short_name(node) == "relu"


def _depends(nodes: Sequence[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """The nodes with weights or values that each node depends on, by no more than one layer between."""
    sources_of: dict[fx.Node, set[fx.Node]] = {}
    for node in nodes:
        sources = set(node.all_input_nodes)
        for source in node.all_input_nodes:
            sources |= set() if _is_layer(source) else sources_of.get(source, set())
        sources_of[node] = sources
    return sources_of


def _path(node: fx.Node | None) -> tuple[str, ...]:
    return () if node is None else tuple(filter(None, row_of(node).module.split(".")))


def _common(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(x for i, (x, y) in enumerate(zip(a, b, strict=False)) if a[: i + 1] == b[: i + 1])
