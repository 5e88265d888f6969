"""Traces forward and relevance pass into one flat ATen graph, the joint graph, which runs without fxlrp."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch.fx import traceback as fx_traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import statically_known_true as known_true
from torch.utils import _pytree as pytree

from fxlrp.capture.confine import alone
from fxlrp.capture.model import CaptureMode
from fxlrp.capture.precision import widened
from fxlrp.engine.replaced import ReplacedOp
from fxlrp.engine.seeds import Contrast, Target, by_classes, sides
from fxlrp.errors import FxlrpError
from fxlrp.graph.analyse import draws
from fxlrp.graph.plan import Plan
from fxlrp.nodes import writes_into
from fxlrp.relevance_pass import Direction, propagate
from fxlrp.rules.registry import Rulebook

aten = torch.ops.aten


class Joint(nn.Module):
    """Computes (*inputs, target) → (*outputs, relevance of each explained input) by the graph `traced`.

    target [B], or [B, K] for K relevance maps of each sample, holds classes, −1 for the top one.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.traced = graph

    def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
        return self.traced(*args)


def classes_asked(plan: Plan, target: Target) -> int:
    """The K of a target of K classes [B, K], 0 for one class.

    Raises FxlrpError if a joint graph can't answer: the plan takes branches, its output has no classes, or the target
    is none of classes.
    """
    if plan.capture.mode is CaptureMode.THIS_INPUT:
        raise FxlrpError("The model takes branches by its values: there is no one graph of its relevance pass.")
    if len(plan.scores_shape) != 2:
        raise FxlrpError("The explained output is no row of classes [batch, classes], which a joint graph is asked by.")
    if not by_classes(target):
        raise FxlrpError("A joint graph is asked by classes: target is None, a class, or a tensor or list of them.")
    if isinstance(target, Tensor):
        return target.shape[1] if target.ndim == 2 else 0
    return len(target) if isinstance(target, Sequence) else 0


def trace_joint(
    plan: Plan,
    book: Rulebook,
    contrast: Contrast,
    *,
    several: int = 0,
    whole: bool = False,
    fold: bool = True,
    graph: fx.GraphModule | None = None,
) -> Joint:
    """Traces the joint graph of a plan, for batches of any size if the plan holds for them.

    several: the K of targets [B, K], 0 for targets [B].
    whole: returns all of the model's outputs before the logits, else the logits only.
    fold: computes values that depend only on weights now, which takes memory and saves time.
    graph: the form of the plan's graph that is traced, if not the fastest one.
    """
    form = plan.form(one_sided=contrast is None).graph if graph is None else graph
    run = _in_one(plan, book, contrast, form, several, len(plan.capture.output_names) if whole else 0)
    values = [n.meta["val"] for n in plan.graph.graph.find_nodes(op="placeholder")]
    narrow = plan.capture.narrow
    values = [v.to(dtype) for v, dtype in zip(values, narrow[0], strict=True)] if narrow else values
    mode = next(v for v in values if isinstance(v, torch._subclasses.FakeTensor)).fake_mode
    mode.allow_non_fake_inputs = True
    # torch's Python dispatcher supports more ops at symbolic sizes
    with alone(), mode, enable_python_dispatcher(), plan.in_its_types():
        batch = plan.axes.count(values)
        target = values[0].new_zeros((batch, *([several] if several else [])), dtype=torch.int64)
        with fx_traceback.preserve_node_meta():
            graph = make_fx(run)(*values, target)
    for graph_pass in (remove_copies, spell_common, spell_numel, spell_max, spell_alpha, join_equal):
        graph_pass(graph)
    if fold:
        fold_constants(graph)
    return Joint(graph)


def _in_one(
    plan: Plan, book: Rulebook, contrast: Contrast, form: fx.GraphModule, several: int, count: int
) -> Callable[..., tuple[Tensor, ...]]:
    """The forward and the relevance pass of a plan as one function, (*inputs, target) → (*outputs, logits, *maps).

    count: the number of the model's outputs that it returns.
    """
    narrow = plan.capture.narrow

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        *args, target = inputs
        tensors = widened(args)
        with torch.enable_grad():
            out = Tracing(form).run(*tensors)
            rows = plan.axes.rows(out[plan.logits])
            logits = rows.detach()
            columns = target.unbind(1) if several else (target,)
            indices = [torch.where(column < 0, logits.argmax(1), column) for column in columns]
            directions = [Direction(rows, *sides(logits, index, contrast)) for index in indices]
            # one at a time, because batched gradients can't be traced with a symbolic batch
            relevances = [read.inputs for read in propagate(plan, book, out, tensors, directions, at_once=1)]
        logits = logits.to(narrow[1][plan.explained]) if narrow else logits
        maps = [
            torch.stack(parts, plan.axes.column(i)) if several else parts[0]
            for i, parts in zip(plan.readouts, zip(*relevances, strict=True), strict=True)
        ]
        return *(o.detach() for o in out[:count]), logits, *(r.detach() for r in maps)

    return run


