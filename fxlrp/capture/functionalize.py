"""Turns a traced graph into plain functional ops, named as rules expect them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxlrp.capture.straight_through import join_straight_through
from fxlrp.nodes import aliases, args_of, target_of, writes_into

aten = torch.ops.aten


MODES = {  # the calls that export makes of a mode → the number of arguments before the submodule
    torch.ops.higher_order.wrap_with_set_grad_enabled: 1,
    torch.ops.higher_order.wrap_with_autocast: 4,
}


def turns_on_autocast(gm: fx.GraphModule) -> bool:
    """Whether the model itself turns on torch.autocast for some block of the graph."""
    graphs = [m.graph for m in gm.modules() if isinstance(m, fx.GraphModule)]
    blocks = [n for g in graphs for n in g.nodes if n.target is torch.ops.higher_order.wrap_with_autocast]
    return any(block.args[2] for block in blocks)


def inline_modes(gm: fx.GraphModule) -> None:
    """Inlines the bodies of `torch.no_grad` and `torch.autocast` blocks, which export turns into calls."""
    for node in list(gm.graph.nodes):
        if node.target not in MODES:
            continue
        body = node.args[MODES[node.target]]
        inner = operator.attrgetter(str(body.target))(gm)
        inline_modes(inner)
        operands = iter(node.args[MODES[node.target] + 1 :])
        copies = {n: next(operands) for n in inner.graph.find_nodes(op="placeholder")}
        with gm.graph.inserting_before(node):
            outputs: Any = gm.graph.graph_copy(inner.graph, copies)
            if node.args[0] is False:  # results computed without gradients are detached
                outputs = [_detached(gm.graph, n) for n in outputs]
        for item in list(node.users):
            item.replace_all_uses_with(outputs[args_of(item)[1]])
            gm.graph.erase_node(item)
        gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    detached = graph.call_function(aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    return detached


def plain_interface(gm: fx.GraphModule) -> None:
    """Reduces a graph to its computation: removes guards, assertions on metadata, detaches, writes into inputs and
    concatenations of one tensor, and replaces views, which hold only for the strides of one run."""
    join_straight_through(gm)
    _name_convolutions(gm)
    for node in reversed(gm.graph.nodes):
        if node.target in (aten.detach.default, aten.detach_.default):  # detach stops training, not relevance
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif (only := _only_part(node)) is not None:
            node.replace_all_uses_with(only)
            gm.graph.erase_node(node)
        elif (
            node.op == "call_module"
            or node.target is torch._C._set_grad_enabled
            or str(node.target).startswith(("aten._assert", "aten.copy_"))
        ):
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _only_part(node: fx.Node) -> fx.Node | None:
    """What a concatenation consists of if all else is empty, as a cache is at the first token; Inductor (torch 2.14)
    lays out such a one wrongly."""
    if node.target is not aten.cat.default or any(writes_into(user) for user in node.users):
        return None
    parts = [n for n in args_of(node)[0] if n.meta["val"].shape != (0,)]
    return parts[0] if len(parts) == 1 and parts[0].meta["val"].dtype == node.meta["val"].dtype else None


def plain_ops(gm: fx.GraphModule) -> None:
    """Applies `plain_interface` and removes in-place ops: a graph run without gradients may overwrite values that its
    derivative needs."""
    plain_interface(gm)
    functionalize_simple(gm)
    gm.recompile()


NAMED_CONVOLUTIONS = {  # by the number of spatial axes, and whether it is transposed
    (1, False): aten.conv1d.default,
    (2, False): aten.conv2d.default,
    (3, False): aten.conv3d.default,
    (1, True): aten.conv_transpose1d.default,
    (2, True): aten.conv_transpose2d.input,
    (3, True): aten.conv_transpose3d.input,
}


def _name_convolutions(gm: fx.GraphModule) -> None:
    """Replaces torch's generic convolution op, as TorchScript records it, by the specific one it stands for."""
    for node in gm.graph.nodes:
        if node.target in (aten.convolution.default, aten._convolution.default, aten._convolution.deprecated):
            x, w, b, stride, padding, dilation, transposed, output_padding, groups = node.args[:9]
            rest = (padding, output_padding, groups, dilation) if transposed else (padding, dilation, groups)
            node.target, node.args = NAMED_CONVOLUTIONS[len(stride), transposed], (x, w, b, stride, *rest)


