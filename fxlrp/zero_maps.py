"""Zero maps: an attribution that is zero although the score is not says where relevance ended, and why; one that is
not finite says what else is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fxlrp.answers import ModelCall
from fxlrp.attribution import Attribution
from fxlrp.capture.confine import LOCK
from fxlrp.engine.seeds import Question
from fxlrp.errors import FxlrpError
from fxlrp.reports.ended import find_end, not_finite, warn, zero_maps
from fxlrp.reports.mass import Weighing
from fxlrp.rows import sample_of


def say_where_it_ended(
    call: ModelCall, answers: Sequence[Attribution], questions: Sequence[Question]
) -> list[Attribution]:
    """The same answers; those with a map of zeros warn, and say in `ended`, where relevance ended and why."""
    return [_with_end(call, a, question) for a, question in zip(answers, questions, strict=True)]


def _with_end(call: ModelCall, a: Attribution, question: Question) -> Attribution:
    """One answer, with its end if it has one."""
    explainer, plan, batch = call.explainer, call.plan, call.batch
    at_inputs = dict(zip(plan.capture.names, plan.axes.inputs, strict=True))
    columns = a.target.shape[1] if a.target is not None and a.target.ndim == 2 else 1
    if message := not_finite(a):
        warn(message)
        return a
    zero = zero_maps(a.each, [at_inputs.get(name, 0) for name in a.names], batch, columns)
    if not zero:
        return a
    outputs = call.outputs() if callable(question.target) else []
    about = explainer.of_target(plan, outputs, question.target)
    if about is not explainer:  # a callable that depends on other outputs
        return _with_end(about.call(call.args, call.kwargs), a, question)
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
        return a
    ended = find_end(one.plan.report.weighed(weighing.edges), [i for i, _ in zero])
    if ended is None:
        return a
    warn(ended)
    return replace(a, ended=ended)
