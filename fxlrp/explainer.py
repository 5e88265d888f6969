"""Explainer: a converted model, which returns attributions with its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxlrp.answers import ModelCall, answer, run_forward, with_questions
from fxlrp.attribution import Attribution
from fxlrp.capture.axes import Axes, Batch
from fxlrp.capture.calls import Call
from fxlrp.capture.confine import LOCK
from fxlrp.capture.objects import open_objects
from fxlrp.compiled import by_compiled_graph, can_be_compiled, compile, export, joint
from fxlrp.engine.seeds import Contrast, Given, Position, Question, Target
from fxlrp.errors import FxlrpError
from fxlrp.export.artifact import ExportedExplainer
from fxlrp.graph.outputs import Output
from fxlrp.graph.plan import Plan
from fxlrp.inside.conditions import answer_given
from fxlrp.inside.differentiable import explain_differentiably
from fxlrp.inside.methods import edges, parts, weights
from fxlrp.methods import DEFAULT
from fxlrp.plans import PLANS, Plans, Settings, has_no_modes
from fxlrp.recent import Latest, Recent
from fxlrp.reports.mass import Weighing
from fxlrp.reports.report import Report
from fxlrp.rows import asks_every_row, is_one_per_sample, one_by_one, row_by_row
from fxlrp.rules.registry import Rulebook, find_rulebook
from fxlrp.shifts import mean_over_shifts
from fxlrp.targets import completed, depends_on, refuse_ambiguous
from fxlrp.zero_maps import say_where_it_ended, say_which_rows_ended


class Explainer(nn.Module):
    """A model that also says what it looked at. Made by `fxlrp.convert`; shares the model's weights.

    Keeps one graph per signature of a call, for the `PLANS` = 32 signatures used last. A signature is the shapes
    (except the batch and, where the model allows, the length of texts), dtypes, devices and constants of a call.

    Threads may share an explainer and run the model beside it: see `fxlrp.capture.confine`. A copy captures anew.
    """

    compile = compile  # type: ignore[assignment]
    joint, export, parts, edges, weights = joint, export, parts, edges, weights

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        super().__init__()
        self.training = False  # as the model is; an exported one can't be told so
        self.model, self.settings = model, settings
        self.plans = Plans(model, settings)
        self._latest: Latest[Plan] = Latest()
        self.compiling: dict[str, Any] | None = None
        self._others: Recent[Explainer] = Recent(PLANS)

    @property
    def rulebook(self) -> Rulebook:
        """The rulebook that it explains by."""
        return self.settings.rulebook

    def of(self, output: Output) -> Explainer:
        """The explainer of another of the model's outputs, or of several. It is kept, with what it captures."""
        return self.other(output, self.settings.batch)

    def other(self, output: Output, batch: Batch) -> Explainer:
        """The explainer of another output, or one that takes the samples of a call to be elsewhere."""
        settings = replace(self.settings, output=output, batch=batch)
        if settings == self.settings:
            return self
        with LOCK:
            key = output, batch if batch is None else "as here"
            other = self._others.get(key)
            if other is None:
                other = self._others.set(key, Explainer(self.model, settings))
        return other

    def by(self, rules: str | Rulebook) -> Explainer:
        """The explainer of the same model by another rulebook, which uses the graphs that were captured here.

        Raises FxlrpError for an unknown rulebook.
        """
        other = Explainer(self.model, replace(self.settings, rulebook=find_rulebook(rules)))
        other.plans.cache = self.plans.before_rules()
        return other

    def forward(
        self,
        *args: Any,
        target: Target = None,
        contrast: Contrast = "default",
        position: Position = None,
        at: Sequence[str] = (),
        trace: bool = False,
        given: Given = None,
        at_once: int | None = None,
        **kwargs: Any,
    ) -> Attribution:
        """Explain a call of the model.

        target: None (the top class, or the one score of an output [B]), a class, a tensor of one class per sample [B],
        a float tensor of weights over the logits, or a callable on the model's output that returns a score per sample
        (its gradient is explained).  A list of K classes or a tensor [B, K] of them is explained over one forward pass,
        in relevance [B, K, …].
        contrast: what the target is set against: None, "others" (the mean of all other classes), "softmax" (all others
        by probability) or a class; "default" is the rulebook's own, and None of classes that do not exclude each other
        (a sigmoid each).  A target of weights or a callable states its own.
        position: which of a sequence of logits [B, T, K] is explained: one for all or a tensor of one per sample [B];
        None: the last one of a causal model.
        at: modules or graph nodes, as "layer3" or "blocks.5.attn", whose output's relevance is returned in `latent`.
        trace: also weigh the relevance at every node: see `Attribution.trace` and `Attribution.conservation`.
        given: what relevance has to pass inside, as {"layer3": [17, 42]}; a list of K such conditions gives [B, K, …]
        over one forward pass, at_once of them in a pass: see `fxlrp.inside.selection.selections`.

        Raises FxlrpError if the model can't be captured or the target does not fit.
        """
        question = Question(target, contrast, position, given, at_once)
        asked = {**vars(question), "at": at, "trace": trace}
        refuse_ambiguous(self.model, args, asked)
        if self.settings.differentiable:
            return explain_differentiably(self, args, kwargs, asked)
        args, kwargs = open_objects((args, kwargs))
        with torch.inference_mode(False), torch.enable_grad():
            if given is not None:
                if trace or self.settings.shifts > 1:
                    raise FxlrpError("given= is of one map as it is: leave out trace=True, and convert without shifts.")
                return with_questions(self.rulebook, self.explain(args, kwargs, [question], at), [question])[0]
            if trace:
                return self._traced(args, kwargs, question)
            return self._complete(args, kwargs, [question], at)[0]

    def _traced(self, args: tuple, kwargs: dict, question: Question) -> Attribution:
        """The answer to a question about a call, with the relevance at every node weighed."""
        call = self.call(args, kwargs)
        if (other := call.about(question.target)) is not self:
            return other._traced(args, kwargs, question)
        if call.batch > 1 and not call.plan.samples_separable:
            raise FxlrpError("The samples of this batch can't be told apart inside: weigh one sample at a time.")
        weighing = Weighing(call.plan.graph)
        with LOCK:  # an interpreter notes the node it is at where a trace in another thread would read it
            answers = self.answers(call, [question], run=weighing.run)
        answer = with_questions(self.rulebook, answers, [question])[0]
        return replace(answer, trace=call.plan.report.weighed(weighing.edges))

    def ask(self, questions: Sequence[Question], *args: Any, **kwargs: Any) -> list[Attribution]:
        """An attribution for each question about one call of the model, which runs forward once for all of them.

        Raises FxlrpError if the model can't be captured or a question does not fit its output.
        """
        args, kwargs = open_objects((args, kwargs))
        with torch.inference_mode(False), torch.enable_grad():
            return self._complete(args, kwargs, questions)

    def _complete(
        self, args: tuple, kwargs: dict, questions: Sequence[Question], at: Sequence[str] = ()
    ) -> list[Attribution]:
        """An attribution for each question, over shifts, with the question in it; warns of maps that are empty."""
        try:
            call = self.call(args, kwargs)
        except FxlrpError:  # there is no plan for all samples together, which may be explained one by one
            if self.settings.shifts > 1:
                raise
            return with_questions(self.rulebook, self.explain(args, kwargs, questions, at), questions)
        answers = self.answers(call, questions, at)
        if self.settings.shifts > 1:
            answers = mean_over_shifts(call, answers, questions)
        return with_questions(self.rulebook, say_where_it_ended(call, answers, questions), questions)

    def explain(
        self, args: tuple, kwargs: dict, questions: Sequence[Question], at: Sequence[str] = (), compiled: bool = True
    ) -> list[Attribution]:
        """An attribution for each question about the call of the model with these arguments: see `answers`."""
        try:
            call = self.call(args, kwargs)
        except FxlrpError:
            axes = self._axes_of_lists(args, kwargs)
            if axes is None:
                raise
            return one_by_one(self, axes, Call.of(args, kwargs), questions, at)
        return self.answers(call, questions, at, compiled=compiled)

    def answers(
        self,
        call: ModelCall,
        questions: Sequence[Question],
        at: Sequence[str] = (),
        run: Callable | None = None,
        compiled: bool = True,
    ) -> list[Attribution]:
        """An attribution for each question about a call.

        at: modules or nodes whose relevance is returned too.
        run: runs the graph, in the place of the fastest form of it.
        compiled: whether a compiled graph may answer, if there is one.
        """
        plan, args, kwargs = call.plan, call.args, call.kwargs
        if plan.is_for_one and call.batch > 1:
            return one_by_one(self, plan.axes, call, questions, at)
        by_rows = [run is None and asks_every_row(plan, q) for q in questions]
        if any(by_rows):
            return [
                say_which_rows_ended(call, *row_by_row(call, q, at)) if rows else self.answers(call, [q], at)[0]
                for q, rows in zip(questions, by_rows, strict=True)
            ]
        questions = [completed(q, plan, self.rulebook, call.tensors) for q in questions]
        if any(q.given is not None for q in questions):
            return [
                self.answers(call, [q], at, run)[0] if q.given is None else answer_given(call, q, at) for q in questions
            ]
        if compiled and self.compiling is not None and run is None and not at and can_be_compiled(plan, questions):
            own = call.outputs() if plan.capture.answers_apart else []
            return [by_compiled_graph(call, own, q) for q in questions]
        forward = run_forward(call, questions, at, run)
        of_targets = [self.of_target(plan, forward.model_out, q.target) for q in questions]
        if any(other is not self for other in of_targets):
            pairs = zip(of_targets, questions, strict=True)
            return [explainer.explain(args, kwargs, [q], at)[0] for explainer, q in pairs]
        return answer(call, forward, questions, one_at_a_time=run is not None or self.settings.checkpoint)

    def _axes_of_lists(self, args: tuple, kwargs: dict) -> Axes | None:
        """The sample axes of a call that has a list of one number per sample, such as lengths; None for other calls."""
        call = Call.of(args, kwargs)
        if not call.tensors:
            return None
        axes = self.plans.axes(self.plans.cache, call)[0]
        batch = axes.count(call.tensors)
        return axes if batch > 1 and any(is_one_per_sample(v, batch) for v in (*args, *kwargs.values())) else None

    def call(self, args: tuple, kwargs: dict) -> ModelCall:
        """The call of the model with these arguments, and the plan that holds for it, captured if there is none."""
        call = Call.of(args, kwargs)
        return ModelCall(args, kwargs, call.tensors, self, self._latest.set(self.plans.find(call)))

    def of_target(self, plan: Plan, model_out: Sequence[Tensor], target: Target) -> Explainer:
        """The explainer of the outputs that a target depends on, if it is a callable; else this one."""
        places = depends_on(target, plan, model_out) if callable(target) else ()
        if not places or places in ((plan.explained,), plan.together):
            return self
        return self.of(places if len(places) > 1 else places[0])

    @property
    def graph(self) -> fx.GraphModule:
        """The rewritten graph of this thread's latest call, if it made one, else of the latest there was (or of the
        example inputs): forward and relevance rules in one."""
        return self.latest.graph

    def report(self, *args: Any, target: Target = None, contrast: Contrast = "default", **kwargs: Any) -> Report:
        """A report of every node of that graph: its rule, and the line of the model that it comes from.

        Given a call to explain, also how much relevance arrives at each node and leaves it.
        """
        if not args and not kwargs:
            return self.latest.report
        trace = self(*args, target=target, contrast=contrast, trace=True, **kwargs).trace
        assert trace is not None
        return trace

    @property
    def latest(self) -> Plan:
        """The plan of this thread's latest call, if it made one, else of the latest there was.

        Raises FxlrpError where nothing is captured yet.
        """
        plan = self._latest.get()
        if plan is None:
            raise FxlrpError("Nothing is captured yet: call the explainer once, or give convert() example_inputs.")
        return plan


