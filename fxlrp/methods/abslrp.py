"""The rulebook `abslrp`: relative absolute magnitude LRP on a graph.

Vukadin et al., "Advancing Attribution-Based Neural Network Explainability through Relative Absolute Magnitude
Layer-Wise Relevance Propagation and Multi-Component Evaluation", ACM TIST 2024 (arXiv 2412.09311).
"""

from __future__ import annotations

import torch

from fxlrp.capture.functions import Entrywise, Stepwise
from fxlrp.ops import of_kind
from fxlrp.patterns.centring import centred, offset
from fxlrp.patterns.elementwise import Elementwise, Gate
from fxlrp.patterns.masks import masked
from fxlrp.patterns.plain_form import PLAIN_FORM
from fxlrp.rules import absolute, passing
from fxlrp.rules.normalise import MASS
from fxlrp.rules.registry import ABSOLUTE, STRUCTURAL, STRUCTURAL_ENTRIES, Rule, Rulebook, publish, table

aten = torch.ops.aten
SAMPLERS = (aten.grid_sampler.default, "torchvision::roi_align")


ABSLRP = publish(
    Rulebook(
        "abslrp",
        "absLRP: relevance goes to positive contributions; positive and negative relevance each keep their mass",
        {
            **STRUCTURAL_ENTRIES,
            **table(
                (ABSOLUTE, (0,), *of_kind("convolution"), aten.linear),
                *((ABSOLUTE, at, *of_kind("matmul")) for at in ((0,), (1,), (0, 1))),
                (ABSOLUTE, (1,), aten.addmm.default),
                (ABSOLUTE, *of_kind("sum", "function", "fourier"), Elementwise, Entrywise),
                (ABSOLUTE, (0, 1), aten.mul.Tensor, aten.multiply.Tensor),
                *((absolute.add, at, aten.add.Tensor) for at in ((0,), (1,), (0, 1))),
                *((absolute.sub, at, aten.sub.Tensor) for at in ((0,), (1,), (0, 1))),
                (absolute.add, aten.add.Scalar),
                (absolute.sub, aten.sub.Scalar),
                (absolute.rsub, aten.rsub.Tensor, aten.rsub.Scalar),
                (absolute.positive_sum, *of_kind("positive sum"), *SAMPLERS, aten.grid_sampler_2d.default),
                (Rule(absolute.positive_sum, argnums=(0,)), (0, 1), *SAMPLERS),
                (absolute.grouped_mm, "aten::_grouped_mm", "transformers::grouped_mm_fallback"),
                (absolute.activation, *of_kind("activation")),
                (absolute.gate, Gate),
                (absolute.exp, aten.exp.default),
                (absolute.logsumexp, aten.logsumexp.default),
                (absolute.softmax, aten.softmax.int, aten._softmax.default),
                (absolute.batch_norm, aten.batch_norm.default),
                (absolute.layer_norm, aten.layer_norm.default),
                (absolute.group_norm, aten.group_norm.default),
                (absolute.instance_norm, aten.instance_norm.default),
                *((Rule(absolute.centred, argnums=(0,)), at, centred) for at in ((0,), (0, 1))),
                *((Rule(passing.offset, argnums=(0,)), at, offset) for at in ((0,), (0, 1))),
                (passing.offset, aten.log_softmax.int, aten._log_softmax.default),
                (passing.rms_norm, aten.rms_norm.default),
                (Rule(passing.div, argnums=(0,)), (0, 1), aten.div.Tensor, aten.divide.Tensor),
                (Rule(passing.normaliser, argnums=()), aten.rsqrt.default, aten.reciprocal.default),
                (passing.rounding, *of_kind("step"), Stepwise),
                (STRUCTURAL, masked),
            ),
        },
        normalise=MASS,
        passes=PLAIN_FORM,
    )
)
