"""Zero maps: an attribution that is zero at an input although the score is not says where relevance ended, and why;
one that is not finite says what else is not."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fxlrp.answers import ModelCall
from fxlrp.attribution import Attribution
from fxlrp.capture.confine import LOCK
from fxlrp.engine.seeds import Question
from fxlrp.errors import FxlrpError, NoRelevance
from fxlrp.reports.ended import Ended, find_end, find_end_to
from fxlrp.reports.mass import Weighing
from fxlrp.rows import sample_of


def say_where_it_ended(
    call: ModelCall, answers: Sequence[Attribution], questions: Sequence[Question]
) -> list[Attribution]:
    """The same answers; those with a map of zeros warn, and say in `ended`, where relevance ended and why."""
    return [_with_end(call, a, question) for a, question in zip(answers, questions, strict=True)]


def say_which_rows_ended(
    call: ModelCall, whole: Attribution, of_rows: Sequence[Attribution], questions: Sequence[Question]
) -> Attribution:
    """The answer about all rows of one sample, made of the answers `of_rows`; if some of their maps are zero beside
    others, it warns and says so in `ended`."""
    silent = [i for i, a in enumerate(of_rows) if bool(a.logits.any()) and not any(bool(r.any()) for r in a.each)]
    if not 0 < len(silent) < len(of_rows):
        return whole
    ended = _find_end(call, of_rows[silent[0]], questions[silent[0]])
    return whole if ended is None else _said(whole, replace(ended, samples=tuple(silent)))


def _said(a: Attribution, ended: Ended) -> Attribution:
    warn(ended)
    return replace(a, ended=ended)


def _with_end(call: ModelCall, a: Attribution, question: Question) -> Attribution:
    """One answer, with its end if it has one."""
    if message := not_finite(a):
        warn(message)
        return a
    ended = _find_end(call, a, question) if a.ended is None else None
    return a if ended is None else _said(a, ended)


def _find_end(call: ModelCall, a: Attribution, question: Question) -> Ended | None:
    """Where relevance ended, for an answer with a map of zeros."""
    explainer, plan, batch = call.explainer, call.plan, call.batch
    at_inputs = dict(zip(plan.capture.names, plan.axes.inputs, strict=True))
    columns = a.target.shape[1] if a.target is not None and a.target.ndim == 2 else 1
    axes = [at_inputs.get(name, 0) for name in a.names]
    zero, within = zero_maps(a.each, axes, batch, columns), None
    if not zero:
        zero, within = _zero_at_one(a, axes, batch, columns)
    if not zero:
        return None
    if (other := call.about(question.target)) is not explainer:
        return _find_end(other.call(call.args, call.kwargs), a, question)
    i, column = zero[0]
    some, named, asked = sample_of(plan.axes, (call.args, call.kwargs), [question], i, batch)
    if a.target is not None and len(a.target) == batch:
        asked = replace(asked, target=int(a.target.reshape(batch, columns)[i, column]))
    elif a.target is not None:  # of the rows of one sample, the first
        asked = replace(asked, target=int(a.target[0]), position=0)
    try:
        with LOCK:
            one = explainer.call(some, named)
            weighing = Weighing(one.plan.graph)
            explainer.answers(one, [asked], run=weighing.run)
    except FxlrpError:  # a callable that is about another sample
        return None
    report, samples = one.plan.report.weighed(weighing.edges), [i for i, _ in zero]
    if within is None:
        return find_end(report, samples)
    return find_end_to(report, samples, one.plan, weighing.env, within)


def _zero_at_one(
    a: Attribution, axes: Sequence[int | None], batch: int, columns: int
) -> tuple[list[tuple[int, int]], int | None]:
    """The (sample, column) pairs whose relevance is zero at one of several inputs, whose values there are not, and the
    index of that input."""
    each = zip(a.each, a.inputs, axes, strict=True)
    for k, (r, x, axis) in enumerate(each if len(a.names) > 1 else ()):
        if axis is not None or batch == 1:
            silent = zero_maps([x], [axis], batch, 1)
            zero = [(i, column) for i, column in zero_maps([r], [axis], batch, columns) if (i, 0) not in silent]
            if zero:
                return zero, k
    return [], None


def zero_maps(
    relevance: Sequence[Tensor], axes: Sequence[int | None], batch: int, columns: int
) -> list[tuple[int, int]]:
    """The (sample, column) pairs whose relevance is zero at all inputs.

    axes: the sample axis of each input; inputs that samples share must be zero too.  columns: the number of classes
    with a map each.
    """
    pairs = list(zip(relevance, axes, strict=True))
    if not batch or (batch > 1 and any(bool(r.any()) for r, axis in pairs if axis is None)):
        return []

    def row(r: Tensor, axis: int | None) -> Tensor:
        if axis:
            r = r.movedim((axis, axis + 1), (0, 1)) if columns > 1 else r.movedim(axis, 0)
        return r.reshape(batch, columns, -1)

    rows = [row(r, axis) for r, axis in pairs if axis is not None or batch == 1]
    if not rows or any(not r.numel() for r in rows):
        return []
    dead = torch.stack([~r.any(2) for r in rows]).all(0)
    return [(i, k) for i, k in dead.nonzero().tolist()] if bool(dead.any()) else []


def not_finite(a: Attribution) -> str | None:
    """The sentence that says why a map has NaN or infinite entries; None if it has none."""
    if all(bool(r.isfinite().all()) for r in a.each):
        return None
    broken = [name for name, x in zip(a.named, a.inputs, strict=True) if not bool(x.isfinite().all())]
    if broken:
        why = f"nor is input {', '.join(broken)}; put a number where one is missing"
    elif not bool(a.logits.isfinite().all()):
        why = "nor is the model's own output; look for what it divides by zero, or for weights that are NaN"
    else:
        why = "though input and output are; trace=True says at which node it begins"
    return f"The map is not finite, {why}."


def warn(message: object) -> None:
    """Warns that a map says nothing, at the line that requested it."""
    warnings.warn(NoRelevance(str(message)), stacklevel=2)
