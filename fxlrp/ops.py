"""Describes each op in one place: where its entries come from, the sign of its values, and its kind.

These facts hold for every method; an op's rule (`fxlrp.rules`) says how relevance goes through it.
Names are those of ATen ops, for all overloads or ("mean.dim") for one.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import fx

aten = torch.ops.aten

Kind = Literal[
    "activation",
    "softmax",
    "norm",
    "positive sum",
    "sum",
    "fourier",
    "function",
    "step",
    "convolution",
    "matmul",
    "product",
]


SUMS = (aten.add.Tensor, aten.sub.Tensor)
SCALINGS = (aten.mul.Tensor, aten.div.Tensor)


@dataclass(frozen=True)
class Op:
    """The facts about an op.

    moves: each entry of the result is one entry of its values, or a constant: the ordinary vector-Jacobian product
        routes relevance R = a ⊙ g correctly; this includes a ReLU, a gate of ones and zeros.
    copies: it keeps every entry in its place, perhaps in another type.
    chooses: it moves entries that it selects by their values, as a maximum does.
    entrywise: it works entry by entry, though torch does not tag it as pointwise or it also moves entries.
    fills: it puts constants beside the entries it moves; "masks": constants that may be infinite.
    parts: it splits complex numbers into their parts, or joins these.
    values: the indices of the arguments whose entries the result is made of.
    sign: the result is always ≥ 0 ("positive"), or ≥ 0 if all its values are ("kept").
    shape_only: the result is a constant to relevance: only its tensors' shapes and types count, or a sign as in a gate.
    shape_argument: the index of the argument of which only the shape or type is used, or that gets no relevance.
    constants: the names of the arguments that get no relevance, whatever they depend on.
    kind: the class of ops that some rules treat alike.
    decomposes: it is a composition of simpler ops, and is decomposed if it has no rule.
    """

    moves: bool = False
    copies: bool = False
    chooses: bool = False
    entrywise: bool = False
    fills: bool | Literal["masks"] = False
    parts: bool = False
    values: tuple[int, ...] = (0,)
    sign: Literal["positive", "kept"] | None = None
    shape_only: bool = False
    shape_argument: int | None = None
    constants: tuple[str, ...] = ()
    kind: Kind | None = None
    decomposes: bool = False

    @property
    def routes(self) -> bool:
        """Whether it moves entries to places that do not depend on their values, so that other tensors move alike."""
        return self.moves and not self.chooses and not self.entrywise


OPS: dict[object, Op] = {}
"""The facts about ops (overloads or packets), and about functions that replace ops in a graph."""


def describe(*ops: Callable | str, **facts: Any) -> None:
    """Records facts about ops, given as functions or as names of ATen ops, one or several separated by spaces."""
    for op in (each for given in ops for each in (given.split() if isinstance(given, str) else [given])):
        key: Any = operator.attrgetter(op)(aten) if isinstance(op, str) else op
        assert key not in OPS, f"{key} is described twice"
        OPS[key] = Op(**facts)


NOTHING = Op()


def about(op: object) -> Op:
    """The facts about an op, recorded for itself, its packet or its class."""
    return OPS.get(op) or OPS.get(getattr(op, "overloadpacket", None)) or OPS.get(type(op)) or NOTHING


def those(condition: Callable[[Op], bool]) -> tuple[Any, ...]:
    """The ops whose facts satisfy a condition, overload by overload."""
    return tuple(each for op in OPS for each in overloads(op) if condition(OPS.get(each, OPS[op])) and _of_graphs(each))


def of_kind(*kinds: Kind) -> tuple[Any, ...]:
    """The ops of these kinds that relevance can pass, overload by overload."""
    return those(lambda op: op.kind in kinds and not op.shape_only)


@functools.cache
def _of_graphs(op: object) -> bool:
    """Whether an op can occur in captured graphs: it takes tensors, and has no `out` argument."""
    arguments = op._schema.arguments if isinstance(op, torch._ops.OpOverload) else []
    if getattr(op, "_overloadname", "") == "dimname":  # of named tensors, which can't be traced
        return False
    tensors = any("Tensor" in str(a.type) for a in arguments) or not arguments
    return tensors and not any(a.is_out for a in arguments)


def overloads(op: Any) -> list[Any]:
    """The op itself, or all overloads of a packet such as torch.ops.aten.gelu."""
    return [getattr(op, name) for name in op.overloads()] if isinstance(op, torch._ops.OpOverloadPacket) else [op]


def is_pointwise(op: object) -> bool:
    """Whether ATen tags an op as pointwise: it works entry by entry and broadcasts its tensors."""
    return torch.Tag.pointwise in getattr(op, "tags", ())


def moves(node: fx.Node) -> bool:
    """Whether a node moves entries to places that do not depend on values."""
    return about(node.target).routes


def carriers(node: fx.Node) -> list[fx.Node]:
    """The inputs whose values (not just shapes) the node's value depends on differentiably."""
    facts = about(node.target)
    if facts.shape_only:
        return []
    skip = facts.shape_argument
    skipped = {node.args[skip]} if skip is not None and len(node.args) > skip else set()
    skipped |= {node.kwargs[name] for name in facts.constants}
    return [n for n in node.all_input_nodes if n not in skipped or node.args[0] is n]


