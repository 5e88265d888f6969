"""Runs forward and relevance pass as one graph by torch.compile, checked against the eager ones.

`compile`, `joint` and `export` are methods of an explainer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.agreement import check_compiled
from fxlrp.answers import ModelCall, attribution_of
from fxlrp.attribution import Attribution
from fxlrp.capture.calls import Same
from fxlrp.capture.confine import alone
from fxlrp.capture.objects import open_objects
from fxlrp.engine.seeds import Contrast, Question, Target, by_classes, directions
from fxlrp.errors import FxlrpError
from fxlrp.export.joint import Joint, classes_asked, trace_joint
from fxlrp.export.regions import compiled_by_regions
from fxlrp.graph.plan import Plan
from fxlrp.plans import CHECKED, PLANS
from fxlrp.recent import Recent

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer


def compile(explainer: Explainer, /, mode: str | None = None, **options: Any) -> Explainer:
    """Run forward and relevance pass as one graph by torch.compile from now on; compiled at the next call.

    mode, options: as of torch.compile ("max-autotune", "reduce-overhead" for CUDA graphs, backend=…).  Only
    questions about classes are compiled; a target of weights or a callable, `at` and `trace` run as before.
    Returns itself.

    Blocks that the graph repeats are compiled once; other batch sizes and lengths from 2 on compile nothing anew,
    unless dynamic=False.  CUDA graphs are recorded of the whole, for each size.

    A graph that torch.compile would break into pieces is an error, unless fullgraph=False.  Whenever something was
    compiled, the call's relevance is computed eagerly as well: FxlrpError if they differ by more than rounding.
    """
    explainer.compiling = {"mode": mode, "fullgraph": True, **options}
    explainer.plans.cache = replace(explainer.plans.cache, compiled=Recent(PLANS))
    return explainer


def joint(
    explainer: Explainer,
    /,
    *args: Any,
    target: Target = None,
    contrast: Contrast = "default",
    fold: bool = True,
    **kwargs: Any,
) -> Joint:
    """Forward and relevance pass of a call as one flat ATen graph: (*inputs, target) → (logits, *relevance).

    Without a call, of the latest one (or the example inputs).  fold: see `fxlrp.export.joint.trace_joint`.

    Raises FxlrpError if the samples of a batch have to be explained one by one, or target is none of classes.
    """
    if args or kwargs:
        with torch.inference_mode(False), torch.enable_grad():
            explainer.call(*open_objects((args, kwargs)))
    plan = explainer.latest
    if explainer.settings.shifts > 1:
        raise FxlrpError("A joint graph is of one picture: convert without shifts, and take the mean of its maps.")
    several = classes_asked(plan, target)
    contrast = explainer.rulebook.resolve(contrast, plan.independent)
    return trace_joint(plan, explainer.rulebook, contrast, several=several, fold=fold)


def export(explainer: Explainer, path: str | Path, *, contrast: Contrast = "default", aoti: bool = False) -> Path:
    """Save forward and relevance pass as a .pt2 (or .onnx) that needs no fxlrp: see `fxlrp.export.artifact`."""
    from fxlrp.export.artifact import export

    return export(explainer, path, contrast=contrast, aoti=aoti)


def can_be_compiled(plan: Plan, questions: Sequence[Question]) -> bool:
    """Whether a joint graph can answer these questions: they ask for classes of an output [batch, classes], and
    relevance is read only at inputs."""
    inputs_alone = not any(isinstance(i, str) for i in plan.readouts)
    by_class = all(q.position is None and by_classes(q.target) for q in questions)
    return inputs_alone and by_class and len(plan.scores_shape) == 2


def by_compiled_graph(call: ModelCall, own: list[Tensor], question: Question) -> Attribution:
    """Explains a call by the compiled graph, and checks it against the eager one whenever a graph was compiled."""
    compiled_before = _graphs_compiled()
    attribution = _run_joint(call, own, question.target, question.contrast)
    if _graphs_compiled() != compiled_before:

        def eager(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
            tensor_iterator = iter(inputs)
            positional, named = pytree.tree_map_only(Tensor, lambda _: next(tensor_iterator), (call.args, call.kwargs))
            asked_question = question if question.target is not None else replace(question, target=attribution.target)
            with torch.enable_grad():
                return call.explainer.explain(positional, named, [asked_question], compiled=False)[0].each

        check_compiled(attribution.each, eager, call.tensors)
    return attribution


def _run_joint(call: ModelCall, own: list[Tensor], target: Target, contrast: Contrast) -> Attribution:
    """Explains a call by the compiled joint graph, which also computes the model's outputs unless they are given as
    `own`."""
    assert not callable(target)
    explainer, plan, tensors, batch = call.explainer, call.plan, call.tensors, call.batch
    options = explainer.compiling
    assert options is not None
    classes = torch.as_tensor(-1 if target is None else target, device=tensors[0].device)
    classes = plan.axes.rows(own[plan.explained]).argmax(1) if own and target is None else classes
    index = classes.expand(batch, *classes.shape) if classes.ndim == 0 or isinstance(target, Sequence) else classes
    several = index.shape[1] if index.ndim == 2 else 0
    kept, key = explainer.plans.cache.compiled, (Same(plan), contrast, several)
    compiled = kept.get(key)
    if compiled is None:
        with alone():
            compiled = kept.get(key)
            if compiled is None:
                joint = trace_joint(plan, explainer.rulebook, contrast, several=several, whole=not own)
                compiled = kept.set(key, (_compiled(joint.traced, options), Recent(CHECKED)))
    run, seen = compiled
    shapes = tuple(t.shape for t in tensors)
    with nullcontext() if seen.get(shapes) else alone(), torch.no_grad():  # new shapes may trigger a compilation
        out = run(*tensors, index.contiguous())
        if _records_cuda_graphs(options):  # the next call overwrites these outputs
            out = [t.clone() for t in out]
    seen.set(shapes, True)
    count = 0 if own else len(plan.capture.output_names)
    logits, maps = out[count], out[count + 1 :]
    logits = plan.axes.rows(own[plan.logits]) if plan.logits < len(own) else logits
    if target is not None:
        directions(logits, target, contrast)  # raises FxlrpError if the target does not fit
    asked = logits.argmax(1) if target is None and not own else index.long()
    return attribution_of(call, own or out, logits, maps, asked, {})


def _compiled(graph: fx.GraphModule, options: dict[str, Any]) -> Callable[..., Any]:
    """Compiles a joint graph; as a whole if CUDA graphs record it, which are of one compiled function."""
    if _records_cuda_graphs(options):
        return torch.compile(graph, **options)
    return compiled_by_regions(graph, **options)


def _records_cuda_graphs(options: dict[str, Any]) -> bool:
    """Whether torch.compile was asked to record CUDA graphs."""
    return options.get("mode") in ("reduce-overhead", "max-autotune") or (options.get("options") or {}).get(
        "triton.cudagraphs", False
    )


def _graphs_compiled() -> int:
    """The number of graphs that torch.compile has handed to its backend in this process."""
    from torch._dynamo.utils import counters  # imported here because it takes seconds

    return counters["stats"]["unique_graphs"]
