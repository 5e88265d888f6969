"""Answers: the graph of a plan runs on a call, and each question about it is answered by an attribution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fxlrp.attribution import Attribution
from fxlrp.capture.calls import Call
from fxlrp.capture.precision import casts_made_again, widened
from fxlrp.engine.seeds import Question, Target, at_position, by_classes
from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.relevance_pass import Read, maps_at_once, propagate
from fxlrp.rules.registry import Rulebook
from fxlrp.targets import asked_directions

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer


@dataclass(frozen=True, eq=False)
class ModelCall(Call):
    """A call of the model, by the explainer that is asked about it, with the plan that holds for it."""

    explainer: Explainer
    plan: Plan

    def outputs(self) -> list[Tensor]:
        """The tensors that the model itself returns."""
        return self.explainer.plans.original.outputs(self)

    def about(self, target: Target) -> Explainer:
        """The explainer of the outputs that a target depends on, if it is a callable; else the one that is asked."""
        return self.explainer.of_target(self.plan, self.outputs(), target) if callable(target) else self.explainer

    @property
    def batch(self) -> int:
        """The number of samples."""
        return self.plan.axes.count(self.tensors)


class Forward(NamedTuple):
    """The forward pass of a call.

    out: what the graph returned: the model's outputs, then the values where relevance is read.
    model_out: the same, with the model's own outputs where a graph in float32 gives others by more than rounding.
    latent: the values inside the model that were asked for, by name.
    """

    out: Sequence[Tensor]
    model_out: Sequence[Tensor]
    latent: dict[str, Tensor]


def run_forward(
    call: ModelCall, questions: Sequence[Question], at: Sequence[str] = (), run: Callable | None = None
) -> Forward:
    """Run the form of a plan's graph that suits the questions.

    at: modules or nodes whose values are returned too.  run: runs the graph, in the place of the fastest form of it.
    """
    plan, explainer = call.plan, call.explainer
    one_sided = all(by_classes(q.target) and q.contrast is None for q in questions)
    again = run is None and not plan.random  # random numbers can't be drawn again
    graph, latent = plan.form(one_sided and not at, at, small=again, checkpoint=again and explainer.settings.checkpoint)
    given = [t.clone() if t.is_inference() else t.detach() for t in widened(call.tensors)]
    casts = casts_made_again() if plan.capture.narrow else nullcontext()
    try:
        with plan.in_its_types(), explainer.plans.original.draw(plan), casts:
            out = (run or graph)(*given)
    except Exception:
        call.outputs()  # which says so, if the model itself refuses the call
        raise
    model_out = out
    if plan.capture.answers_apart:
        answers = call.outputs()
        model_out = [*answers, *out[len(answers) :]]
        model_out[plan.logits] = model_out[plan.logits].to(answers[plan.explained].dtype)
    return Forward(out, model_out, {name: out[i] for name, i in zip(at, latent, strict=True)})


def answer(
    call: ModelCall, forward: Forward, questions: Sequence[Question], *, one_at_a_time: bool = False
) -> list[Attribution]:
    """An attribution for each question, by one relevance pass for several directions at once, or for each of them."""
    plan = call.plan
    asked = [asked_directions(plan, forward.out, forward.model_out, q, call.batch) for q in questions]
    directions = [d for several, _ in asked for d in several]
    at_once = 1 if one_at_a_time else maps_at_once(plan.axes.rows(forward.out[plan.logits]))
    try:
        with plan.in_its_types():
            latent = list(forward.latent.values())
            reads = iter(
                propagate(plan, call.explainer.rulebook, forward.out, call.tensors, directions, latent, at_once)
            )
    except RuntimeError as error:
        if "fork-based" not in str(error):
            raise
        raise FxlrpError(
            "This process was forked from one that had explained before, where torch runs no backward pass; start "
            "it by spawn (multiprocessing.get_context('spawn')), or fork before the first explanation."
        ) from error
    return [
        attribution_from(
            call, forward, question, [next(reads) for _ in several], classes, classes is not None and classes.ndim == 2
        )
        for question, (several, classes) in zip(questions, asked, strict=True)
    ]


def attribution_from(
    call: ModelCall,
    forward: Forward,
    question: Question,
    reads: Sequence[Read],
    classes: Tensor | None,
    columns: bool,
    given: str | tuple[str, ...] = "",
) -> Attribution:
    """The answer to one question, whose relevance was read once, or once for each of several `columns`: of classes
    [B, K], or of conditions."""

    def joined(several: Sequence[Sequence[Tensor]], axes: Sequence[int]) -> list[Tensor]:
        parts = zip(zip(*several, strict=True), axes, strict=True)
        return [torch.stack(of_one, axis) if columns else of_one[0] for of_one, axis in parts]

    plan = call.plan
    relevance = joined([r.inputs for r in reads], [plan.axes.column(i) for i in plan.readouts])
    latent = joined([r.latent for r in reads], [1] * len(forward.latent))
    logits = at_position(plan.axes.rows(forward.model_out[plan.logits]), question.position).detach()
    inside = dict(zip(forward.latent, latent, strict=True))
    return replace(attribution_of(call, forward.model_out, logits, relevance, classes, inside), given=given)


def attribution_of(
    call: ModelCall,
    out: Sequence[Tensor],
    logits: Tensor,
    relevance: Sequence[Tensor],
    index: Tensor | None,
    latent: dict[str, Tensor],
) -> Attribution:
    """The attribution: relevance of each explained input, with the model's output from the first tensors in `out`."""
    plan, tensors = call.plan, call.tensors
    return Attribution(
        relevance[0] if len(relevance) == 1 else tuple(relevance),
        plan.capture.unflatten(tuple(o.detach() for o in out[: len(plan.capture.output_names)])),
        logits,
        index,
        tuple(f"read[{i!r}]" if isinstance(i, str) else plan.capture.names[i] for i in plan.readouts),
        tuple(out[at].detach() if isinstance(i, str) else tensors[i] for i, (at, *_) in plan.readouts.items()),
        latent,
        independent=plan.independent,
    )


def with_questions(
    rulebook: Rulebook, answers: Sequence[Attribution], questions: Sequence[Question]
) -> list[Attribution]:
    """The answers, each with the rulebook it is by, and what was asked."""
    return [
        replace(a, rules=rulebook.name, contrast=rulebook.resolve(q.contrast, a.independent), position=q.position)
        for a, q in zip(answers, questions, strict=True)
    ]