class Tracing(fx.Interpreter):
    """Runs a rewritten graph and labels the traced nodes, also those of its relevance pass, with the node that they
    come from and its rule, which `print_readable()` prints."""

    def run_node(self, n: fx.Node) -> Any:
        rule = n.target.__name__ if isinstance(n.target, ReplacedOp) else "derivative"
        n.meta["custom"] = {"of": n.name}
        value = super().run_node(n)
        for t in [] if n.target is operator.getitem else pytree.tree_leaves(value):
            if isinstance(t, Tensor) and t.grad_fn is not None:
                about = {**n.meta, "custom": {"relevance_of": n.name, "rule": rule}}
                t.grad_fn.register_prehook(lambda grads, about=about: setattr(fx_traceback, "current_meta", about))
        return value


COMMON: dict[fx.node.Target, fx.node.Target] = {
    aten._unsafe_index_put.default: aten.index_put.default,
    aten._unsafe_index.Tensor: aten.index.Tensor,
}
"""Ops that are the same as others, by names that runtimes know."""


def remove_copies(gm: fx.GraphModule) -> None:
    """Removes aliases and detaches, which have no meaning without autograd, and unused nodes."""
    for node in list(gm.graph.nodes):
        if node.target in (aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default):
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    gm.recompile()


def spell_common(gm: fx.GraphModule) -> None:
    """Gives writes that add, and their derivatives, the names that runtimes know."""
    for node in gm.graph.nodes:
        node.target = COMMON.get(node.target, node.target)
    gm.recompile()


def spell_numel(gm: fx.GraphModule) -> None:
    """Replaces aten.sym_numel, which torch.compile does not support, by the product of the sizes."""
    for node in list(gm.graph.find_nodes(op="call_function", target=aten.sym_numel.default)):
        (x,) = node.args
        with gm.graph.inserting_before(node):
            shape = x.meta["val"].shape
            count: Any = math.prod(n for n in shape if isinstance(n, int))
            so_far = count
            for d, n in ((d, n) for d, n in enumerate(shape) if not isinstance(n, int)):
                size = gm.graph.call_function(aten.sym_size.int, (x, d))
                count = gm.graph.call_function(operator.mul, (size, count))
                so_far = n * so_far
                size.meta, count.meta = {"val": n}, {"val": so_far}
        node.replace_all_uses_with(count)
        gm.graph.erase_node(node)
    gm.recompile()


def spell_max(gm: fx.GraphModule) -> None:
    """Replaces torch.sym_max by the size known to be larger: torch.compile supports it only since torch 2.12."""
    for node in list(gm.graph.find_nodes(op="call_function", target=torch.sym_max)):
        sizes = [a.meta["val"] if isinstance(a, fx.Node) else a for a in node.args]
        largest = (a for a, size, other in zip(node.args, sizes, sizes[::-1], strict=True) if known_true(size >= other))
        if (larger := next(largest, None)) is not None:
            node.replace_all_uses_with(larger)
            gm.graph.erase_node(node)
    gm.recompile()


def spell_alpha(gm: fx.GraphModule) -> None:
    """Splits a + alpha · b into a product and a sum: Inductor (torch 2.14, CPU) drops alpha if b is a matmul."""
    for op in (aten.add.Tensor, aten.add_.Tensor, aten.sub.Tensor, aten.sub_.Tensor):
        for node in gm.graph.find_nodes(op="call_function", target=op):
            alpha = node.kwargs.get("alpha", 1)
            if alpha != 1:
                with gm.graph.inserting_before(node):
                    scaled = gm.graph.call_function(aten.mul.Tensor, (node.args[1], alpha))
                scaled.meta = dict(node.args[1].meta) if isinstance(node.args[1], fx.Node) else {}
                node.args, node.kwargs = (node.args[0], scaled), {}
    gm.recompile()


def join_equal(gm: fx.GraphModule) -> None:
    """Merges nodes that compute the same expression."""
    seen: dict[Any, fx.Node] = {}
    for node in list(gm.graph.nodes):
        if node.op != "get_attr" and not _pure(node):
            continue
        key = (node.op, node.target, repr(node.args), repr(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            gm.graph.erase_node(node)
        else:
            seen[key] = node
    gm.recompile()


def _pure(node: fx.Node) -> bool:
    """Whether a node's op writes into nothing and draws no random numbers, and no user writes into its value."""
    plain = node.target is operator.getitem or (
        hasattr(node.target, "_schema") and not writes_into(node) and not draws(node)
    )
    return plain and not any(writes_into(u) for u in node.users)


def fold_constants(gm: fx.GraphModule) -> None:
    """Computes values that depend only on weights (|W|, W⁺, folded batch norms) now, and stores them as buffers."""
    values: dict[fx.Node, Any] = {}
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(gm)
        elif _pure(node) and node.all_input_nodes and all(n in values for n in node.all_input_nodes):
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            with torch.no_grad():
                values[node] = node.target(*args, **kwargs)
    for node, value in values.items():
        users = [u for u in node.users if u not in values]
        if node.op != "get_attr" and users and isinstance(value, Tensor):
            name = f"_folded_{node.name}"
            gm.register_buffer(name, value, persistent=True)
            with gm.graph.inserting_before(node):
                constant = gm.graph.get_attr(name)
            constant.meta = dict(node.meta)
            for user in users:
                user.replace_input_with(node, constant)
    gm.graph.eliminate_dead_code()
    gm.delete_all_unused_submodules()
    gm.recompile()