def functionalize_simple(gm: fx.GraphModule) -> bool:
    """Replaces in-place ops by their functional twins; returns False if a view or an input sees the mutated tensor.

    torch's own functionalization is complete but costs more than the whole export (2.3 s for a 50-layer network), and
    nearly every in-place op of real models (`relu_`, `add_` on a fresh tensor) is of this simple kind.
    """
    position = {node: i for i, node in enumerate(gm.graph.nodes)}
    swaps: list[tuple[fx.Node, torch._ops.OpOverload]] = []
    for node in gm.graph.nodes:
        if getattr(node.target, "__module__", "") == "torch._functorch.predispatch":  # inside vmap
            return False
        if not writes_into(node):
            continue
        twin = _twin_that_fits(node)
        base = node.args[0]
        views = [u for u in base.users if u is not node and aliases(u)]
        if twin is None or base.op != "call_function" or (aliases(base) and not writes_into(base)) or views:
            return False
        swaps.append((node, twin))
    for node, twin in swaps:
        base = args_of(node)[0]
        node.target = twin
        base.replace_all_uses_with(node, delete_user_cb=lambda u, at=position[node]: position[u] > at)
        if twin is aten.copy.default:
            _as_source(node)
    return True


def _as_source(node: fx.Node) -> None:
    """Rewrites a copy into a tensor as what is copied, in its type and shape: only the source's values matter."""
    target, source = args_of(node)[:2]
    with node.graph.inserting_before(node):
        cast = node.graph.call_function(aten.type_as.default, (source, target))
    cast.meta = {**node.meta, "val": source.meta["val"].to(node.meta["val"].dtype)}
    node.target, node.args, node.kwargs = aten.expand_as.default, (cast, target), {}


def functional_twin(op: torch._ops.OpOverload) -> torch._ops.OpOverload | None:
    """`relu` for `relu_`: the overload with the same arguments, which may have another name, as those of `pow`; None
    for an op that has none."""
    name = op._schema.name.split("::")[1]
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    twins = [getattr(packet, overload) for overload in packet.overloads()] if packet is not None else []
    return next((twin for twin in twins if _arguments(twin) == _arguments(op)), None)


def _arguments(op: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in op._schema.arguments]


def _twin_that_fits(node: fx.Node) -> torch._ops.OpOverload | None:
    """`relu` for `relu_`, if its result has the shape and dtype of the tensor that the in-place op wrote into."""
    twin = functional_twin(target_of(node))
    others = [a.meta["val"] for a in node.all_input_nodes[1:] if isinstance(a.meta.get("val"), Tensor)]
    base = node.meta["val"]
    same = all(torch.promote_types(o.dtype, base.dtype) == base.dtype and o.ndim <= base.ndim for o in others)
    return twin if same and isinstance(node.args[0], fx.Node) else None


NATIVE: dict[fx.node.Target, tuple[Callable, Callable[..., tuple]]] = {
    aten._native_batch_norm_legit_no_training.default: (
        aten.batch_norm.default,
        lambda x, w, b, mean, var, momentum, eps: (x, w, b, mean, var, False, momentum, eps, False),
    ),
    aten.native_layer_norm.default: (aten.layer_norm.default, lambda x, shape, w, b, eps: (x, shape, w, b, eps)),
    aten.native_group_norm.default: (
        aten.group_norm.default,
        lambda x, w, b, n, c, size, groups, eps: (x, groups, w, b, eps),
    ),
}
"""The ops that functionalization makes of norms, which also return statistics → the original op and its arguments."""


def restore_vocabulary(gm: fx.GraphModule) -> None:
    """Undoes the renames of functionalization: `batch_norm` became a triple, a write a copy, a cast `_to_copy`."""
    for node in list(gm.graph.nodes):
        if node.target is aten._to_copy.default and node.kwargs.keys() == {"dtype"}:
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.kwargs["dtype"]), {}
        if node.target is aten.copy.default:
            _as_source(node)
        elif node.target in NATIVE and len(node.users) == 1:
            (item,) = node.users
            op, arguments = NATIVE[node.target]
            with gm.graph.inserting_before(node):
                norm = gm.graph.call_function(op, arguments(*node.args))
            norm.meta = item.meta
            item.replace_all_uses_with(norm)
            gm.graph.erase_node(item)
            gm.graph.erase_node(node)
