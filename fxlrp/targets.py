"""Turns a question's target (classes, weights or a callable) into directions over a call's logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.agreement import share_apart
from fxlrp.engine.seeds import Question, Target, at_position, by_classes, class_numbers, directions
from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.nodes import target_of
from fxlrp.relevance_pass import Direction
from fxlrp.rules.registry import Rulebook

ASKED = {
    "target": None,
    "contrast": "default",
    "position": None,
    "at": (),
    "trace": False,
    "given": None,
    "at_once": None,
}
"""The keywords of a question, and their defaults."""


def refuse_ambiguous(model: nn.Module, args: tuple, question: Mapping[str, object]) -> None:
    """Raises FxlrpError for a question's keyword that is also an argument of forward, unless that is positional."""
    try:
        parameters = list(inspect.signature(model.forward).parameters)[len(args) :]
    except (TypeError, ValueError):  # a traced module
        return
    for name in parameters:
        if name in question and question[name] is not ASKED[name]:
            raise FxlrpError(
                f"The model's forward has an argument {name!r} of its own, which an explainer takes for what is asked: "
                f"give the model's by its place, or ask explainer.ask([fxlrp.Question(target=…)], …, {name}=…)[0], "
                "whose other arguments all go to the model."
            )


def completed(question: Question, plan: Plan, rulebook: Rulebook, tensors: Sequence[Tensor]) -> Question:
    """The question, with what it leaves open: the default contrast, and the last token as position for a causal
    model if no sample ends in padding."""
    question = replace(question, contrast=rulebook.resolve(question.contrast, plan.independent))
    sequence = len(plan.scores_shape) == 3 and by_classes(question.target)
    if not sequence or question.position is not None or not plan.causal:
        return question
    masks = [
        (t, axis)
        for i, (t, axis) in enumerate(zip(tensors, plan.axes.inputs, strict=True))
        if axis is not None and i not in plan.readouts and t.ndim == 2 and not t.is_floating_point()
    ]
    padded = any(bool((t == 0).select(1 - axis, -1).any()) for t, axis in masks)
    return question if padded else replace(question, position=-1)


def of_sample(asked: Any, i: int, batch: int) -> Any:
    """The entry of `asked` for sample i if it is a tensor with one entry per sample; else `asked`."""
    return asked[i : i + 1] if isinstance(asked, Tensor) and asked.ndim and len(asked) == batch else asked


def asked_directions(
    plan: Plan, out: Sequence[Tensor], model_out: Sequence[Tensor], question: Question, batch: int
) -> tuple[list[Direction], Tensor | None]:
    """The directions over the logits in `out` that a question asks about, and its class indices or None.

    model_out: the model's own outputs for the call."""
    target = question.target
    if callable(target):
        outputs = [o.detach() for o in model_out[: len(plan.capture.output_names)]]
        target = _gradient_of(target, plan, outputs, model_out[plan.logits].detach())
    rows = plan.axes.rows(out[plan.logits])
    if isinstance(target, Tensor) and target.is_floating_point() and target.shape == out[plan.logits].shape:
        target = plan.axes.rows(target)  # weights of the output as the model gives it
    logits = at_position(rows, question.position)
    default_class = target is None or (by_classes(target) and not class_numbers(target).any())
    if logits.ndim == 1 and len(logits) == batch and default_class:  # each sample's score is its only class
        first = torch.zeros_like(logits, dtype=torch.long)
        return [Direction(logits, torch.ones_like(logits), None)], first
    if target is None and model_out is not out and logits.ndim == 2:
        target = at_position(plan.axes.rows(model_out[plan.explained]), question.position).argmax(1)
    weights, index = directions(logits, target, question.contrast)
    return [Direction(logits, *sides) for sides in weights], index


def _answer(score: Callable[[Any], Tensor], plan: Plan, outputs: list[Tensor]) -> object:
    """Calls a callable target on the model's outputs.  Raises FxlrpError for any exception of it."""
    try:
        return score(plan.capture.unflatten(tuple(outputs)))
    except Exception as error:
        shape = tuple(outputs[plan.explained].shape)
        raise FxlrpError(
            f"The target callable raised {type(error).__name__}: {error}, for an output of shape {shape}.  Samples "
            "that can't be told apart inside are explained one by one, and it is given the output of each; "
            "convert(…, batch=None) gives it all of a call."
        ) from error


def is_about_all(target: Target, output: object) -> bool:
    """Whether a target is a callable that returns one number for the whole batch."""
    if not callable(target):
        return False
    try:
        answer = target(output)
    except Exception:  # `_answer` reports it later
        return False
    return isinstance(answer, Tensor) and not answer.ndim


def depends_on(score: Callable[[Any], Tensor], plan: Plan, model_out: Sequence[Tensor]) -> tuple[int, ...]:
    """The indices of the float outputs that a callable target has a gradient for."""
    outputs = [o.detach() for o in model_out[: len(plan.capture.output_names)]]
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
    """Turns a callable target into weights: ∂ Σ score/∂ logits; returns an answer without gradient (classes, weights)
    unchanged."""
    with torch.enable_grad():
        value = logits = logits.requires_grad_()
        for node in plan.head:
            value = target_of(node)(value, *node.args[1:], **node.kwargs)
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
        per_sample = not plan.axes.whole and answer.ndim == 1 and 1 < len(answer) == len(rows)
        gradient = torch.autograd.grad(answer.sum(), logits, retain_graph=per_sample)[0]
        if per_sample:
            weights = torch.arange(1, len(rows) + 1).to(answer)
            weighted = plan.axes.rows(torch.autograd.grad(answer @ weights, logits)[0])
            expected = plan.axes.rows(gradient) * weights.to(gradient).view(-1, *[1] * (rows.ndim - 1))
            if share_apart(weighted, expected) > 1e-3:
                raise FxlrpError(
                    "The target callable's score of a sample depends on other samples: return the score of one of "
                    "them, as lambda out: score(out)[0] does."
                )
    return gradient
