"""The rulebook `abslrp`: relative absolute magnitude LRP on a graph.

Vukadin et al., "Advancing Attribution-Based Neural Network Explainability through Relative Absolute Magnitude
Layer-Wise Relevance Propagation and Multi-Component Evaluation", ACM TIST 2024 (arXiv 2412.09311).
"""

from __future__ import annotations

import torch

from fxlrp.patterns.attention import expand_attention
from fxlrp.patterns.batch_norm import batch_normed, fold_batch_norm
from fxlrp.rules import elementwise, norms, products
from fxlrp.rules.generic import activation
from fxlrp.rules.movement import STRUCTURAL_ENTRIES
from fxlrp.rules.propagate import MASS
from fxlrp.rules.registry import ABSOLUTE, Rule, Rulebook, publish, table

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
    aten.upsample_bilinear2d.vec,
)


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
                *((activation(op), op) for op in ACTIVATIONS),
                (ABSOLUTE, *AVERAGES, aten.linalg_vector_norm.default, aten.addcmul.default),
            ),
        },
        normalise=MASS,
        passes=(expand_attention, fold_batch_norm),
    )
)
