"""Relevance as an objective: maps that can be differentiated by the model's weights, and by its inputs.

The graph that an explainer runs has relevance rules in the place of derivatives, so that what a map depends on can't be
found by going back through it.  Traced with its relevance pass as one flat graph of plain ops, it can: by autograd.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from fxlrp.answers import attribution_of
from fxlrp.attribution import Attribution
from fxlrp.capture.calls import Same
from fxlrp.capture.confine import alone
from fxlrp.capture.objects import open_objects
from fxlrp.engine.seeds import directions
from fxlrp.errors import FxlrpError
from fxlrp.export.joint import classes_asked, trace_joint
from fxlrp.graph.plan import Plan
from fxlrp.nodes import copied

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer

aten = torch.ops.aten


def explain_differentiably(explainer: Explainer, args: tuple, kwargs: dict, question: Mapping[str, Any]) -> Attribution:
    """The answer to a question about classes, with relevance and logits that have a gradient.

    Raises FxlrpError for other questions, and for a call whose samples have to be explained one by one.
    """
    if other := [name for name in ("at", "trace", "given", "position") if question[name] not in ((), None, False)]:
        raise FxlrpError(f"{other[0]}=… can't be asked of maps that are differentiable; convert without it.")
    if explainer.settings.shifts > 1:
        raise FxlrpError("A map that is differentiable is of one picture: convert without shifts.")
    args, kwargs = open_objects((args, kwargs))
    with torch.inference_mode(False), torch.enable_grad():
        call = explainer.call(args, kwargs)
        plan, tensors, batch = call.plan, call.tensors, call.batch
        target, contrast = question["target"], explainer.rulebook.resolve(question["contrast"], plan.independent)
        several = classes_asked(plan, target)
        if plan.is_for_one and batch > 1:
            raise FxlrpError("The samples of this batch can't be told apart inside: explain one sample at a time.")
        if plan.random:
            raise FxlrpError("The model draws random numbers, and there is no one graph of its relevance pass.")
        joints, key = explainer.plans.cache.differentiable, (Same(plan), contrast, several)
        if (joint := joints.get(key)) is None:
            with alone(), sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
                graph = without_kernels(plan)
                joint = trace_joint(plan, explainer.rulebook, contrast, several=several, fold=False, graph=graph)
                divide_by_no_zero(joint.traced)
                joints.set(key, joint)
        classes = torch.as_tensor(-1 if target is None else target, device=tensors[0].device)
        per_sample = classes.ndim == 0 or isinstance(target, Sequence)
        index = classes.expand(batch, *classes.shape) if per_sample else classes
        with plan.in_its_types():
            logits, *maps = joint(*tensors, index.contiguous())
        directions(logits, target, contrast)  # raises FxlrpError if the target does not fit
        asked: Tensor = logits.detach().argmax(1) if target is None else index.long()
        return attribution_of(call, call.outputs(), logits, maps, asked, {})


def without_kernels(plan: Plan) -> fx.GraphModule:
    """The plan's graph with each rule as its formula: kernels use what has no second derivative."""
    copy, _ = copied(plan.graph)
    for node in copy.graph.nodes:
        node.target = getattr(node.target, "plain", node.target)
    copy.recompile()
    return copy


def divide_by_no_zero(gm: fx.GraphModule) -> None:
    """Divides by 1 where a rule would by 0: it masks what comes of that, but autograd multiplies it by infinity."""
    for node in gm.graph.find_nodes(op="call_function", target=aten.div.Tensor):
        by = node.args[1]
        if isinstance(by, fx.Node):
            with gm.graph.inserting_before(node):
                none = gm.graph.call_function(aten.eq.Scalar, (by, 0))
                safe = gm.graph.call_function(aten.masked_fill.Scalar, (by, none, 1))
            node.args = (node.args[0], safe)
    gm.recompile()
