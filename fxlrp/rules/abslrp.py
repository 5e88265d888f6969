"""The rulebook `abslrp`: relative absolute magnitude LRP on a graph.

Vukadin et al., "Advancing Attribution-Based Neural Network Explainability through Relative Absolute Magnitude
Layer-Wise Relevance Propagation and Multi-Component Evaluation", ACM TIST 2024 (arXiv 2412.09311).
"""

from __future__ import annotations

import torch

from fxlrp.patterns.attention import expand_attention
from fxlrp.patterns.batch_norm import batch_normed, fold_batch_norm
from fxlrp.patterns.bias import join_bias
from fxlrp.patterns.centring import centred, join_sigmoid, join_softmax, mark_centring, offset
from fxlrp.patterns.complex_products import split_complex
from fxlrp.patterns.elementwise import Elementwise, Gate, fuse_elementwise
from fxlrp.patterns.masks import mark_masks, masked
from fxlrp.patterns.powers import name_powers
from fxlrp.patterns.take_apart import take_apart
from fxlrp.rules import elementwise, norms, products
from fxlrp.rules.generic import activation
from fxlrp.rules.movement import STRUCTURAL_ENTRIES
from fxlrp.rules.propagate import MASS
from fxlrp.rules.registry import ABSOLUTE, STRUCTURAL, Rule, Rulebook, publish, table

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
AVERAGES = (
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
    aten.upsample_bicubic2d.vec,
    aten.upsample_trilinear3d.vec,
    aten.cumsum.default,
    aten.col2im.default,
    aten.index_add.default,
    aten.scatter_add.default,
    aten.scatter_reduce.two,
    aten.trace.default,
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


ABSLRP = publish(
    Rulebook(
        "abslrp",
        "absLRP: relevance goes to positive contributions; positive and negative relevance each keep their mass",
        {
            **STRUCTURAL_ENTRIES,
            **table(
                (products.linear, aten.linear.default),
                (products.conv1d, aten.conv1d),
                (products.conv2d, aten.conv2d),
                (products.conv3d, aten.conv3d),
                (products.conv_transpose1d, aten.conv_transpose1d),
                (products.conv_transpose2d, aten.conv_transpose2d),
                (products.conv_transpose3d, aten.conv_transpose3d),
                (products.right_weight, aten.matmul.default, aten.mm.default, aten.bmm.default),
                (products.left_weight, (1,), aten.matmul.default, aten.mm.default, aten.bmm.default),
                (products.matmul, (0, 1), aten.matmul.default, aten.mm.default, aten.bmm.default),
                (products.addmm, (1,), aten.addmm.default),
                (norms.batch_normed, batch_normed),
                (norms.batch_norm, aten.batch_norm.default),
                (norms.layer_norm, aten.layer_norm.default),
                (norms.group_norm, aten.group_norm.default),
                (norms.instance_norm, aten.instance_norm.default),
                (norms.rms_norm, aten.rms_norm.default),
                (norms.softmax, aten.softmax.int, aten._softmax.default),
                (elementwise.add, (0, 1), aten.add.Tensor),
                (elementwise.shift, aten.add.Tensor, aten.add.Scalar, aten.sub.Tensor, aten.sub.Scalar),
                (elementwise.shift_right, (1,), aten.add.Tensor),
                (elementwise.sub, (0, 1), aten.sub.Tensor),
                (elementwise.shift_minus, (1,), aten.sub.Tensor),
                (elementwise.rsub, aten.rsub.Tensor, aten.rsub.Scalar),
                (Rule(elementwise.normaliser, shares=()), aten.rsqrt.default, aten.reciprocal.default),
                (elementwise.mul, (0, 1), aten.mul.Tensor, aten.multiply.Tensor),
                (Rule(elementwise.div, shares=(0,)), (0, 1), aten.div.Tensor, aten.divide.Tensor),
                (
                    products.read_between,
                    aten.grid_sampler.default,
                    aten.grid_sampler_2d.default,
                    "torchvision::roi_align",
                ),
                (Rule(products.read_between, shares=(0,)), (0, 1), aten.grid_sampler.default),
                (products.grouped_mm, "aten::_grouped_mm", "transformers::grouped_mm_fallback"),
                (elementwise.exp, aten.exp.default),
                (elementwise.logsumexp, aten.logsumexp.default),
                (STRUCTURAL, masked),
                (elementwise.gate, Gate),
                *((Rule(norms.centred, shares=(0,)), at, centred) for at in ((0,), (0, 1))),
                *((Rule(norms.offset, shares=(0,)), at, offset) for at in ((0,), (0, 1))),
                *((activation(op), op) for op in ACTIVATIONS),
                (ABSOLUTE, *AVERAGES, *FUNCTIONS, *FOURIER, Elementwise),
            ),
        },
        normalise=MASS,
        passes=(
            expand_attention,
            fold_batch_norm,
            take_apart,
            join_bias,
            mark_masks,
            split_complex,
            name_powers,
            mark_centring,
            join_softmax,
            join_sigmoid,
            fuse_elementwise,
        ),
    )
)
