"""Explains a batch sample by sample, and a call that is one sample row by row of its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils import _pytree as pytree

from fxlrp.answers import ModelCall
from fxlrp.attribution import Attribution
from fxlrp.capture.axes import Axes
from fxlrp.capture.calls import Call
from fxlrp.capture.symbols import hint
from fxlrp.engine.seeds import Question, by_classes, class_numbers
from fxlrp.errors import FxlrpError, InputsRefused
from fxlrp.graph.plan import Plan
from fxlrp.targets import is_about_all, of_sample

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer


def sample_of(axes: Axes, call: tuple, questions: Sequence[Question], i: int, batch: int) -> tuple:
    """The i-th sample of the tensors in a call, and of the questions about it."""

    listed = map_lists(lambda v: v[i : i + 1], call, batch)
    sample = axes.each(lambda t, axis: t.narrow(axis, i, 1), listed)
    parts = ((of_sample(q.target, i, batch), of_sample(q.position, i, batch)) for q in questions)
    return *sample, *(replace(q, target=t, position=p) for q, (t, p) in zip(questions, parts, strict=True))


def is_one_per_sample(value: object, batch: int) -> bool:
    """Whether a value is a list of one number per sample, such as lengths."""
    return type(value) is list and len(value) == batch and all(type(v) in (int, float) for v in value)


def map_lists(f: Callable[[list], list], call: Any, batch: int) -> Any:
    """The call with every list of one number per sample replaced by f(list)."""

    def is_one(value: object) -> bool:
        return is_one_per_sample(value, batch)

    return pytree.tree_map(lambda v: f(v) if is_one(v) else v, call, is_leaf=is_one)


def asks_every_row(plan: Plan, question: Question) -> bool:
    """Whether a question asks for classes without a position of a call that is one sample, and so about all rows."""
    of_rows = plan.axes.output is None and len(plan.scores_shape) == 3
    return of_rows and question.position is None and by_classes(question.target)


def row_by_row(
    call: ModelCall, question: Question, at: Sequence[str]
) -> tuple[Attribution, list[Attribution], list[Question]]:
    """Explains every row of the output of a call that is one sample, such as a list of pictures or packed texts.

    Returns the answer about all, and what it is made of: the answer about each row, and its question.

    Raises FxlrpError if two rows give relevance to one entry of an input.
    """
    plan = call.plan
    count = hint(plan.scores_shape[1])
    if count is None:  # as many as values say
        count = plan.axes.rows(call.outputs()[plan.explained]).shape[1]
    if hint(plan.scores_shape[2]) == 1 and question.target is not None and class_numbers(question.target).any():
        raise FxlrpError(
            f"This output is one score for each of {count} rows: position=1 (or any other number) says which one is "
            "explained; without it, each is, by what it depends on."
        )
    targets = [of_sample(question.target, i, count) for i in range(count)]
    rows = [replace(question, target=target, position=i) for i, target in enumerate(targets)]
    answers = call.explainer.answers(call, rows, at)
    several = [torch.stack(parts) for parts in zip(*(a.each for a in answers), strict=True)]
    if any(bool(((r != 0).sum(0) > 1).any()) for r in several):
        raise FxlrpError(
            f"The {count} rows of this output depend on each other, or on inputs that they share, so the call is "
            "one sample: say which row is explained, position=0 for the first (or, if they don't, which axis of "
            "the inputs counts the samples, convert(…, batch=0))."
        )
    whole = replace(
        answers[0],
        relevance=several[0].sum(0) if len(several) == 1 else tuple(r.sum(0) for r in several),
        logits=torch.cat([a.logits for a in answers]),
        target=torch.cat([a.target for a in answers if a.target is not None]),
        latent={name: torch.stack([a.latent[name] for a in answers]).sum(0) for name in at},
    )
    return whole, answers, rows


def one_by_one(
    explainer: Explainer, axes: Axes, call: Call, questions: Sequence[Question], at: Sequence[str]
) -> list[Attribution]:
    """Explains each sample alone, if the model branches on values or its samples can't be told apart inside; joins the
    results with the model's output for the whole batch, and sums relevance at inputs that samples share.

    Explains the batch as one sample instead if a target returns one number for the whole batch, or if samples alone
    are refused by the model or get other outputs than within the batch, as long as no entry of an input gets relevance
    from two rows.
    """
    batch, original = axes.count(call.tensors), explainer.plans.original
    output = original.returned(call)
    together = explainer.other(explainer.settings.output, None)
    if explainer is not together and any(is_about_all(q.target, output) for q in questions):
        return together.explain(call.args, call.kwargs, questions, at)

    def explain_sample(i: int) -> list[Attribution]:
        sample, named, *sample_questions = sample_of(axes, (call.args, call.kwargs), questions, i, batch)
        return explainer.explain(sample, named, sample_questions, at)

    try:
        samples = [explain_sample(i) for i in range(batch)]
    except InputsRefused:  # they are no calls on their own
        return together.explain(call.args, call.kwargs, questions, at)
    try:
        original.check_rows(explainer.latest, axes, [p[0].output for p in samples], output, call)
    except FxlrpError as mismatch:
        try:
            return together.explain(call.args, call.kwargs, questions, at)
        except FxlrpError:
            raise mismatch from None
    at_inputs = dict(zip(call.names, axes.inputs, strict=True))
    return [_joined(parts, output, at_inputs) for parts in zip(*samples, strict=True)]


def _joined(parts: Sequence[Attribution], output: object, at_inputs: Mapping[str, int | None]) -> Attribution:
    """One attribution of a batch, made of those of its samples; sums relevance at inputs that samples share.

    output: the model's output for the batch.  at_inputs: the sample axis of each input, by name; None if it is shared.
    """
    axes = [at_inputs.get(name, 0) for name in parts[0].names]
    maps = zip(zip(*(p.each for p in parts), strict=True), axes, strict=True)
    inputs = zip(zip(*(p.inputs for p in parts), strict=True), axes, strict=True)
    relevance = [sum(rs[1:], rs[0]) if axis is None else torch.cat(rs, axis) for rs, axis in maps]
    return replace(
        parts[0],
        relevance=relevance[0] if len(relevance) == 1 else tuple(relevance),
        output=output,
        logits=torch.cat([p.logits for p in parts]),
        target=None if parts[0].target is None else torch.cat([p.target for p in parts if p.target is not None]),
        inputs=tuple(xs[0] if axis is None else torch.cat(xs, axis) for xs, axis in inputs),
        latent={name: torch.cat([p.latent[name] for p in parts]) for name in parts[0].latent},
        trace=None,
        ended=None,
    )
