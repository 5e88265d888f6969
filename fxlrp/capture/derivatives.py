"""Derivatives that a model takes inside its forward (forces, physics losses, torch.func): traced below autograd, where
the backward pass is ops like any other, written out in those that have rules."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxlrp.capture.confine import only_here, replaced

aten = torch.ops.aten
TRANSFORMS = tuple(f"_functorch/{name}.py" for name in ("eager_transforms", "vmap", "apis"))
"""Where torch.func is in torch."""


@contextmanager
def derivatives_noticed(notice: Callable[[], None]) -> Iterator[None]:
    """Within it, `notice` is called whenever this thread takes a derivative, backward or forward."""

    def noticing(original: Callable) -> Callable:
        def noticed(*args: Any, **kwargs: Any) -> Any:
            notice()
            return original(*args, **kwargs)

        return only_here(noticed, original)

    with ExitStack() as stack:
        for owner, name in ((torch.autograd, "_engine_run_backward"), (forward_ad, "make_dual")):
            stack.enter_context(replaced(owner, name, noticing(getattr(owner, name))))
        yield


def transforming(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, was raised inside torch.func."""
    while error is not None:
        if any(f.filename.endswith(TRANSFORMS) for f in traceback.extract_tb(error.__traceback__)):
            return True
        error = error.__cause__ or error.__context__
    return False


def as_symbols(tensors: Sequence[Tensor], dims: Sequence[Any]) -> list[Tensor]:
    """Tensors without storage like these, whose sizes along the axes in `dims` are symbols."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def sizes(t: Tensor, open_: Any) -> StatelessSymbolicContext:
        kinds = [DimDynamic.DYNAMIC if axis in (open_ or ()) else DimDynamic.STATIC for axis in range(t.ndim)]
        return StatelessSymbolicContext(dynamic_sizes=kinds)

    return [mode.from_tensor(t, symbolic_context=sizes(t, d)) for t, d in zip(tensors, dims, strict=True)]


def trace_below_autograd(f: Callable, tensors: Sequence[Tensor]) -> fx.GraphModule:
    """The functional ops that f(*tensors), fake tensors or real ones, comes down to, derivatives among them."""
    how: dict[str, Any] = {"_allow_non_fake_inputs": True, "_error_on_data_dependent_ops": False}
    mode = detect_fake_mode(tensors) or nullcontext()
    with torch.enable_grad(), mode, enable_python_dispatcher(), _without_kernels():
        seen = make_fx(f, **how, record_stack_traces=True)(*(t.clone() for t in tensors))
    seen.graph.eliminate_dead_code()
    functional = dispatch_functionalize(fx.Interpreter(seen).run, FunctionalTensorMode(export=True))
    with torch.no_grad(), mode, enable_python_dispatcher(), fx.traceback.preserve_node_meta():
        graph = make_fx(functional, _written_out(seen), **how)(*(t.clone() for t in tensors))
    graph.graph.eliminate_dead_code()
    transpose_convolutions(graph)
    return graph


@contextmanager
def _without_kernels() -> Iterator[None]:
    """Within it, torch picks no kernels that do several ops as one, whose backward pass is another such."""
    off = [torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False)]
    with off[0], off[1], sdpa_kernel(SDPBackend.MATH):
        yield


def _written_out(gm: fx.GraphModule) -> dict[Any, Callable]:
    """What the derivatives in a graph are made of, and the norms that they take the statistics of."""
    norms = {n.target for n in gm.graph.nodes if n.target in NORMS and {u.args[1] for u in n.users} != {0}}
    wanted = {aten._safe_softmax.default, *norms}
    known = {op: made_of for op, made_of in decomposition_table.items() if "backward" in str(op) or op in wanted}
    return {**known, aten.var_mean.correction: _var_mean}


def _var_mean(x: Tensor, dim: Any = None, **how: Any) -> tuple[Tensor, Tensor]:
    return aten.var.correction(x, dim, **how), aten.mean.dim(x, dim, how.get("keepdim", False))


NORMS = (aten.native_layer_norm.default, aten.native_group_norm.default, aten.native_batch_norm.default)


def transpose_convolutions(gm: fx.GraphModule) -> None:
    """The derivative of a convolution by its input → a convolution the other way round, which every backend has."""
    for node in list(gm.graph.find_nodes(op="call_function", target=aten.convolution_backward.default)):
        g, x, w, _, stride, padding, dilation, transposed, _, groups, mask = node.args
        if mask[1] or mask[2]:
            continue
        if transposed:
            rest = (stride, padding, dilation, False, [0] * len(stride), groups)
        else:  # what of the input's size the output's does not tell
            sizes = zip(x.meta["val"].shape[2:], g.meta["val"].shape[2:], w.meta["val"].shape[2:], strict=True)
            odd = [
                n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
                for (n, m, k), s, p, d in zip(sizes, stride, padding, dilation, strict=True)
            ]
            rest = (stride, padding, dilation, True, odd, groups)
        with gm.graph.inserting_before(node):
            other = gm.graph.call_function(aten.convolution.default, (g, w, None, *rest))
        (item,) = node.users
        other.meta = dict(item.meta)
        item.replace_all_uses_with(other)
        gm.graph.erase_node(item)
        gm.graph.erase_node(node)
    gm.recompile()
