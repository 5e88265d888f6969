"""The rulebook `abslrp`: relative absolute magnitude LRP on a graph.

Vukadin et al., "Advancing Attribution-Based Neural Network Explainability through Relative Absolute Magnitude
Layer-Wise Relevance Propagation and Multi-Component Evaluation", ACM TIST 2024 (arXiv 2412.09311).
"""

from __future__ import annotations

import torch

from fxlrp.functions import Entrywise, Stepwise
from fxlrp.ops import of_kind
from fxlrp.patterns.centring import centred, offset
from fxlrp.patterns.elementwise import Elementwise, Gate
from fxlrp.patterns.masks import masked
from fxlrp.patterns.plain_form import PLAIN_FORM
from fxlrp.rules import convolutions, elementwise, norms, products
from fxlrp.rules.generic import activation
from fxlrp.rules.movement import STRUCTURAL_ENTRIES
from fxlrp.rules.normalise import MASS
from fxlrp.rules.registry import ABSOLUTE, STRUCTURAL, Rule, Rulebook, publish, table
from fxlrp.rules.values import rounding

aten = torch.ops.aten


ABSLRP = publish(
    Rulebook(
        "abslrp",
        "absLRP: relevance goes to positive contributions; positive and negative relevance each keep their mass",
        {
            **STRUCTURAL_ENTRIES,
            **table(
                (products.linear, aten.linear.default),
                (convolutions.conv1d, aten.conv1d),
                (convolutions.conv2d, aten.conv2d),
                (convolutions.conv3d, aten.conv3d),
                (convolutions.conv_transpose1d, aten.conv_transpose1d),
                (convolutions.conv_transpose2d, aten.conv_transpose2d),
                (convolutions.conv_transpose3d, aten.conv_transpose3d),
                (products.right_weight, aten.matmul.default, aten.mm.default, aten.bmm.default),
                (products.left_weight, (1,), aten.matmul.default, aten.mm.default, aten.bmm.default),
                (products.matmul, (0, 1), aten.matmul.default, aten.mm.default, aten.bmm.default),
                (products.addmm, (1,), aten.addmm.default),
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
                    products.positive_sum,
                    *of_kind("positive sum"),
                    aten.grid_sampler.default,
                    aten.grid_sampler_2d.default,
                    "torchvision::roi_align",
                ),
                (
                    Rule(products.positive_sum, shares=(0,)),
                    (0, 1),
                    aten.grid_sampler.default,
                    "torchvision::roi_align",
                ),
                (products.grouped_mm, "aten::_grouped_mm", "transformers::grouped_mm_fallback"),
                (rounding, *of_kind("step"), Stepwise),
                (elementwise.exp, aten.exp.default),
                (elementwise.logsumexp, aten.logsumexp.default),
                (STRUCTURAL, masked),
                (elementwise.gate, Gate),
                *((Rule(norms.centred, shares=(0,)), at, centred) for at in ((0,), (0, 1))),
                *((Rule(norms.offset, shares=(0,)), at, offset) for at in ((0,), (0, 1))),
                *((activation(op), op) for op in of_kind("activation")),
                (
                    ABSOLUTE,
                    *of_kind("sum", "function", "fourier"),
                    Elementwise,
                    Entrywise,
                ),
            ),
        },
        normalise=MASS,
        passes=PLAIN_FORM,
    )
)
