"""Kinds of ops that rulebooks treat alike."""

from __future__ import annotations

import torch

aten = torch.ops.aten

ACTIVATIONS = (
    aten.gelu.default,
    aten.silu.default,
    aten.mish.default,
    aten.hardswish.default,
    aten.sigmoid.default,
    aten.hardsigmoid.default,
    aten.tanh.default,
    aten.softplus.default,
    aten.elu.default,
    aten.celu.default,
    aten.selu.default,
    aten.leaky_relu.default,
    aten.hardtanh.default,
    aten.relu6.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
    aten.clamp.Tensor,
    aten.clamp_min.Tensor,
    aten.clamp_max.Tensor,
    aten.prelu.default,
    aten.threshold.default,
    aten.softshrink.default,
    aten.hardshrink.default,
    aten.log_sigmoid.default,
)
SOFTMAXES = (aten.softmax.int, aten.log_softmax.int, aten._softmax.default, aten._log_softmax.default)
POSITIVE_SUMS = (
    aten.mean.default,
    aten.mean.dim,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_linear1d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_trilinear3d.vec,
    aten.cumsum.default,
    aten.col2im.default,
    aten.trace.default,
)
"""Sums of one tensor with weights ≥ 0 that are no parameters."""

AVERAGES = (
    *POSITIVE_SUMS,
    aten.upsample_bicubic2d.vec,
    aten.index_add.default,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
    aten.linalg_vector_norm.default,
)
"""Sums with weights that are no parameters."""

FOURIER = (
    *(getattr(aten, f"fft_{i}{r}fft{n}").default for i in ("", "i") for r in ("", "r", "h") for n in ("", "2", "n")),
    aten.stft.default,
    aten.stft.center,
    aten.istft.default,
)
"""Fourier transforms, real and imaginary parts apart: linear, without parameters."""

FUNCTIONS = (
    aten.square.default,
    aten.sqrt.default,
    aten.pow.Tensor_Scalar,
    aten.abs.default,
    aten.log.default,
    aten.log2.default,
    aten.log10.default,
    aten.log1p.default,
    aten.expm1.default,
    aten.erf.default,
    aten.sin.default,
    aten.cos.default,
    aten.tan.default,
    aten.asin.default,
    aten.acos.default,
    aten.atan.default,
    aten.sinh.default,
    aten.cosh.default,
    aten.asinh.default,
    aten.prod.default,
    aten.prod.dim_int,
    aten.var.correction,
    aten.var.dim,
    aten.var.default,
    aten.std.correction,
    aten.std.dim,
    aten.std.default,
    aten.bilinear.default,
)
"""Functions that go through zero or are even: |f| is their own companion."""
