"""What an exported network may call: the operators that captured networks and their relevance passes consist of.

Everything else is refused, also of ATen: operators that read files, that trust indices without a look at them, or whose
result is as large as a value says.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from fxlrp.capture.functionalize import MODES

_ATEN = """
# entry by entry
__and__.Scalar __and__.Tensor __or__.Scalar __or__.Tensor abs.default acos.default add.Scalar add.Tensor
addcdiv.default addcmul.default asin.default atan.default atan2.default bitwise_and.Scalar bitwise_and.Tensor
bitwise_not.default bitwise_or.Scalar bitwise_or.Tensor bitwise_xor.Tensor ceil.default celu.default clamp.Tensor
clamp.default clamp_max.default clamp_min.default clip.default cos.default cosh.default div.Scalar div.Tensor
div.Scalar_mode div.Tensor_mode elu.default eq.Scalar eq.Tensor erf.default exp.default expm1.default floor.default
floor_divide.Scalar floor_divide.default fmod.Scalar fmod.Tensor frac.default ge.Scalar ge.Tensor gelu.default
glu.default gt.Scalar gt.Tensor hardshrink.default hardsigmoid.default hardswish.default hardtanh.default
isfinite.default isinf.default isnan.default le.Scalar le.Tensor leaky_relu.default lerp.Scalar lerp.Tensor log.default
log10.default log1p.default log2.default log_sigmoid.default logaddexp.default logical_and.default logical_not.default
logical_or.default logical_xor.default lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor maximum.default
max.other min.other minimum.default mish.default mul.Scalar mul.Tensor multiply.Tensor nan_to_num.default ne.Scalar
ne.Tensor neg.default polar.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prelu.default reciprocal.default
relu.default relu6.default remainder.Scalar remainder.Tensor round.default rsqrt.default rsub.Scalar rsub.Tensor
selu.default sgn.default sigmoid.default sign.default signbit.default silu.default sin.default sinh.default
softplus.default softshrink.default sqrt.default square.default sub.Scalar sub.Tensor tan.default tanh.default
threshold.default trunc.default where.Scalar where.ScalarOther where.ScalarSelf where.self
acosh.default asinh.default atanh.default clamp_max.Tensor clamp_min.Tensor deg2rad.default divide.Scalar
divide.Tensor divide.Scalar_mode divide.Tensor_mode erfc.default exp2.default float_power.Tensor_Scalar hypot.default
logit.default multiply.Scalar sinc.default subtract.Tensor subtract.Scalar true_divide.Tensor xlogy.Tensor
# the same in place
add_.Scalar add_.Tensor clamp_.default clamp_max_.default clamp_min_.default div_.Scalar div_.Tensor dropout_.default
elu_.default exp_.default fill_.Scalar fill_.Tensor hardsigmoid_.default hardswish_.default hardtanh_.default
leaky_relu_.default masked_fill_.Scalar masked_fill_.Tensor mul_.Scalar mul_.Tensor neg_.default relu6_.default
relu_.default sigmoid_.default silu_.default sub_.Scalar sub_.Tensor tanh_.default zero_.default copy_.default
scatter_.value scatter_.src index_put_.default
# products
addmm.default baddbmm.default bmm.default conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default
conv3d.padding conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input convolution.default dot.default
einsum.default linear.default matmul.default mm.default mv.default scaled_dot_product_attention.default gru.input
lstm.input rnn_relu.input rnn_tanh.input _weight_norm.default
addbmm.default addmv.default bilinear.default inner.default kron.default linalg_vecdot.default outer.default
tensordot.default
# norms, softmaxes, dropout
batch_norm.default dropout.default group_norm.default instance_norm.default layer_norm.default log_softmax.int
logsumexp.default rms_norm.default softmax.int _softmax.default _log_softmax.default linalg_vector_norm.default
norm.ScalarOpt_dim feature_dropout.default alpha_dropout.default
# sums, extremes, pooling, resampling
adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default adaptive_max_pool1d.default
adaptive_max_pool2d.default all.default all.dim amax.default amin.default any.default any.dim argmax.default
argmin.default avg_pool1d.default avg_pool2d.default avg_pool3d.default cumprod.default cumsum.default
grid_sampler.default grid_sampler_2d.default max.default max.dim max_pool1d.default max_pool2d.default
max_pool2d_with_indices.default max_pool3d.default max_pool3d_with_indices.default mean.default mean.dim min.default
min.dim prod.default prod.dim_int sort.default std.correction std.dim sum.default sum.dim_IntList topk.default
upsample_bicubic2d.vec upsample_bilinear2d.vec upsample_linear1d.vec upsample_nearest1d.vec upsample_nearest2d.vec
upsample_nearest3d.vec upsample_trilinear3d.vec _upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec var.correction
var.dim var_mean.correction
argsort.default argsort.stable count_nonzero.default count_nonzero.dim_IntList cummax.default cummin.default
kthvalue.default median.default median.dim nansum.default nanmean.default sort.stable std.default trace.default
var.default
# movement
adjoint.default atleast_1d.default atleast_2d.default atleast_3d.default column_stack.default diag.default
diag_embed.default diagonal_scatter.default dstack.default fliplr.default flipud.default hstack.default
index_copy.default index_fill.int_Scalar index_fill.int_Tensor mT.default mH.default moveaxis.int moveaxis.intlist
ravel.default rot90.default scatter.reduce scatter.value_reduce split.sizes take_along_dim.default unfold_copy.default
unsafe_chunk.default unsafe_split.Tensor unsafe_split_with_sizes.default vstack.default _conj.default
_conj_physical.default fft_fftshift.default fft_hfft.default fft_ifft.default fft_ifftn.default fft_ifftshift.default
fft_ihfft.default fft_irfftn.default fft_rfftn.default stft.default stft.center istft.default
_to_copy.default alias.default broadcast_to.default cat.default channel_shuffle.default chunk.default clone.default
concat.default concatenate.default constant_pad_nd.default contiguous.default copy.default detach.default
detach_.default diagonal.default diff.default embedding.default expand.default expand_as.default flatten.using_ints
flip.default gather.default im2col.default col2im.default index.Tensor index_add.default index_put.default
index_select.default lift_fresh_copy.default meshgrid.default meshgrid.indexing movedim.int movedim.intlist
narrow.default numpy_T.default one_hot.default pad.default permute.default pixel_shuffle.default
pixel_unshuffle.default reflection_pad1d.default reflection_pad2d.default repeat.default
repeat_interleave.self_int replication_pad1d.default replication_pad2d.default reshape.default reshape_as.default
roll.default scatter.src scatter.value scatter_add.default scatter_reduce.two select.int select_scatter.default
slice.Tensor slice_scatter.default split.Tensor split_with_sizes.default squeeze.default squeeze.dim squeeze.dims
stack.default swapaxes.default swapdims.default t.default tensor_split.indices tensor_split.sections tile.default
to.device to.dtype to.dtype_layout transpose.int tril.default triu.default type_as.default unbind.int
unflatten.int unfold.default unsqueeze.default view.default view.dtype view_as.default view_as_complex.default
view_as_real.default _unsafe_view.default real.default imag.default complex.default conj.default
resolve_conj.default resolve_neg.default
# new tensors
arange.default arange.start arange.start_step empty_like.default empty.memory_format empty_permuted.default eye.default
eye.m fill.Scalar fill.Tensor full.default full_like.default linspace.default new_empty.default new_full.default
new_ones.default new_zeros.default ones.default ones_like.default scalar_tensor.default zeros.default
zeros_like.default fft_fftn.default fft_fft.default fft_fft2.default fft_ifft2.default fft_rfft.default
fft_irfft.default fft_rfft2.default fft_irfft2.default
# relevance passes, as fxlrp exports them
abs_.default addcmul_.default as_strided.default as_strided_.default copysign.Tensor avg_pool2d_backward.default
avg_pool3d_backward.default _adaptive_avg_pool2d.default _adaptive_avg_pool3d.default
_adaptive_avg_pool2d_backward.default _adaptive_avg_pool3d_backward.default convolution_backward.default
elu_backward.default gelu_backward.default glu_backward.default hardsigmoid_backward.default
hardswish_backward.default hardtanh_backward.default leaky_relu_backward.default log_sigmoid_backward.default
log_sigmoid_forward.default mish_backward.default sigmoid_backward.default silu_backward.default
softplus_backward.default tanh_backward.default threshold_backward.default _softmax_backward_data.default
_log_softmax_backward_data.default select_backward.default slice_backward.default unfold_backward.default
upsample_bicubic2d.default upsample_bilinear2d.default upsample_linear1d.default upsample_nearest1d.default
upsample_nearest2d.default _upsample_bicubic2d_aa.default _upsample_bilinear2d_aa.default
upsample_bicubic2d_backward.default upsample_bilinear2d_backward.default upsample_linear1d_backward.default
upsample_nearest1d_backward.default upsample_nearest2d_backward.default
_upsample_bicubic2d_aa_backward.default _upsample_bilinear2d_aa_backward.default
embedding_dense_backward.default reflection_pad1d_backward.default reflection_pad2d_backward.default
replication_pad1d_backward.default replication_pad2d_backward.default grid_sampler_2d_backward.default
max_pool2d_with_indices_backward.default max_pool3d_with_indices_backward.default
_scaled_dot_product_flash_attention_for_cpu.default _scaled_dot_product_flash_attention_for_cpu_backward.default
# norms as functionalization writes them
_native_batch_norm_legit.default _native_batch_norm_legit.no_stats _native_batch_norm_legit_no_training.default
native_batch_norm.default native_batch_norm_backward.default native_group_norm.default
native_group_norm_backward.default native_layer_norm.default native_layer_norm_backward.default
_fused_rms_norm.default _fused_rms_norm_backward.default
# sizes and what is checked
sym_size.int sym_numel.default sym_stride.int sym_storage_offset.default _assert_tensor_metadata.default
_assert_scalar.default _assert_async.msg _assert_async.default sym_constrain_range_for_size.default
sym_constrain_range.default
"""

PYTHON = (
    *(f"_operator.{name}" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "getitem")),
    *(f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")),
    *(f"torch.sym_{name}" for name in ("int", "float", "max", "min", "not", "ite")),
    *("torch.sym_sqrt", "torch._sym_sqrt", "math.trunc", "math.ceil", "math.floor", "math.sqrt"),
)

_PLACES = {f"torch.ops.higher_order.{mode.__name__}": place for mode, place in MODES.items()}
"""The place of the submodule among the arguments, for calls that stand for a mode such as no_grad."""
NAMES = [name for line in _ATEN.splitlines() if not line.startswith("#") for name in line.split()]

MOST_STEPS = 1024
"""The furthest that a window may reach, or be moved: some kernels end the process for more."""
_STEPS = frozenset(("stride", "dilation", "padding", "output_padding", "kernel_size", "pad", "groups"))
_SCALARS = frozenset(("as_int", "as_float", "as_bool", "as_sym_int", "as_sym_float", "as_sym_bool", "as_tensor"))
_TAKES = {
    "Tensor": ("as_tensor", "as_int", "as_float", "as_sym_int", "as_sym_float"),  # numbers, beside tensors
    "int": ("as_int", "as_sym_int"),
    "float": ("as_float", "as_int", "as_sym_float", "as_sym_int"),
    "bool": ("as_bool", "as_sym_bool"),
    "number": ("as_int", "as_float", "as_bool", "as_complex", "as_sym_int", "as_sym_float", "as_sym_bool"),
    "str": ("as_string",),
    "ScalarType": ("as_scalar_type",),
    "MemoryFormat": ("as_memory_format",),
    "Layout": ("as_layout",),
    "Device": ("as_device",),
    "List[Tensor]": ("as_tensors",),
    "List[Optional[Tensor]]": ("as_optional_tensors", "as_tensors"),
    "List[int]": ("as_ints", "as_sym_ints", "as_int", "as_sym_int"),
    "List[float]": ("as_floats", "as_sym_floats", "as_float"),
    "List[bool]": ("as_bools",),
}


@functools.cache
def operators() -> dict[str, Any]:
    """Return the operators that may be called, by their names in a file, but those that this version of torch lacks."""
    called: dict[str, Any] = {}
    for name in NAMES:
        packet, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, packet, None), overload, None)
        if op is not None:
            called[f"torch.ops.aten.{name}"] = op
    return called


def check_call(node: dict[str, Any]) -> None:
    """Check that a node calls what it may, by arguments of the right kinds.  Raises ValueError if it does not."""
    target, arguments = node["target"], [i["arg"] for i in node["inputs"]]
    kinds = [next(iter(arg)) for arg in arguments]
    if target in _PLACES:
        place = _PLACES[target]
        if kinds[place : place + 1] != ["as_graph"] or kinds.count("as_graph") != 1:
            raise ValueError(f"a {target} in a way of its own")
        return
    if "as_graph" in kinds:
        raise ValueError(f"{target[:80]} of a graph")
    if target in PYTHON:
        if target == "_operator.pow" and not (kinds[1:] == ["as_int"] and 0 <= arguments[1]["as_int"] <= 4):
            raise ValueError("a power of sizes")
        if not set(kinds) <= _SCALARS:
            raise ValueError(f"{target} of {', '.join(kinds)}")
        return
    op = operators().get(target)
    if op is None:
        raise ValueError(f"an operator {target[:80]!r}")
    takes = {a.name: str(a.real_type) for a in op._schema.arguments}
    for given in node["inputs"]:
        name, (kind, value) = given["name"], next(iter(given["arg"].items()))
        if name not in takes:
            raise ValueError(f"{target} with {name[:80]!r}")
        if kind not in _kinds(takes[name]) and value != []:
            raise ValueError(f"{target} with {name} {kind}")
        if name in _STEPS and "strided" not in target and any(abs(n) > MOST_STEPS for n in _integers(value)):
            raise ValueError(f"{target} with {name} {str(value)[:80]}")


def _integers(value: Any) -> list[int]:
    return [n for n in (value if isinstance(value, list) else [value]) if isinstance(n, int)]


@functools.cache
def _kinds(takes: str) -> frozenset[str]:
    """Return the kinds of value in a file that an argument takes, by its type in torch's schemas."""
    if takes.startswith("Optional["):
        return _kinds(takes[len("Optional[") : -1]) | {"as_none", "as_optional_tensor"}
    return frozenset(_TAKES.get(takes, ()))