def convert(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    rules: str | Rulebook = DEFAULT,
    strict: bool = False,
    output: Output = None,
    checkpoint: bool = False,
    batch: Batch = "auto",
    read: str | Sequence[str] = (),
    seed: int = 0,
    shifts: int = 1,
    differentiable: bool = False,
    cache: str | Path | None = None,
) -> Explainer:
    """An explainer for `model`: call it like the model and get an `Attribution`.

    model: any nn.Module in eval mode; it is not modified, its weights are shared.
    example_inputs: what to capture it with now: a tensor, a tuple of positional or a dict of keyword arguments; without
    it, capture happens at the first call.
    rules: the name of a rulebook (see `fxlrp.rulebooks()`) or a Rulebook; "abslrp" is the published method.
    strict: refuse a model in which some op has no rule of its own.
    output: which of several outputs is explained: a key, a field or a place; without it the one named logits, else the
    first.
    checkpoint: keep little of the forward pass and run it again, segment by segment, when relevance comes by: memory
    grows with the root of the depth, time by one forward pass for each map.
    batch: the axis that counts the samples of a call, None for calls that are one sample, or a dict of the axis of each
    tensor by its name (what forward calls it, or "0" for the first positional one), None for one that all samples
    share; without it, the axes of the inputs whose entries each reach one row of the explained output (along its first
    axis, or its second).
    read: where relevance is read, if not at the inputs: names of modules, whose output is taken, of graph nodes, or of
    inputs, as forward calls them, which are explained alone then, masks and positions too.
    seed: which draw is explained of a model that draws random numbers in eval mode, such as noise or a latent code.
    shifts: how many maps the map of a picture is the mean of: its own and those of copies moved by some pixels, which
    removes the grid of a transformer's patches (4 suffice); `at` and `trace` are of the picture itself.
    differentiable: maps have a gradient by the weights, so that a loss can be put on them; they are of classes alone.
    cache: a folder in which captured graphs are kept, without weights, for other processes that explain this model: one
    whose code, attributes and weights' shapes are the same, by the same torch, Python and fxlrp.  A file that does not
    fit the model, or is damaged, is never run; a warning says so, and the model is captured anew.

    Raises FxlrpError for a model in training mode, one that can't be captured, or an unknown rulebook, output or read.

        explainer = fxlrp.convert(model)
        explainer(images).save("heatmap.png")
    """
    if not isinstance(model, nn.Module):
        raise FxlrpError(f"fxlrp.convert takes an nn.Module, not {type(model).__name__}.")
    if isinstance(model, Explainer | ExportedExplainer):
        raise FxlrpError("This is an explainer already; take the model it was made from.")
    if getattr(model, "training", False) and not has_no_modes(model):
        raise FxlrpError("The model is in training mode; call model.eval() first (dropout and batch norm change).")
    if type(shifts) is not int or shifts < 1 or type(seed) is not int:
        raise FxlrpError(f"shifts={shifts!r}, seed={seed!r}: give a number of maps, 1 for none, and a whole number.")
    names = (read,) if isinstance(read, str) else tuple(read)
    how = Settings(find_rulebook(rules), strict, output, checkpoint, batch, names, seed, shifts, differentiable)
    if cache is not None:
        from fxlrp.inputs.graph_store import GraphStore

        how = replace(how, store=GraphStore(cache))
    explainer = Explainer(model, how)
    if example_inputs is not None:
        named = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
        args = example_inputs if isinstance(example_inputs, tuple | list) else () if named else (example_inputs,)
        explainer.call(*open_objects((tuple(args), named)))
    return explainer
