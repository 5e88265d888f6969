"""Targets: what a question asks of a call's logits, be it by classes, weights or a callable, and its answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.agreement import share_apart
from fxlrp.attribution import Attribution
from fxlrp.engine.seeds import Question, Target, at_position, by_classes, directions
from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.relevance_pass import Direction

ASKED = {"target": None, "contrast": "default", "position": None, "at": (), "trace": False}
"""The keywords of a question, and what they are where nothing is asked."""


def refuse_ambiguous(model: nn.Module, args: tuple, question: Mapping[str, Any]) -> None:
    """Raises FxlrpError for a keyword of a question that the model's forward has too, unless given by place."""
    try:
        known = list(inspect.signature(model.forward).parameters)[len(args) :]
    except (TypeError, ValueError):  # of a traced module
        return
    for name in known:
        if name in question and question[name] is not ASKED[name]:
            raise FxlrpError(
                f"The model's forward has an argument {name!r} of its own, which an explainer takes for what is asked: "
                f"give the model's by its place, or ask explainer.ask([fxlrp.Question(target=…)], …, {name}=…)[0], "
                "whose other arguments all go to the model."
            )


def at_the_end(plan: Plan, tensors: Sequence[Tensor], question: Question) -> Question:
    """The same question, about the last token of a causal model if it says of none, and no sample ends in padding."""
    if plan.scores_ndim != 3 or question.position is not None or not by_classes(question.target) or not plan.causal:
        return question
    masks = [
        (t, axis)
        for i, (t, axis) in enumerate(zip(tensors, plan.axes.inputs, strict=True))
        if axis is not None and i not in plan.readouts and t.ndim == 2 and not t.is_floating_point()
    ]
    padded = any(bool((t == 0).select(1 - axis, -1).any()) for t, axis in masks)
    return question if padded else replace(question, position=-1)


def of_sample(asked: Any, i: int, batch: int) -> Any:
    """What is asked of sample i, where it is a tensor of something for each."""
    return asked[i : i + 1] if isinstance(asked, Tensor) and asked.ndim and len(asked) == batch else asked


def asked_directions(
    plan: Plan, out: Sequence[Tensor], said: Sequence[Tensor], question: Question, batch: int
) -> tuple[list[Direction], Tensor | None]:
    """What a question asks of the logits among `out`, which the model has said, and the classes it asks about, if
    it does."""
    target = question.target
    if callable(target):
        outputs = [o.detach() for o in said[: len(plan.capture.output_names)]]
        target = _gradient_of(target, plan, outputs, said[plan.logits].detach())
    rows = plan.axes.rows(out[plan.logits])
    if isinstance(target, Tensor) and target.is_floating_point() and target.shape == out[plan.logits].shape:
        target = plan.axes.rows(target)  # weights of the output as the model gives it
    logits = at_position(rows, question.position)
    only = target is None or (by_classes(target) and not torch.as_tensor(target).any())
    if logits.ndim == 1 and len(logits) == batch and only:  # the score of each sample is its only class
        one = torch.zeros_like(logits, dtype=torch.long)
        return [Direction(logits, torch.ones_like(logits), None)], one
    if target is None and said is not out and logits.ndim == 2:
        target = at_position(plan.axes.rows(said[plan.explained]), question.position).argmax(1)
    asked, index = directions(logits, target, question.contrast)
    return [Direction(logits, *sides) for sides in asked], index


def _answer(score: Callable[[Any], Tensor], plan: Plan, outputs: list[Tensor]) -> Any:
    """What a callable target says of the model's outputs.  Raises FxlrpError for whatever it raises."""
    try:
        return score(plan.capture.unflatten(tuple(outputs)))
    except Exception as error:
        shape = tuple(outputs[plan.explained].shape)
        raise FxlrpError(
            f"The target callable raised {type(error).__name__}: {error}, for an output of shape {shape}.  Samples "
            "that can't be told apart inside are explained one by one, and it is given the output of each; "
            "convert(…, batch=None) gives it all of a call."
        ) from error


