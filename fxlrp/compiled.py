"""Compiled calls: forward and relevance pass as one graph by torch.compile, held against the eager ones."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.agreement import check_compiled
from fxlrp.attribution import Attribution
from fxlrp.capture.calls import Same
from fxlrp.capture.confine import alone
from fxlrp.engine.seeds import Contrast, Question, Target, by_classes, directions
from fxlrp.export.joint import trace_joint
from fxlrp.graph.plan import Plan
from fxlrp.plans import CHECKED
from fxlrp.recent import Recent
from fxlrp.rows import several_of
from fxlrp.targets import attribution_of

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer


def can_be_compiled(plan: Plan, questions: Sequence[Question]) -> bool:
    """Whether questions are of the kind that a joint graph answers: classes, of the explained output's own rows."""
    inputs_alone = not any(isinstance(i, str) for i in plan.readouts)
    by_class = all(q.position is None and by_classes(q.target) for q in questions)
    return inputs_alone and by_class and plan.scores_ndim == 2


def by_compiled_graph(
    explainer: Explainer,
    plan: Plan,
    tensors: list[Tensor],
    own: list[Tensor],
    args: tuple,
    kwargs: dict,
    question: Question,
) -> Attribution:
    """A call by the compiled graph, held against the eager one whenever something was compiled for it."""
    before = _graphs_compiled()
    attribution = _run_joint(explainer, plan, tensors, own, question.target, question.contrast)
    if _graphs_compiled() != before:

        def eager(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            given = iter(inputs)
            some, named = pytree.tree_map_only(Tensor, lambda _: next(given), (args, kwargs))
            asked = question if question.target is not None else replace(question, target=attribution.target)
            with torch.enable_grad():
                return several_of(explainer.explain(some, named, [asked], compiled=False)[0].relevance)

        check_compiled(several_of(attribution.relevance), eager, tensors)
    return attribution


def _run_joint(
    explainer: Explainer, plan: Plan, tensors: list[Tensor], own: list[Tensor], target: Target, contrast: Contrast
) -> Attribution:
    """A call by the compiled joint graph, which gives the model's outputs too unless they are here, its `own`."""
    assert not callable(target)
    how = explainer.compiling
    assert how is not None
    batch = plan.axes.count(tensors)
    given = torch.as_tensor(-1 if target is None else target, device=tensors[0].device)
    given = plan.axes.rows(own[plan.explained]).argmax(1) if own and target is None else given
    index = given.expand(batch, *given.shape) if given.ndim == 0 or isinstance(target, Sequence) else given
    several = index.shape[1] if index.ndim == 2 else 0
    joints, key = explainer.plans.found.joints, (Same(plan), contrast, several)
    known = joints.get(key)
    if known is None:
        with alone():
            known = joints.get(key)
            if known is None:
                joint = trace_joint(plan, explainer.rulebook, contrast, several=several, whole=not own)
                known = joints.set(key, (torch.compile(joint.traced, **how), Recent(CHECKED)))
    run, seen = known
    shapes = tuple(t.shape for t in tensors)
    with nullcontext() if seen.get(shapes) else alone(), torch.no_grad():  # new shapes may be compiled for
        out = run(*tensors, index.contiguous())
        if _records_cuda_graphs(how):  # the next call writes into the memory of these
            out = [t.clone() for t in out]
    seen.set(shapes, True)
    count = 0 if own else len(plan.capture.output_names)
    logits, found = out[count], out[count + 1 :]
    logits = plan.axes.rows(own[plan.logits]) if plan.logits < len(own) else logits
    if target is not None:
        directions(logits, target, contrast)  # says what does not fit
    asked = logits.argmax(1) if target is None and not own else index.long()
    return attribution_of(plan, tensors, own or out, logits, found, asked, {})


def _records_cuda_graphs(how: dict[str, Any]) -> bool:
    """Whether torch.compile was asked to record CUDA graphs."""
    return how.get("mode") in ("reduce-overhead", "max-autotune") or (how.get("options") or {}).get(
        "triton.cudagraphs", False
    )


def _graphs_compiled() -> int:
    """How many graphs torch.compile has handed to its backend in this process."""
    from torch._dynamo.utils import counters  # here, since it takes seconds to import

    return counters["stats"]["unique_graphs"]