describe(
    "clone contiguous alias lift_fresh_copy to _to_copy dropout feature_dropout alpha_dropout",
    moves=True,
    copies=True,
    sign="kept",
)
describe("type_as", moves=True, copies=True, sign="kept", shape_argument=1)
describe(
    "view reshape _unsafe_view flatten unflatten permute transpose t numpy_T mT swapdims swapaxes moveaxis movedim",
    "ravel atleast_1d squeeze unsqueeze expand broadcast_to repeat repeat_interleave tile split split_with_sizes",
    "tensor_split chunk unsafe_split unsafe_split_with_sizes unsafe_chunk unbind slice select narrow index",
    "index_select gather take_along_dim roll flip fliplr flipud rot90 im2col unfold unfold_copy as_strided",
    "pixel_shuffle pixel_unshuffle channel_shuffle masked_select tril triu diagonal diag_embed fft_fftshift",
    "fft_ifftshift cat concat concatenate stack hstack vstack",
    operator.getitem,
    moves=True,
    sign="kept",
)
describe("expand_as view_as reshape_as", moves=True, sign="kept", shape_argument=1)
describe("slice_scatter select_scatter diagonal_scatter", moves=True, fills=True, sign="kept", values=(0, 1))
describe("index_put masked_scatter constant_pad_nd", moves=True, fills=True, sign="kept", values=(0, 2))
describe("scatter index_copy index_fill pad", moves=True, fills=True, sign="kept", values=(0, 3))
describe("masked_fill", moves=True, fills="masks", sign="kept", values=(0, 2))
describe("where", moves=True, fills="masks", sign="kept", values=(1, 2))
describe(
    "max min amax amin cummax median kthvalue topk sort max_pool1d max_pool2d max_pool3d max_pool2d_with_indices",
    "adaptive_max_pool2d",
    moves=True,
    chooses=True,
    sign="kept",
)
describe("relu", moves=True, entrywise=True, sign="positive")
describe("nan_to_num maximum minimum", moves=True, entrywise=True, sign="kept", values=(0, 1))
describe("neg", moves=True, entrywise=True)
describe(
    "view_as_real view_as_complex real imag complex _conj conj _conj_physical resolve_conj", moves=True, parts=True
)

describe(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_empty_strided fill new_zeros",
    "new_ones new_empty new_full sym_size sym_numel",
    shape_only=True,
)
describe("heaviside", shape_only=True, kind="step")  # a gate, which is a constant
describe("bucketize searchsorted isin", entrywise=True)

describe("sigmoid hardsigmoid softplus relu6", kind="activation", sign="positive")
describe(
    "gelu silu mish hardswish tanh elu celu selu leaky_relu hardtanh clamp clamp_min clamp_max prelu threshold",
    "softshrink hardshrink log_sigmoid",
    kind="activation",
)
describe("softmax.int _softmax", kind="softmax", sign="positive")
describe("log_softmax.int _log_softmax", kind="softmax")
describe("exp", sign="positive")
describe("square abs sqrt var std", kind="function", sign="positive")
describe(
    "pow.Tensor_Scalar log log2 log10 log1p expm1 erf sin cos tan asin acos atan sinh cosh asinh prod.default",
    "prod.dim_int bilinear",
    kind="function",
)

describe("add mul multiply div divide", sign="kept", values=(0, 1))
describe(
    "mean.default mean.dim sum.default sum.dim_IntList avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d",
    "adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_linear1d",
    "upsample_bilinear2d upsample_trilinear3d cumsum col2im trace",
    kind="positive sum",  # sums of one tensor with weights ≥ 0 that are not parameters
    sign="kept",
)
describe("index_add scatter_add scatter_reduce.two", kind="sum", sign="kept", values=(0, 3))
describe("_unsafe_index_put", kind="sum", sign="kept", values=(0, 2))  # one that accumulates: patterns/accumulated.py
describe("linalg_vector_norm", kind="sum", sign="positive")
describe("upsample_bicubic2d", kind="sum")  # its weights are not parameters and have either sign
describe(
    *(f"fft_{i}{r}fft{n}" for i in ("", "i") for r in ("", "r", "h") for n in ("", "2", "n")),
    "stft istft",
    kind="fourier",  # linear in the real and imaginary parts, without parameters
)
describe("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", kind="convolution")
describe("matmul mm bmm", kind="matmul")
describe("layer_norm rms_norm group_norm instance_norm", kind="norm")
describe("linear", kind="product")
describe("addmm baddbmm", kind="product", decomposes=True)
describe("addbmm addmv addcmul addcdiv glu mv dot logsumexp", decomposes=True)
describe(
    "round floor ceil trunc fix sign div.Tensor_mode div.Scalar_mode fake_quantize_per_tensor_affine",
    "fake_quantize_per_channel_affine",
    kind="step",  # piecewise constant, so its derivative is zero or missing
)
describe("floor_divide", kind="step", entrywise=True)
