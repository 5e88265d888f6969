"""Traces models that take derivatives inside forward (forces, physics losses, torch.func).

They are traced below autograd, where the backward pass consists of ordinary ops, decomposed into ops that have rules.
"""

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
"""The files of torch.func."""


@contextmanager
def derivatives_noticed(notice: Callable[[], None]) -> Iterator[None]:
    """Within it, calls `notice` whenever this thread takes a derivative, in reverse or forward mode."""

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
    """Whether an error or one of its causes was raised inside torch.func."""
    return raised_in(error, TRANSFORMS)


def raised_in(error: BaseException | None, files: tuple[str, ...]) -> bool:
    """Whether an error or one of its causes was raised inside one of these files or folders."""
    while error is not None:
        if any(f in frame.filename for frame in traceback.extract_tb(error.__traceback__) for f in files):
            return True
        error = error.__cause__ or error.__context__
    return False


def as_symbols(tensors: Sequence[Tensor], dims: Sequence[Any]) -> list[Tensor]:
    """Fake tensors like these, whose sizes along the axes in `dims` are symbols."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def sizes(t: Tensor, open_: Any) -> StatelessSymbolicContext:
        kinds = [DimDynamic.DYNAMIC if axis in (open_ or ()) else DimDynamic.STATIC for axis in range(t.ndim)]
        return StatelessSymbolicContext(dynamic_sizes=kinds)

    return [mode.from_tensor(t, symbolic_context=sizes(t, d)) for t, d in zip(tensors, dims, strict=True)]


def trace_below_autograd(f: Callable, tensors: Sequence[Tensor]) -> fx.GraphModule:
    """Traces f(*tensors), for fake or real tensors, into functional ops that include those of derivatives."""
    options: dict[str, Any] = {"_allow_non_fake_inputs": True, "_error_on_data_dependent_ops": False}
    mode = detect_fake_mode(tensors) or nullcontext()
    with torch.enable_grad(), mode, enable_python_dispatcher(), _without_kernels():
        traced = make_fx(f, **options, record_stack_traces=True)(*(t.clone() for t in tensors))
    for check in traced.graph.find_nodes(op="call_function", target=aten._linalg_check_errors.default):
        traced.graph.erase_node(check)  # functionalization takes it for an effect, and the model itself checks
    traced.graph.eliminate_dead_code()
    functional = dispatch_functionalize(fx.Interpreter(traced).run, FunctionalTensorMode(export=True))
    with torch.no_grad(), mode, enable_python_dispatcher(), fx.traceback.preserve_node_meta():
        graph = make_fx(functional, _decompositions(traced), **options)(*(t.clone() for t in tensors))
    graph.graph.eliminate_dead_code()
    transpose_convolutions(graph)
    return graph


@contextmanager
def _without_kernels() -> Iterator[None]:
    """Within it, torch uses no fused kernels, whose backward passes are fused kernels too."""
    off = [torch.backends.mkldnn.flags(enabled=False), torch.backends.cudnn.flags(enabled=False)]
    with off[0], off[1], sdpa_kernel(SDPBackend.MATH):
        yield


def _decompositions(gm: fx.GraphModule) -> dict[Any, Callable]:
    """Decompositions of the derivatives in a graph, of safe softmax, and of norms whose statistics are used."""
    norms = {n.target for n in gm.graph.nodes if n.target in NATIVE_NORMS and {u.args[1] for u in n.users} != {0}}
    decomposed = {aten._safe_softmax.default, *norms}
    table = {op: f for op, f in decomposition_table.items() if "backward" in str(op) or op in decomposed}
    return {**table, aten.var_mean.correction: _var_mean}


def _var_mean(x: Tensor, dim: Any = None, **options: Any) -> tuple[Tensor, Tensor]:
    return aten.var.correction(x, dim, **options), aten.mean.dim(x, dim, options.get("keepdim", False))


NATIVE_NORMS = (aten.native_layer_norm.default, aten.native_group_norm.default, aten.native_batch_norm.default)


def transpose_convolutions(gm: fx.GraphModule) -> None:
    """Replaces the derivative of a convolution by its input with a transposed convolution, which every backend has (or
    with a plain one for a transposed convolution)."""
    for node in list(gm.graph.find_nodes(op="call_function", target=aten.convolution_backward.default)):
        g, x, w, _, stride, padding, dilation, transposed, _, groups, mask = node.args
        if mask[1] or mask[2]:
            continue
        if transposed:
            rest = (stride, padding, dilation, False, [0] * len(stride), groups)
        else:  # output_padding: the part of the input size that the output size does not determine
            sizes = zip(x.meta["val"].shape[2:], g.meta["val"].shape[2:], w.meta["val"].shape[2:], strict=True)
            output_padding = [
                n - ((m - 1) * s - 2 * p + d * (k - 1) + 1)
                for (n, m, k), s, p, d in zip(sizes, stride, padding, dilation, strict=True)
            ]
            rest = (stride, padding, dilation, True, output_padding, groups)
        with gm.graph.inserting_before(node):
            transpose = gm.graph.call_function(aten.convolution.default, (g, w, None, *rest))
        (item,) = node.users
        transpose.meta = dict(item.meta)
        item.replace_all_uses_with(transpose)
        gm.graph.erase_node(item)
        gm.graph.erase_node(node)
    gm.recompile()
