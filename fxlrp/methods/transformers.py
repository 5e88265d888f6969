"""The rulebooks of LRP for transformers: attnlrp, cp-lrp and reslrp.

Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML 2024.
Ali et al., "XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022.
Berend et al., "ResLRP", 2026.
"""

from __future__ import annotations

import torch

from fxlrp.methods.classic import PRODUCTS, by_epsilon, by_rule, composite, residual_sums
from fxlrp.patterns.gates import gate, mark_gates
from fxlrp.rules import passing, signed, weighted
from fxlrp.rules.registry import Rule, Rulebook, publish
from fxlrp.rules.weighted import CONVOLVING, DENSE

aten = torch.ops.aten
ATTENTION = aten.scaled_dot_product_attention.default


@publish
def attnlrp(gamma: float = 0.0, epsilon: float = 0.0) -> Rulebook:
    """AttnLRP: softmax by its Taylor expansion, ½ for each factor of a product, norms and activations passed through,
    ε at layers or, with gamma > 0, γ."""
    layers = by_rule(PRODUCTS, weighted.gamma, gamma=gamma, stabilizer=epsilon or 1e-6)
    fused = () if epsilon else ((signed.ATTENTION_FACTORS, (0, 1, 2), ATTENTION),)
    return composite(*(layers if gamma else by_epsilon(PRODUCTS, epsilon)), *fused, epsilon=epsilon)


@publish
def cp_lrp(gamma: float = 0.0, epsilon: float = 0.0) -> Rulebook:
    """CP-LRP: attention weights and gates are constants, else as attnlrp."""
    constant = (Rule(passing.normaliser, argnums=()), aten.softmax.int, aten._softmax.default, gate)
    book = attnlrp(gamma=gamma, epsilon=epsilon)
    fused = () if epsilon else ((Rule(signed.attention_to_values, argnums=(2,)), None, ATTENTION),)
    return book.extend([constant, *fused], passes=(*book.passes, mark_gates))


@publish
def reslrp(gamma: float = 1.0, dense: float = 0.0, convolution: float = 0.0, epsilon: float = 0.0) -> Rulebook:
    """ResLRP: as attnlrp, and at a sum of two tensors with relevance γ for the one that has the sum's sign; with dense
    or convolution > 0, γ at these layers."""
    layers = [
        row
        for ops, at in ((DENSE, dense), (CONVOLVING, convolution))
        if at
        for row in by_rule(ops, weighted.gamma, gamma=at, stabilizer=epsilon or 1e-6)
    ]
    return attnlrp(epsilon=epsilon).extend([*layers, *residual_sums(gamma)])
