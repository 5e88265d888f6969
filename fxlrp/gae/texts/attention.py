"""What attention says of tokens: rollout, Chefer, gradient × attention, LeGrad, LibraGrad.

Abnar and Zuidema 2020 (2005.00928); Chefer et al. 2021 (2103.15679); Barkan et al. 2021, "Grad-SAM" (2204.11073);
Bousselham et al. 2025 (2404.03214); Mehri et al. 2025 (2411.16760).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer
from fxlrp.gae.attention_maps import PLAIN, legrad_of_tokens, libragrad_of_tokens, ran, softmaxes_of
from fxlrp.gae.texts.case import Case
from fxlrp.rules.registry import Rulebook

Explain = Callable[[Case], Tensor]
Layers = list[tuple[Tensor, Tensor]]
"""Weights of attention and their gradients, of each layer [heads, T, T]."""


class Base:
    """An explainer of a model, and those by other rulebooks, each made once: methods share their graphs."""

    def __init__(self, explainer: Explainer) -> None:
        self.explainer, self.model = explainer, explainer.model
        self._made: dict[Any, Explainer] = {}

    def by(self, rules: str | Rulebook) -> Explainer:
        """Return the explainer by a rulebook.  Raises FxlrpError for an unknown one."""
        key = rules if isinstance(rules, str) else id(rules)  # which the explainer keeps alive
        if key not in self._made:
            self._made[key] = self.explainer.by(rules)
        return self._made[key]


def _of_attention(base: Base, name: str, row: Callable[[Layers, Tensor], Tensor]) -> Explain:
    """A method by the weights of attention among all tokens.

    row(layers, read) → [T], where read [T] says which tokens the model's head reads, in parts of one.
    """
    explainer = base.by(PLAIN)

    def explain(case: Case) -> Tensor:
        if case.decodes:
            raise FxlrpError(f"{name} is of attention among the tokens of one text; this model has a decoder, too.")
        call = explainer.call((), case.inputs)
        nodes, length = softmaxes_of(call.plan), case.inputs["input_ids"].shape[1]
        pairs = ran(call, lambda logits: case.score(logits).sum(), nodes) if nodes else []
        layers = [(a[0], g[0]) for a, g in pairs if a.ndim == 4 and a.shape[2:] == (length, length)]
        if not layers:
            raise FxlrpError(f"{name} needs layers of attention among all tokens; this model has none.")
        read = (layers[-1][1] != 0).any(0).any(1).to(layers[-1][1])  # no other rows of the last layer matter
        return row(layers, read / read.sum().clamp(min=1))

    return explain


def attention_rollout(base: Base, seed: int) -> Explain:
    """R ← (½ mean over heads of A + ½ I) R, layer by layer, read where the model's head reads."""

    def row(layers: Layers, read: Tensor) -> Tensor:
        for weights, _ in reversed(layers):
            read = 0.5 * read @ weights.mean(0) + 0.5 * read
        return read

    return _of_attention(base, "attention-rollout", row)


def chefer(base: Base, seed: int) -> Explain:
    """R ← R + mean over heads of (A ⊙ ∂score/∂A)⁺ R, layer by layer, read where the model's head reads."""

    def row(layers: Layers, read: Tensor) -> Tensor:
        for weights, gradient in reversed(layers):
            read = read + read @ (weights * gradient).clamp(min=0).mean(0)
        return read

    return _of_attention(base, "chefer", row)


def gradient_x_attention(base: Base, seed: int) -> Explain:
    """The mean over layers, heads and queries of A ⊙ (∂score/∂A)⁺."""

    def row(layers: Layers, read: Tensor) -> Tensor:
        return torch.stack([(a * g.clamp(min=0)).mean((0, 1)) for a, g in layers]).mean(0)

    return _of_attention(base, "gradient-x-attention", row)


def legrad(base: Base, seed: int) -> Explain:
    """Σ over layers of the mean, over heads and queries, of (∂s/∂A)⁺, where s is the score if the model's head saw the
    tokens that the layer's block returns."""
    explainer = base.by(PLAIN)

    def explain(case: Case) -> Tensor:
        call = explainer.call((), case.inputs)
        return _row("legrad", legrad_of_tokens(call, lambda logits: case.score(logits).sum()), case)

    return explain


def libragrad(base: Base, seed: int) -> Explain:
    """Σ over the inputs of all norms of x ⊙ gradient, channels summed, where attention, deviations and gates are
    constant (as by the rulebook cp-lrp)."""
    explainer = base.by("cp-lrp")

    def explain(case: Case) -> Tensor:
        asked = [{"target": target, "position": at} for target, at in case.questions()]
        rows = [_row("libragrad", libragrad_of_tokens(explainer, (), case.inputs, **q), case) for q in asked]
        return torch.stack(rows).sum(0)

    return explain


def _row(name: str, row: Tensor | None, case: Case) -> Tensor:
    """A number for each token [T] of [1, T].  Raises FxlrpError if there is none."""
    if row is None or row.shape != case.inputs["input_ids"].shape:
        raise FxlrpError(
            f"{name} needs blocks of attention and norms, all of the same tokens; this model has none such."
        )
    return row[0].detach()