def is_about_all(target: Target, output: Any) -> bool:
    """Whether a target is a callable that returns one number for all of a batch."""
    if not callable(target):
        return False
    try:
        answer = target(output)
    except Exception:  # which is told where it is asked for the answer
        return False
    return isinstance(answer, Tensor) and not answer.ndim


def depends_on(score: Callable[[Any], Tensor], plan: Plan, said: Sequence[Tensor]) -> tuple[int, ...]:
    """The places of the float outputs that a callable target has a gradient at."""
    outputs = [o.detach() for o in said[: len(plan.capture.output_names)]]
    floats = [i for i, o in enumerate(outputs) if o.is_floating_point()]
    if len(floats) < 2:
        return ()
    for i in floats:
        outputs[i].requires_grad_()
    with torch.enable_grad():
        answer = _answer(score, plan, outputs)
        if not isinstance(answer, Tensor) or not answer.requires_grad:
            return ()
        grads = torch.autograd.grad(answer.sum(), [outputs[i] for i in floats], allow_unused=True)
    return tuple(i for i, g in zip(floats, grads, strict=True) if g is not None)


def _gradient_of(score: Callable[[Any], Tensor], plan: Plan, outputs: list[Tensor], logits: Tensor) -> Tensor:
    """What a callable target says about the model's output, as a target: ∂ Σ score/∂ logits; what does not depend on
    the logits (classes, weights) as it stands."""
    with torch.enable_grad():
        value = logits = logits.requires_grad_()
        for node in plan.head:
            value = node.target(value, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        places = plan.together or (plan.explained,)
        rows = value.split([outputs[i][0].numel() for i in places], 1) if plan.together else [value]
        for i, row in zip(places, rows, strict=True):
            outputs[i] = row.to(outputs[i].dtype).reshape(outputs[i].shape)
        answer = _answer(score, plan, outputs)
        if not isinstance(answer, Tensor):
            raise FxlrpError(f"The target callable must return a tensor, not {type(answer).__name__}.")
        if not answer.requires_grad:
            if answer.is_floating_point() and answer.shape != logits.shape:
                raise FxlrpError("The target depends on no output of the model that could be explained.")
            return answer
        rows = plan.axes.rows(logits)
        apart = not plan.axes.whole and answer.ndim == 1 and 1 < len(answer) == len(rows)
        asked = torch.autograd.grad(answer.sum(), logits, retain_graph=apart)[0]
        if apart:
            weights = torch.arange(1, len(rows) + 1).to(answer)
            other = plan.axes.rows(torch.autograd.grad(answer @ weights, logits)[0])
            own = plan.axes.rows(asked) * weights.to(asked).view(-1, *[1] * (rows.ndim - 1))
            if share_apart(other, own) > 1e-3:
                raise FxlrpError(
                    "The target callable's score of a sample depends on other samples: return the score of one of "
                    "them, as lambda out: score(out)[0] does."
                )
    return asked


def attribution_of(
    plan: Plan,
    tensors: Sequence[Tensor],
    out: Sequence[Tensor],
    logits: Tensor,
    relevance: Sequence[Tensor],
    index: Tensor | None,
    latent: dict[str, Tensor],
) -> Attribution:
    """What is returned: relevance of each explained input, beside the model's own output, the first of `out`."""
    return Attribution(
        relevance[0] if len(relevance) == 1 else tuple(relevance),
        plan.capture.unflatten(tuple(o.detach() for o in out[: len(plan.capture.output_names)])),
        logits,
        index,
        tuple(f"read[{i!r}]" if isinstance(i, str) else plan.capture.names[i] for i in plan.readouts),
        tuple(out[at].detach() if isinstance(i, str) else tensors[i] for i, (at, *_) in plan.readouts.items()),
        latent,
    )
