"""Decomposes ops without a rule of their own into the ops they are composed of."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from fxlrp.capture.functionalize import functionalize_simple
from fxlrp.emit import write_in
from fxlrp.nodes import target_of
from fxlrp.ops import about
from fxlrp.patterns.recurrent import CELLS, write_steps

if TYPE_CHECKING:
    from fxlrp.graph.facts import Facts

aten = torch.ops.aten


def _with_tensor(op: torch._ops.OpOverload) -> Callable:
    """A quantile whose q becomes a constant tensor, because torch before 2.12 can check its range while tracing."""
    return lambda x, q, *args, **kwargs: op.decompose(
        x, torch.tensor(q, dtype=x.dtype, device=x.device), *args, **kwargs
    )


def _mixed(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """A lerp as the mean it is; torch's own way, start + weight · (end − start), gives relevance to a difference."""
    return start * (1 - weight) + end * weight


def _beside_mean(op: torch._ops.OpOverload) -> Callable:
    """A variance or deviation and the mean, as two ops."""
    names = [a.name for a in op._schema.arguments][1:]

    def both(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        given = dict(zip(names, args, strict=False)) | kwargs
        return op(x, *args, **kwargs), aten.mean.dim(x, given.get("dim"), given.get("keepdim", False))

    return both


LOSSES = (aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
PARTS: dict[torch._ops.OpOverload, Callable] = {
    **dict.fromkeys((aten.lerp.Scalar, aten.lerp.Tensor), _mixed),
    **{op: decomposition_table[op] for op in LOSSES},
}
"""Decompositions of ops that others consist of, as quantile of lerp, and are decomposed with them."""
OWN: dict[torch._ops.OpOverload, Callable] = {
    **PARTS,
    **{getattr(aten.var_mean, o): _beside_mean(getattr(aten.var, o)) for o in ("default", "dim", "correction")},
    **{getattr(aten.std_mean, o): _beside_mean(getattr(aten.std, o)) for o in ("default", "dim", "correction")},
    aten.rrelu.default: lambda x, lower=1 / 8, upper=1 / 3, *_: aten.leaky_relu.default(x, (lower + upper) / 2),
    aten.quantile.scalar: _with_tensor(aten.quantile.default),
    aten.nanquantile.scalar: _with_tensor(aten.nanquantile.default),
}
"""Decompositions, for a model in eval mode, of ops for which torch has none that can be traced, or a worse one."""


def take_apart(gm: fx.GraphModule, facts: Facts) -> bool:
    """Decomposes every active node that would get the generic rule, if torch knows what it is composed of, whatever
    the values."""
    traced: dict[tuple, fx.GraphModule | None] = {}  # nodes of one kind share a decomposition
    changed = False
    for node in [n for n in gm.graph.nodes if facts.carries(n) and facts.entry(n) is None]:
        decomposition = _decomposition(node.target)
        if node.target in CELLS:
            write_steps(node)
        elif decomposition is not None:
            kind = _kind(node)
            if kind not in traced:
                traced[kind] = _traced(node, decomposition)
            if (inner := traced[kind]) is None:
                continue
            inline(node, inner)
        else:
            continue
        changed = True
    gm.graph.eliminate_dead_code()
    return changed


def _decomposition(op: object) -> Callable | None:
    """The decomposition of `op` as a function of the op's arguments; None if there is none."""
    if not isinstance(op, torch._ops.OpOverload):
        return None
    if op in OWN:
        return OWN[op]
    if about(op).decomposes or (_composite(op) and op in decomposition_table):
        return decomposition_table[op]
    return op.decompose if _composite(op) else None


def _composite(op: torch._ops.OpOverload) -> bool:
    return op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd)


def _kind(node: fx.Node) -> tuple:
    """A key of what a node's decomposition depends on: its op, constants, and the shapes and types of its operands."""
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    values = [leaf.meta["val"] if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
    first = [leaves.index(leaf) for leaf in leaves]  # shows which operands are the same
    described = [f"{v.dtype} {tuple(v.shape)} {v.stride()}" if isinstance(v, Tensor) else repr(v) for v in values]
    return node.target, str(spec), *described, *first


def _traced(node: fx.Node, made_of: Callable) -> fx.GraphModule | None:
    """A node's decomposition as a graph; None if it depends on values, as CTC's on the lengths."""
    try:
        return trace(node, made_of)
    except (DynamicOutputShapeException, DataDependentOutputException, GuardOnDataDependentSymNode):
        return None


def trace(node: fx.Node, made_of: Callable) -> fx.GraphModule:
    """Traces a node's decomposition into a graph with the node's inputs."""
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    operands = list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, fx.Node)))

    def call(*values: Any) -> Any:
        by_node = dict(zip(operands, values, strict=True))
        args, kwargs = pytree.tree_unflatten([by_node.get(v, v) if isinstance(v, fx.Node) else v for v in leaves], spec)
        return made_of(*args, **kwargs)

    values = [n.meta["val"] for n in operands]
    mode = next(v for v in values if isinstance(v, torch._subclasses.FakeTensor)).fake_mode
    python = made_of is decomposition_table.get(target_of(node))  # C++ compositions show only below autograd
    with mode:
        traced = make_fx(call, None if python else PARTS, pre_dispatch=python)(*values)
        if functionalize_simple(traced):
            return traced
        functional = dispatch_functionalize(fx.Interpreter(traced).run, FunctionalTensorMode(pre_dispatch=python))
        return make_fx(functional, None if python else PARTS, pre_dispatch=python)(*values)


def inline(node: fx.Node, inner: fx.GraphModule) -> None:
    """Replaces a node by the ops of a graph with the node's inputs."""
    operands = list(dict.fromkeys(n for n in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(n, fx.Node)))
    for constant in inner.graph.find_nodes(op="get_attr"):  # a tensor made by the decomposition
        name = f"_{node.name}_{constant.target}"
        value = getattr(inner, str(constant.target))
        owner: Any = node.graph.owning_module
        owner.register_buffer(name, value, persistent=False)
        inner.register_buffer(name, value, persistent=False)
        constant.target = name
    outputs = write_in(node, inner.graph, operands)
    if isinstance(outputs, fx.Node):
        node.replace_all_uses_with(outputs)
    for item in [u for u in node.users if u.target is operator.getitem]:
        item.replace_all_uses_with(outputs[item.args[1]])
        node.graph.erase_node(item)
    node.graph.erase_node(node)
