"""Specialize: the same rewritten graph, faster, for a kind of question: what is known beforehand is not computed."""

from __future__ import annotations

import torch
from torch import fx

from fxlrp.analyse import differentiable
from fxlrp.rules.contributions import ByContributions
from fxlrp.rules.propagate import Site

aten = torch.ops.aten


def specialize(gm: fx.GraphModule, logits: int, one_sided: bool) -> fx.GraphModule:
    """A copy of a rewritten graph with the same outputs and, for the questions it is made for, the same relevance.

    logits: the place among its outputs of what is explained.
    one_sided: whether all relevance there is ≥ 0, as it is without a contrast.
    """
    known = gm.meta.setdefault("specialized", {})
    if one_sided not in known:
        graph = fx.Graph()
        outputs = graph.graph_copy(gm.graph, {})
        graph.output(outputs)
        copy = known[one_sided] = fx.GraphModule(gm, graph)
        if one_sided:
            mark_one_sided(copy, outputs[logits])
        join_relu(copy)
        copy.recompile()
    return known[one_sided]


def mark_one_sided(gm: fx.GraphModule, logits: fx.Node) -> None:
    """Tell the rules at which all relevance is ≥ 0: from the logits back to where some rule may turn its sign."""
    positive = {logits}
    for node in reversed(gm.graph.nodes):
        users = [u for u in node.users if u.meta.get("active")]
        if users and node not in positive and all(u in positive and _keeps_sign(u) for u in users):
            positive.add(node)
        if node in positive and isinstance(node.target, Site):
            node.target = node.target.but(one_sided=True)


def _keeps_sign(node: fx.Node) -> bool:
    """Whether relevance ≥ 0 of a node is ≥ 0 at its inputs; what has no rule moves real numbers as they are."""
    if isinstance(node.target, Site):
        return getattr(node.target.rule, "keeps_sign", False)
    values = [v for n in (node, *node.all_input_nodes) if differentiable(n) for v in [n.meta["val"]]]
    plain = isinstance(node.target, torch._ops.OpOverload) or node.op == "output"
    return plain and not any(isinstance(v, torch.Tensor) and v.is_complex() for v in values)


def join_relu(gm: fx.GraphModule) -> None:
    """What shares by contributions and the ReLU behind it → one node: z⁺ has the sign of z wherever relevance is, and
    is kept anyway, where z itself would have to be."""
    for node in list(gm.graph.nodes):
        site = node.args[0].target if node.target is aten.relu.default else None
        if isinstance(site, Site) and isinstance(site.rule, ByContributions) and len(node.args[0].users) == 1:
            product = node.args[0]
            product.target = site.but(rectified=True)
            node.replace_all_uses_with(product)
            gm.graph.erase_node(node)
