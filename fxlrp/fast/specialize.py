"""Specialize: makes a rewritten graph faster for one kind of question, by leaving out what is known beforehand."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from fxlrp.fast.replaced import Fast
from fxlrp.graph.analyse import can_carry
from fxlrp.nodes import copied, outputs_of, target_of
from fxlrp.rules.folded import FoldedProduct
from fxlrp.rules.normalise import MASS

aten = torch.ops.aten


def specialized(gm: fx.GraphModule, logits: int, active: frozenset[str], one_sided: bool) -> fx.GraphModule:
    """A copy of a rewritten graph with the same outputs and, for the questions it is made for, the same relevance.

    logits: the place among its outputs of what is explained.
    active: the names of the nodes that relevance goes through.
    one_sided: whether all relevance at the logits is ≥ 0, as it is without a contrast.
    """
    copy, _ = copied(gm)
    on_way = {n for n in copy.graph.nodes if n.name in active}
    if one_sided:
        mark_one_sided(copy, outputs_of(copy)[logits], on_way)
    join_relu(copy)
    if one_sided:
        hand_masses_on(copy, on_way)
    recompute_functions(copy)
    copy.recompile()
    return copy


def mark_one_sided(gm: fx.GraphModule, logits: fx.Node, active: set[fx.Node]) -> None:
    """Mark the rules at which all relevance is ≥ 0 and stays so: from the logits back to where a rule may turn its
    sign."""
    positive = {logits}
    for node in reversed(gm.graph.nodes):
        users = [u for u in node.users if u in active]
        if users and node not in positive and all(u in positive and _keeps_sign(u) for u in users):
            positive.add(node)
        if node in positive and isinstance(node.target, Fast) and node.target.normalise is MASS and _keeps_sign(node):
            node.target = node.target.knowing(one_sided=True)


def _keeps_sign(node: fx.Node) -> bool:
    """Whether relevance ≥ 0 of a node is ≥ 0 at its inputs. An op without a rule moves real numbers as they are."""
    if isinstance(node.target, Fast):
        return node.target.keeps_sign
    values = [v for n in (node, *node.all_input_nodes) if can_carry(n) for v in [n.meta["val"]]]
    plain = isinstance(node.target, torch._ops.OpOverload) or node.op == "output"
    return plain and not any(isinstance(v, torch.Tensor) and v.is_complex() for v in values)


def join_relu(gm: fx.GraphModule) -> None:
    """Fuse an op that shares by contributions with the ReLU after it.

    Only z⁺ is kept, which has z's sign wherever relevance is non-zero.
    """
    for node in list(gm.graph.nodes):
        fast = node.args[0].target if node.target is aten.relu.default else None
        if isinstance(fast, Fast) and fast.contributions and len(node.args[0].users) == 1:
            product = node.args[0]
            product.target = fast.knowing(rectified=True)
            node.replace_all_uses_with(product)
            gm.graph.erase_node(node)


def hand_masses_on(gm: fx.GraphModule, active: set[fx.Node]) -> None:
    """Hand the mass of relevance on between rules at which all of it is ≥ 0.

    What one rule has rescaled, the next need not measure; what goes to that rule alone need not be rescaled.
    """
    for node in list(gm.graph.nodes):
        users = [u for u in node.users if u in active]
        if not (_measures(node) and users and all(_measures(u) and node in _shared(u) for u in users)):
            continue
        node.target = node.target.knowing(has_handle=True)
        with gm.graph.inserting_after(node):
            handle = gm.graph.call_function(operator.getitem, (node, 1))
        with gm.graph.inserting_after(node):
            value = gm.graph.call_function(operator.getitem, (node, 0))
        value.meta = dict(node.meta)
        active.add(value)
        node.replace_all_uses_with(value, delete_user_cb=lambda u, ours=(value, handle): u not in ours)
        for user in users:
            shared = _shared(user)
            before = user.kwargs.get("handles", (None,) * len(shared))
            handles = tuple(handle if n is value else h for n, h in zip(shared, before, strict=True))
            user.kwargs = {**user.kwargs, "handles": handles}
            if len(users) == 1 and shared.count(value) == 1:
                user.target = user.target.knowing(any_scale=(*user.target.here.any_scale, shared.index(value)))


def recompute_functions(gm: fx.GraphModule) -> None:
    """Compute the value of an entry-wise function of one tensor again where rules ask for it, instead of keeping it;
    the tensor itself is kept anyway."""
    for node in gm.graph.nodes:
        users = list(_users(node)) if _is_function(node) else []
        if not users or not all(_may_remake(user, value) for user, value in users):
            continue
        node.target = target_of(node).knowing(recompute=True)
        for user, value in users:
            at = [i for i, leaf in enumerate(_leaves(user)) if leaf is value]
            fast, kwargs = target_of(user), dict[str, Any](user.kwargs)
            user.target = fast.knowing(recomputed=(*fast.here.recomputed, *((i, target_of(node).op) for i in at)))
            kwargs["sources"] = (*kwargs.get("sources", ()), *((node.args, node.kwargs) for _ in at))
            user.kwargs = kwargs


def _users(node: fx.Node) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The users of a node, each with the node it uses: this one, or the dropout after it, which is the same tensor."""
    for user in list(node.users):
        if user.target is aten.dropout.default and user.args[2] is False:
            yield from _users(user)
        else:
            yield user, node


def _is_function(node: fx.Node) -> bool:
    """Whether a node is an entry-wise function of one tensor, which is kept, and has a rule."""
    fast = node.target
    if not isinstance(fast, Fast) or fast.here.rectified or fast.here.recomputed:
        return False
    return fast.pointwise and len(fast.argnums) == 1 and not {"handles", "sources"} & node.kwargs.keys()


def _may_remake(user: fx.Node, node: fx.Node) -> bool:
    """Whether a node's user has a rule that can compute the node's value again."""
    fast = user.target
    if not isinstance(fast, Fast) or isinstance(fast.op, FoldedProduct):
        return False
    return not fast.pointwise or user.meta["val"].shape == node.meta["val"].shape


def _measures(node: fx.Node) -> bool:
    """Whether a node has a rule that measures mass to rescale by, of relevance ≥ 0 of real numbers."""
    fast = node.target
    if not isinstance(fast, Fast) or not fast.here.one_sided:
        return False
    return not any(n.meta["val"].is_complex() for n in (node, *_shared(node)))


def _shared(node: fx.Node) -> list[fx.Node]:
    """The nodes that a rule gives relevance to."""
    leaves = _leaves(node)
    return [leaves[i] for i in target_of(node).argnums]


def _leaves(node: fx.Node) -> list:
    """The leaves of the op's own arguments in a node with a rule."""
    return pytree.tree_leaves((node.args, {k: v for k, v in node.kwargs.items() if k not in ("handles", "sources")}))
