"""Explainer: a converted model, which returns attributions with its output."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxlrp.agreement import check_compiled, no_fast_attention, rounding, share_apart
from fxlrp.attribution import Attribution
from fxlrp.axes import Axes, Batch
from fxlrp.capture import (
    Capture,
    Same,
    Way,
    answer,
    capture,
    equal,
    names_of,
    open_output,
    parameters_of,
    signature,
    split_tensors,
)
from fxlrp.confine import LOCK, alone
from fxlrp.ended import find_end, warn, zero_maps
from fxlrp.engine.relevance_pass import Direction, maps_at_once, propagate
from fxlrp.engine.seeds import Contrast, Position, Question, Target, at_position, by_classes, directions
from fxlrp.errors import FxlrpError
from fxlrp.graphs import Plan
from fxlrp.joint import Joint, trace_joint
from fxlrp.mass import Weighing
from fxlrp.objects import open_objects
from fxlrp.outputs import Output
from fxlrp.precision import casts_made_again, no_autocast, widened
from fxlrp.recent import Recent
from fxlrp.report import Report
from fxlrp.rewrite import rewrite
from fxlrp.rules.registry import Rulebook, find_rulebook
from fxlrp.samples import find_samples, spelled
from fxlrp.state import Place, State, drawing, undisturbed

PLANS = 32
"""How many plans, each a graph for calls of one signature, an explainer keeps."""
CHECKED = 1024
"""How many shapes of calls it remembers the plan of, which was checked against the model's own output."""


EACH = "each"
"""Stands for the shapes of calls of which every length has a graph of its own."""


@dataclass(frozen=True)
class _Known:
    """What an explainer has found out about a model in this `state`."""

    state: State | None = None
    restless: set[Place] = field(default_factory=set)  # attributes that running the model changes
    plans: Recent = field(default_factory=lambda: Recent(PLANS))
    checked: Recent = field(default_factory=lambda: Recent(CHECKED))  # shapes of a call → the key of its plan
    axes: Recent = field(default_factory=lambda: Recent(PLANS))  # kinds of calls → where their samples are
    first: Recent = field(default_factory=lambda: Recent(PLANS))  # calls but for their lengths → shapes of the first
    joints: Recent = field(default_factory=lambda: Recent(PLANS))

    def plan(self, *keys: Any) -> Plan | None:
        """The plan under the first of these keys that has one."""
        return next((plan for key in keys if (plan := self.plans.get(key))), None)


class _Latest(threading.local):
    """The plan of this thread's latest call."""

    plan: Plan | None = None

    def __reduce__(self) -> tuple:
        return _Latest, ()


class Explainer(nn.Module):
    """A model that also says what it looked at.  Made by `fxlrp.convert`; shares the model's weights.

    One graph is kept per signature of a call (shapes but for the batch and, where the model allows, the length of
    texts; dtypes, devices, constants), for the `PLANS` = 32 signatures used last.

    Threads may share an explainer, and the model be run beside it: see `fxlrp.confine`.  A copy of it captures anew.
    """

    def __init__(
        self,
        model: nn.Module,
        rulebook: Rulebook,
        strict: bool,
        output: Output = None,
        checkpoint: bool = False,
        batch: Batch = "auto",
        read: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.training = False  # as the model is; an exported one can't be told so
        self.output = output
        self.batch = batch
        self.read = read
        self.seed = seed
        self.checkpoint = checkpoint
        self.model = model
        self.rulebook = rulebook
        self.strict = strict
        self._found = _Known()
        self._latest_here = _Latest()
        self._latest: Plan | None = None  # of any thread
        self._compiling: dict[str, Any] | None = None
        self._others = Recent(PLANS)

    def __getstate__(self) -> dict[str, Any]:
        new = {"_found": _Known(), "_latest_here": _Latest(), "_latest": None, "_others": Recent(PLANS)}
        return {**self.__dict__, **new}

    def of(self, output: Output) -> Explainer:
        """The same for another of the model's outputs, or for several; it is kept, with what it captures."""
        return self._other(output, self.batch)

    def _other(self, output: Output, batch: Batch) -> Explainer:
        if (output, batch) == (self.output, self.batch):
            return self
        with LOCK:
            key = output, batch if batch is None else "as here"
            other = self._others.get(key)
            if other is None:
                how = (self.rulebook, self.strict, output, self.checkpoint, batch, self.read, self.seed)
                other = Explainer(self.model, *how)
                self._others.set(key, other)
        return other

    def forward(
        self,
        *args: Any,
        target: Target = None,
        contrast: Contrast = "default",
        position: Position = None,
        at: Sequence[str] = (),
        trace: bool = False,
        **kwargs: Any,
    ) -> Attribution:
        """Explain a call of the model.

        target: None (the top class, or the one score of an output [B]), a class, a tensor of one class per sample [B],
        a float tensor of weights over the logits, or a callable on the model's output that returns a score per sample
        (its gradient is explained).  A list of K classes or a tensor [B, K] of them is explained over one forward pass,
        in relevance [B, K, …].
        contrast: what the target is set against: None, "others" (the mean of all other classes), "softmax" (all others
        by probability) or a class; "default" is what the rulebook was found best with.  A target of weights or a
        callable states its own.
        position: which of a sequence of logits [B, T, K] is explained: one for all or a tensor of one per sample [B];
        None: the last one of a causal model.
        at: modules or graph nodes, as "layer3" or "blocks.5.attn", whose output's relevance is returned in `latent`.
        trace: also weigh the relevance at every node: see `Attribution.trace` and `Attribution.conservation`.

        Raises FxlrpError if the model can't be captured or the target does not fit.
        """
        question = {"target": target, "contrast": contrast, "position": position, "at": at, "trace": trace}
        refuse_ambiguous(self.model, args, question)
        questions = [Question(target, contrast, position)]
        args, kwargs = open_objects((args, kwargs))
        with torch.inference_mode(False), torch.enable_grad():
            if not trace:
                return self._say_ends(self._explain(args, kwargs, questions, at), questions, args, kwargs)[0]
            plan, tensors = self._plan(args, kwargs)
            about = self._about(plan, self._outputs(args, kwargs), target) if callable(target) else self
            if about is not self:
                return about(*args, target=target, position=position, trace=True, **kwargs)
            if plan.axes.count(tensors) > 1 and not plan.apart:
                raise FxlrpError("The samples of this batch can't be told apart inside: weigh one sample at a time.")
            weighing = Weighing(plan.graph)
            with LOCK:  # an interpreter notes the node it is at where a trace in another thread would read it
                attribution = self._explain(args, kwargs, questions, (), weighing.run)[0]
        return replace(attribution, trace=plan.report.weighed(weighing.edges))

    def ask(self, questions: Sequence[Question], *args: Any, **kwargs: Any) -> list[Attribution]:
        """An attribution for each question about one call of the model, which runs forward once for all of them.

        Raises FxlrpError if the model can't be captured or a question does not fit its output.
        """
        args, kwargs = open_objects((args, kwargs))
        with torch.inference_mode(False), torch.enable_grad():
            return self._say_ends(self._explain(args, kwargs, questions), questions, args, kwargs)

    def _say_ends(
        self, answers: list[Attribution], questions: Sequence[Question], args: tuple, kwargs: dict
    ) -> list[Attribution]:
        """The same, having said of maps that are zero, though the score is not, where relevance ended and why."""
        try:
            plan, tensors = self._plan(args, kwargs)
        except FxlrpError:  # there is none for all samples together, which were explained one by one
            return answers
        batch = plan.axes.count(tensors)
        at_inputs = dict(zip(plan.capture.names, plan.axes.inputs, strict=True))
        for at, (a, question) in enumerate(zip(answers, questions, strict=True)):
            several = a.target.shape[1] if a.target is not None and a.target.ndim == 2 else 1
            axes = [at_inputs.get(name, 0) for name in a.names]
            zero = zero_maps(_several(a.relevance), axes, batch, several)
            if not zero:
                continue
            said = self._outputs(args, kwargs) if callable(question.target) else []
            about = self._about(plan, said, question.target)
            if about is not self:  # it is other outputs that the callable is about
                answers[at] = about._say_ends([a], [question], args, kwargs)[0]
                continue
            i, k = zero[0]
            some, named, asked = _sample(plan.axes, (args, kwargs), [question], i, batch)
            if a.target is not None and len(a.target) == batch:
                asked = replace(asked, target=int(a.target.reshape(batch, several)[i, k]))
            elif a.target is not None:  # of the rows of one sample, the first
                asked = replace(asked, target=int(a.target[0]), position=0)
            try:
                with LOCK:
                    one, _ = self._plan(some, named)
                    weighing = Weighing(one.graph)
                    self._explain(some, named, [asked], (), weighing.run)
            except FxlrpError:  # a callable that is about another sample
                continue
            if ended := find_end(one.report.weighed(weighing.edges), [i for i, _ in zero]):
                answers[at] = replace(a, ended=ended)
                warn(ended)
        return answers

    def _explain(
        self,
        args: tuple,
        kwargs: dict,
        questions: Sequence[Question],
        at: Sequence[str] = (),
        run: Callable | None = None,
        compiled: bool = True,
    ) -> list[Attribution]:
        try:
            plan, tensors = self._plan(args, kwargs)
        except FxlrpError:
            tensors, _ = split_tensors(args, kwargs)
            axes = self._axes(self._found, args, kwargs, tensors)[0] if tensors else Axes(())
            batch = axes.count(tensors)
            listed = batch > 1 and any(_one_each(v, batch) for v in (*args, *kwargs.values()))
            if not listed or run is not None:
                raise
            return self._one_by_one(axes, batch, args, kwargs, questions, at)
        batch = plan.axes.count(tensors)
        if batch > 1 and (plan.capture.way is Way.THIS_INPUT or not plan.apart):
            return self._one_by_one(plan.axes, batch, args, kwargs, questions, at)
        if plan.axes.output is None and plan.scores_ndim == 3 and run is None:
            open_ = [q.position is None and by_classes(q.target) for q in questions]
            if any(open_):
                return [
                    self._row_by_row(plan, args, kwargs, q, at) if rows else self._explain(args, kwargs, [q], at)[0]
                    for q, rows in zip(questions, open_, strict=True)
                ]
        if plan.scores_ndim == 3:
            questions = [_at_the_end(plan, tensors, q) for q in questions]
        questions = [replace(q, contrast=self.rulebook.resolve(q.contrast)) for q in questions]
        plain = plan.scores_ndim == 2 and all(q.position is None and by_classes(q.target) for q in questions)
        plain &= not any(isinstance(i, str) for i in plan.readouts)
        if compiled and self._compiling is not None and not at and run is None and plain:
            own = self._outputs(args, kwargs) if plan.capture.answers_apart else []
            return [self._compiled(plan, tensors, own, args, kwargs, q) for q in questions]
        one_sided = all(by_classes(q.target) and q.contrast is None for q in questions)
        again = run is None and not plan.random  # what is drawn can't be drawn again
        graph, latent = plan.form(one_sided and not at, at, small=again, checkpoint=again and self.checkpoint)
        given = [t.clone() if t.is_inference() else t.detach() for t in widened(tensors)]
        casts = casts_made_again() if plan.capture.narrow else nullcontext()
        with plan.in_its_types(), self._draw(plan), casts:
            out = (run or graph)(*given)
        said = self._said(plan, out, args, kwargs)
        about = [self._about(plan, said, q.target) for q in questions]
        if any(explainer is not self for explainer in about):
            return [explainer._explain(args, kwargs, [q], at)[0] for explainer, q in zip(about, questions, strict=True)]
        inner = {name: out[i] for name, i in zip(at, latent, strict=True)}
        asked = [self._directions(plan, out, said, q, batch) for q in questions]
        flat = [d for several, _ in asked for d in several]
        at_once = 1 if run or self.checkpoint else maps_at_once(plan.axes.rows(out[plan.logits]))
        try:
            with plan.in_its_types():
                found = iter(propagate(plan, self.rulebook, out, tensors, flat, list(inner.values()), at_once))
        except RuntimeError as error:
            if "fork-based" not in str(error):
                raise
            raise FxlrpError(
                "This process was forked from one that had explained before, where torch runs no backward pass; start "
                "it by spawn (multiprocessing.get_context('spawn')), or fork before the first explanation."
            ) from error
        answers = []
        for question, (several, index) in zip(questions, asked, strict=True):
            reads = [next(found) for _ in several]
            columns = index is not None and index.ndim == 2
            beside = [[plan.axes.column(i) for i in plan.readouts], [1] * len(inner)]
            inputs, values = (
                [
                    torch.stack(parts, a) if columns else parts[0]
                    for parts, a in zip(zip(*read, strict=True), axes, strict=True)
                ]
                for read, axes in zip(zip(*reads, strict=True), beside, strict=True)
            )
            logits = at_position(plan.axes.rows(said[plan.logits]), question.position).detach()
            answers.append(
                self._attribution(plan, tensors, said, logits, inputs, index, dict(zip(inner, values, strict=True)))
            )
        return answers

    def _draw(self, plan: Plan) -> AbstractContextManager:
        """A context for a graph to run in, with random numbers by the seed that touch no one else's."""
        return drawing(self.seed, plan.capture.inputs) if plan.random else nullcontext()

    def _about(self, plan: Plan, said: Sequence[Tensor], target: Target) -> Explainer:
        """The explainer of the outputs that a target depends on, if it is a callable; else this one."""
        places = _depends_on(target, plan, said) if callable(target) else ()
        if not places or places in ((plan.explained,), plan.together):
            return self
        return self.of(places if len(places) > 1 else places[0])

    def _outputs(self, args: tuple, kwargs: dict, seed: int = 0) -> list[Tensor]:
        """The tensors that the model itself returns for a call."""
        return [t.detach() for t in _tensors(self._returned(args, kwargs, seed))]

    def _returned(self, args: tuple, kwargs: dict, seed: int = 0) -> Any:
        """What the model itself returns for a call, whose tensors it may write into, and is left as it was."""
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
        with undisturbed(self.model, self.seed + seed) as changed:
            returned = answer(self.model, args, kwargs)
        self._found.restless.update(changed)
        return returned

    def _said(self, plan: Plan, out: Sequence[Tensor], args: tuple, kwargs: dict) -> Sequence[Tensor]:
        """What the model itself answers to a call, with the logits at their place in `out`, which the graph gave."""
        if not plan.capture.answers_apart:
            return out
        own = self._outputs(args, kwargs)
        said = [*own, *out[len(own) :]]
        said[plan.logits] = said[plan.logits].to(own[plan.explained].dtype)
        return said

    def _directions(
        self, plan: Plan, out: Sequence[Tensor], said: Sequence[Tensor], question: Question, batch: int
    ) -> tuple[list[Direction], Tensor | None]:
        """What a question asks of the logits among `out`, which the model has said, and the classes it asks about, if
        it does."""
        target = question.target
        if callable(target):
            outputs = [o.detach() for o in said[: len(plan.capture.output_names)]]
            target = _asked_of(target, plan, outputs, said[plan.logits].detach())
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

    def _attribution(
        self,
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

    def compile(self, mode: str | None = None, **options: Any) -> Explainer:  # type: ignore[override]
        """Run forward and relevance pass as one graph by torch.compile from now on; compiled at the next call.

        mode, options: as of torch.compile ("max-autotune", "reduce-overhead" for CUDA graphs, backend=…).  Compiled is
        what is asked by classes; a target of weights or a callable, `at` and `trace` run as before.  Returns itself.

        A graph that torch.compile would break into pieces is an error, unless fullgraph=False.  Whenever something was
        compiled, the call's relevance is computed eagerly as well: FxlrpError if they differ by more than rounding.
        """
        self._compiling = {"mode": mode, "fullgraph": True, **options}
        self._found = replace(self._found, joints=Recent(PLANS))
        return self

    def joint(
        self, *args: Any, target: Target = None, contrast: Contrast = "default", fold: bool = True, **kwargs: Any
    ) -> Joint:
        """Forward and relevance pass of a call as one flat ATen graph: (*inputs, target) → (logits, *relevance).

        Without a call, of the latest one (or the example inputs).  fold: see `fxlrp.joint.trace_joint`.

        Raises FxlrpError if the samples of a batch have to be explained one by one, or target is none of classes.
        """
        if args or kwargs:
            with torch.inference_mode(False), torch.enable_grad():
                self._plan(*open_objects((args, kwargs)))
        plan = self._known()
        if plan.capture.way is Way.THIS_INPUT:
            raise FxlrpError("The model takes branches by its values: there is no one graph of its relevance pass.")
        if plan.scores_ndim != 2:
            raise FxlrpError(
                "The explained output is no row of classes [batch, classes], which a joint graph is asked by."
            )
        if not by_classes(target):
            raise FxlrpError("A joint graph is asked by classes: target is None, a class, or a tensor or list of them.")
        several = len(target) if isinstance(target, Sequence) else 0
        if isinstance(target, Tensor) and target.ndim == 2:
            several = target.shape[1]
        return trace_joint(plan, self.rulebook, self.rulebook.resolve(contrast), several=several, fold=fold)

    def export(self, path: str | Path, *, contrast: Contrast = "default", aoti: bool = False) -> Path:
        """Save forward and relevance pass as a .pt2 (or .onnx) that needs no fxlrp: see `fxlrp.artifact.export`."""
        from fxlrp.artifact import export

        return export(self, path, contrast=contrast, aoti=aoti)

    def _compiled(
        self, plan: Plan, tensors: list[Tensor], own: list[Tensor], args: tuple, kwargs: dict, question: Question
    ) -> Attribution:
        """A call by the compiled graph, held against the eager one whenever something was compiled for it."""
        before = _graphs_compiled()
        attribution = self._run_joint(plan, tensors, own, question.target, question.contrast)
        if _graphs_compiled() != before:

            def eager(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
                given = iter(inputs)
                some, named = pytree.tree_map_only(Tensor, lambda _: next(given), (args, kwargs))
                asked = question if question.target is not None else replace(question, target=attribution.target)
                with torch.enable_grad():
                    return _several(self._explain(some, named, [asked], compiled=False)[0].relevance)

            check_compiled(_several(attribution.relevance), eager, tensors)
        return attribution

    def _run_joint(
        self, plan: Plan, tensors: list[Tensor], own: list[Tensor], target: Target, contrast: Contrast
    ) -> Attribution:
        """A call by the compiled joint graph, which gives the model's outputs too unless they are here, its `own`."""
        assert not callable(target)
        assert self._compiling is not None
        batch = plan.axes.count(tensors)
        given = torch.as_tensor(-1 if target is None else target, device=tensors[0].device)
        given = plan.axes.rows(own[plan.explained]).argmax(1) if own and target is None else given
        index = given.expand(batch, *given.shape) if given.ndim == 0 or isinstance(target, Sequence) else given
        several = index.shape[1] if index.ndim == 2 else 0
        joints, key = self._found.joints, (Same(plan), contrast, several)
        known = joints.get(key)
        if known is None:
            with alone():
                known = joints.get(key)
                if known is None:
                    joint = trace_joint(plan, self.rulebook, contrast, several=several, whole=not own)
                    known = joints.set(key, (torch.compile(joint.traced, **self._compiling), Recent(CHECKED)))
        run, seen = known
        shapes = tuple(t.shape for t in tensors)
        with nullcontext() if seen.get(shapes) else alone(), torch.no_grad():  # new shapes may be compiled for
            out = run(*tensors, index.contiguous())
            if self._records_cuda_graphs():  # the next call writes into the memory of these
                out = [t.clone() for t in out]
        seen.set(shapes, True)
        count = 0 if own else len(plan.capture.output_names)
        logits, found = out[count], out[count + 1 :]
        logits = plan.axes.rows(own[plan.logits]) if plan.logits < len(own) else logits
        if target is not None:
            directions(logits, target, contrast)  # says what does not fit
        asked = logits.argmax(1) if target is None and not own else index.long()
        return self._attribution(plan, tensors, own or out, logits, found, asked, {})

    def _records_cuda_graphs(self) -> bool:
        """Whether torch.compile was asked to record CUDA graphs."""
        how = self._compiling or {}
        return how.get("mode") in ("reduce-overhead", "max-autotune") or (how.get("options") or {}).get(
            "triton.cudagraphs", False
        )

    def _row_by_row(self, plan: Plan, args: tuple, kwargs: dict, question: Question, at: Sequence[str]) -> Attribution:
        """A call that is one sample, as pictures in a list or texts in a line are, for every row of its output.

        Raises FxlrpError where two rows give relevance to one entry of an input.
        """
        count = int(plan.scores_shape[1])
        targets = [_of_sample(question.target, i, count) for i in range(count)]
        rows = [replace(question, target=target, position=i) for i, target in enumerate(targets)]
        answers = self._explain(args, kwargs, rows, at)
        several = [torch.stack(parts) for parts in zip(*(_several(a.relevance) for a in answers), strict=True)]
        if any(bool(((r != 0).sum(0) > 1).any()) for r in several):
            raise FxlrpError(
                f"The {count} rows of this output depend on each other, or on inputs that they share, so the call is "
                "one sample: say which row is explained, position=0 for the first (or, if they don't, which axis of "
                "the inputs counts the samples, convert(…, batch=0))."
            )
        return replace(
            answers[0],
            relevance=several[0].sum(0) if len(several) == 1 else tuple(r.sum(0) for r in several),
            logits=torch.cat([a.logits for a in answers]),
            target=torch.cat([a.target for a in answers if a.target is not None]),
            latent={name: torch.stack([a.latent[name] for a in answers]).sum(0) for name in at},
        )

    def _one_by_one(
        self,
        axes: Axes,
        batch: int,
        args: tuple,
        kwargs: dict,
        questions: Sequence[Question],
        at: Sequence[str],
    ) -> list[Attribution]:
        """Samples explained alone, where each takes branches of its own or they can't be told apart inside; put
        together again beside the model's output for all of them, and added up at inputs that they share.

        All of it is explained as one sample where a target asks for one number about all of them, or where a sample
        alone is answered otherwise than among the others, if its rows have entries of their own.
        """
        output = self._returned(args, kwargs)
        together = self._other(self.output, None)
        if self is not together and any(_is_about_all(q.target, output) for q in questions):
            return together._explain(args, kwargs, questions, at)

        def one(i: int) -> list[Attribution]:
            some, named, *asked = _sample(axes, (args, kwargs), questions, i, batch)
            return self._explain(some, named, asked, at)

        def join(ts: Sequence[Tensor], axis: int | None = 0) -> Tensor:
            return sum(ts[1:], ts[0]) if axis is None else torch.cat(list(ts), axis)

        samples = [one(i) for i in range(batch)]
        try:
            self._check_rows(axes, [p[0].output for p in samples], output, args, kwargs)
        except FxlrpError as apart:
            try:
                return together._explain(args, kwargs, questions, at)
            except FxlrpError:
                raise apart from None
        at_inputs = dict(zip(names_of(args, kwargs), axes.inputs, strict=True))

        def joined(parts: Sequence[Attribution], name: str) -> Tensor | tuple[Tensor, ...]:
            each = zip(*(_several(getattr(p, name)) for p in parts), strict=True)
            shared = name == "inputs"
            return tuple(
                ts[0] if shared and at_inputs.get(n, 0) is None else join(ts, at_inputs.get(n, 0))
                for n, ts in zip(parts[0].names, each, strict=True)
            )

        answers = []
        for parts in zip(*samples, strict=True):
            relevance = joined(parts, "relevance")
            answers.append(
                Attribution(
                    relevance[0] if len(relevance) == 1 else relevance,
                    output,
                    join([p.logits for p in parts]),
                    None if parts[0].target is None else join([p.target for p in parts if p.target is not None]),
                    parts[0].names,
                    _several(joined(parts, "inputs")),
                    {name: join([p.latent[name] for p in parts]) for name in at},
                )
            )
        return answers

    def _plan(self, args: tuple, kwargs: dict) -> tuple[Plan, list[Tensor]]:
        tensors, _ = split_tensors(args, kwargs)
        if not tensors:
            raise FxlrpError("There is no tensor in the call; pass the model's inputs.")
        if getattr(self.model, "training", False) and not _has_no_modes(self.model):
            raise FxlrpError("The model was put into training mode; call model.eval() before explaining.")
        state = self._found.state
        if state is None or not state.is_still(self._found.restless):  # the graphs are of the model as it was
            self._found = _Known(State(self.model))
        found = self._found
        exact = signature(args, kwargs, Axes.none(tensors)).shapes
        checked = found.checked.get(exact)
        plan = found.plans.get(checked)
        if plan is None:
            plan = self._known_plan(found, args, kwargs, tensors)
        if plan is None:
            with alone(), drawing(self.seed, tensors):  # another thread may have captured it meanwhile
                plan = self._known_plan(found, args, kwargs, tensors) or self._capture(found, args, kwargs)
        if plan.capture.way is Way.THIS_INPUT:
            one = plan.axes.count(tensors) == 1
            outdated = one and not all(map(equal, widened(tensors), plan.capture.inputs))
        else:  # does the model take another branch at this batch size?
            outdated = checked is None and not self._same_output(plan, tensors, args, kwargs)
        if outdated:
            with alone(), drawing(self.seed, tensors):
                plan = self._capture(found, args, kwargs, fixed=True)
            self._check_output(plan, tensors, args, kwargs)
        found.checked.set(exact, plan.key)
        self._latest = self._latest_here.plan = plan
        return plan, tensors

    def _kind(self, args: tuple, kwargs: dict, tensors: list[Tensor]) -> Any:
        """What calls have in common whose samples are probably at the same axes."""
        return signature(args, kwargs, Axes.none(tensors)).kind

    def _axes(self, found: _Known, args: tuple, kwargs: dict, tensors: list[Tensor]) -> list[Axes]:
        """Where the samples of a call may be, the likeliest first."""
        if self.batch != "auto":
            names = names_of(args, kwargs), parameters_of(self.model, args, kwargs)
            return [Axes.asked(self.batch, tensors, *names)]
        known = found.axes.get(self._kind(args, kwargs, tensors))
        first = Axes.first(tensors)
        return [known, first] if known is not None and known.fit(tensors) and known.inputs != first.inputs else [first]

    def _known_plan(self, found: _Known, args: tuple, kwargs: dict, tensors: list[Tensor]) -> Plan | None:
        """The plan that holds for a call, if there is one."""
        for axes in self._axes(found, args, kwargs, tensors):
            about = signature(args, kwargs, axes)
            plan = found.plan((about.shapes, axes.count(tensors)), about.shapes, about.like)
            if plan is not None:
                return plan
        return None

    def _capture(self, found: _Known, args: tuple, kwargs: dict, fixed: bool = False) -> Plan:
        """A plan for this call, and, unless it is `fixed` to it, for batches of any size and texts of any length where
        possible."""
        tensors, _ = split_tensors(args, kwargs)
        axes = self._axes(found, args, kwargs, tensors)

        abouts = [signature(args, kwargs, a) for a in axes]
        longer = any(found.first.get(about.like) not in (None, EACH, about.shapes) for about in abouts)

        branches = False

        def by(axes: Axes) -> Capture:
            nonlocal branches
            captured = capture(self.model, args, kwargs, axes, fixed=fixed, longer=longer, branches=branches)
            branches = captured.branches
            return spelled(captured)

        captured = find_samples(by, axes, tensors, self.output, sure=self.batch != "auto")
        with no_autocast(captured.inputs):
            plan = rewrite(captured, self.rulebook, strict=self.strict, output=self.output, read=self.read)
        about = signature(args, kwargs, plan.axes)
        plan.key = (about.shapes, plan.axes.count(tensors))
        if not fixed and captured.way is Way.ANY_BATCH:
            plan.key = about.like if plan.any_length else about.shapes
        if longer and plan.key is about.like:
            found.plans.drop(found.first.get(about.like))
        elif not fixed:
            found.first.set(about.like, EACH if longer else about.shapes)
        found.axes.set(self._kind(args, kwargs, tensors), plan.axes)
        return found.plans.set(plan.key, plan)

    def _same_output(self, plan: Plan, tensors: list[Tensor], args: tuple, kwargs: dict) -> bool:
        """Whether the graph gives the model's own output for this call."""
        return _close(plan, self._output_apart(plan, tensors, args, kwargs))

    def _output_apart(self, plan: Plan, tensors: list[Tensor], args: tuple, kwargs: dict) -> list[float]:
        """How far each output by the graph is from the model's own, as a share of its largest value."""
        expected = self._outputs(args, kwargs)
        with torch.no_grad(), plan.in_its_types(), self._draw(plan):
            try:
                found = plan.graph(*(t.detach().clone() for t in widened(tensors)))
            except (RuntimeError, IndexError):  # captured for other shapes or values
                return [float("inf")]
        ends: Any = plan.graph.graph.output_node().args[0]
        if any(f.ndim != n.meta["val"].ndim for f, n in zip(found, ends, strict=False)):
            return [float("inf")]  # an axis of this length was squeezed out
        return [
            share_apart(f, e) if e.is_floating_point() and e.numel() and e.isfinite().all() else 0.0
            for f, e in zip(found, expected, strict=False)
        ]

    def _check_output(self, plan: Plan, tensors: list[Tensor], args: tuple, kwargs: dict) -> None:
        """Raises FxlrpError if a graph made for this very call gives another output than the model, unless this is
        random."""
        shares = self._output_apart(plan, tensors, args, kwargs)
        if _close(plan, shares):
            return
        first, second = self._outputs(args, kwargs), self._outputs(args, kwargs, seed=1)
        if not all(map(torch.equal, first, second)):
            return
        names = zip(plan.capture.output_names, shares, strict=False)
        parted = ", ".join(
            f"{name or 'its output'} by {share:.0%} of its largest value" for name, share in names if share
        )
        with no_fast_attention():
            slow = self._same_output(plan, tensors, args, kwargs)
        raise FxlrpError(
            f"While it is traced, this model computes something else than when it is called: {parted} apart. "
            + (
                "It is torch's fast path of nn.TransformerEncoder, which sets what is padded to zero: turn it off by "
                "torch.backends.mha.set_fastpath_enabled(False), or leave the padding out of what follows."
                if slow
                else "Take out what asks whether it is traced (torch.compiler.is_exporting, is_compiling)."
            )
        )

    def _check_rows(self, axes: Axes, rows: Sequence[Any], output: Any, args: tuple, kwargs: dict) -> None:
        """Raises FxlrpError if the model answers samples alone otherwise than among the others, unless it is random."""
        plan = self._known()
        apart = [plan.axes.rows(_tensors(row)[plan.explained]) for row in rows]
        among = axes.rows(_tensors(output)[plan.explained])
        alike = len({row.shape[1:] for row in apart}) == 1 and _close(plan, [share_apart(torch.cat(apart), among)])
        if alike or not among.isfinite().all():
            return
        if torch.equal(among, axes.rows(self._outputs(args, kwargs, seed=1)[plan.explained])):
            raise FxlrpError(
                "A sample of this batch alone has another output than among the others (is it padded to the longest of "
                "them?), and they can't be explained together; explain one sample at a time."
            )

    @property
    def graph(self) -> fx.GraphModule:
        """The rewritten graph of this thread's latest call, if it made one, else of the latest there was (or of the
        example inputs): forward and relevance rules in one."""
        return self._known().graph

    def report(self, *args: Any, target: Target = None, contrast: Contrast = "default", **kwargs: Any) -> Report:
        """What became of every node of that graph, and which line of the model it comes from.

        Given a call to explain, also how much relevance arrives at each node and leaves it.
        """
        if not args and not kwargs:
            return self._known().report
        trace = self(*args, target=target, contrast=contrast, trace=True, **kwargs).trace
        assert trace is not None
        return trace

    def _known(self) -> Plan:
        plan = self._latest_here.plan or self._latest
        if plan is None:
            raise FxlrpError("Nothing is captured yet: call the explainer once, or give convert() example_inputs.")
        return plan


def _at_the_end(plan: Plan, tensors: Sequence[Tensor], question: Question) -> Question:
    """The same question, about the last token of a causal model if it says of none, and no sample ends in padding."""
    if question.position is not None or not by_classes(question.target) or not plan.causal:
        return question
    masks = [
        (t, axis)
        for i, (t, axis) in enumerate(zip(tensors, plan.axes.inputs, strict=True))
        if axis is not None and i not in plan.readouts and t.ndim == 2 and not t.is_floating_point()
    ]
    padded = any(bool((t == 0).select(1 - axis, -1).any()) for t, axis in masks)
    return question if padded else replace(question, position=-1)


def _close(plan: Plan, shares: Sequence[float]) -> bool:
    """Whether outputs are the model's own but for rounding, shares of their largest values that they are apart by;
    half precision and quantising add up over the layers to an eighth."""
    outputs: Any = plan.graph.graph.output_node().args[0]
    return max(shares, default=0.0) <= (
        0.125 if plan.capture.answers_apart else rounding(outputs[plan.explained].meta["val"])
    )


ASKED = {"target": None, "contrast": "default", "position": None, "at": (), "trace": False}
"""The keywords of a question, and what they are where nothing is asked."""


def _has_no_modes(model: nn.Module) -> bool:
    """Whether a model is an exported program's, which says that it trains whatever it was exported as, and can't be
    switched."""
    return isinstance(model, fx.GraphModule) and "eval" in vars(model)


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


def _sample(axes: Axes, call: tuple, questions: Sequence[Question], i: int, batch: int) -> tuple:
    """One sample of the tensors in a call and of questions about it."""

    listed = pytree.tree_map(
        lambda v: v[i : i + 1] if _one_each(v, batch) else v, call, is_leaf=lambda v: _one_each(v, batch)
    )
    some = axes.each(lambda t, axis: t.narrow(axis, i, 1), listed)
    asked = ((_of_sample(q.target, i, batch), _of_sample(q.position, i, batch)) for q in questions)
    return *some, *(replace(q, target=t, position=p) for q, (t, p) in zip(questions, asked, strict=True))


def _of_sample(asked: Any, i: int, batch: int) -> Any:
    """What is asked of sample i, where it is a tensor of something for each."""
    return asked[i : i + 1] if isinstance(asked, Tensor) and asked.ndim and len(asked) == batch else asked


def _tensors(returned: Any) -> list[Tensor]:
    return [t for t in pytree.tree_leaves(open_output(returned)) if isinstance(t, Tensor)]


def _one_each(value: Any, batch: int) -> bool:
    """Whether a value is a list of one number for each sample, as of lengths."""
    return type(value) is list and len(value) == batch and all(type(v) in (int, float) for v in value)


def _several(relevance: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return relevance if isinstance(relevance, tuple) else (relevance,)


def _graphs_compiled() -> int:
    """How many graphs torch.compile has handed to its backend in this process."""
    from torch._dynamo.utils import counters  # here, since it takes seconds to import

    return counters["stats"]["unique_graphs"]


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


def _is_about_all(target: Target, output: Any) -> bool:
    """Whether a target is a callable that returns one number for all of a batch."""
    if not callable(target):
        return False
    try:
        answer = target(output)
    except Exception:  # which is told where it is asked for the answer
        return False
    return isinstance(answer, Tensor) and not answer.ndim


def _depends_on(score: Callable[[Any], Tensor], plan: Plan, said: Sequence[Tensor]) -> tuple[int, ...]:
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


def _asked_of(score: Callable[[Any], Tensor], plan: Plan, outputs: list[Tensor], logits: Tensor) -> Tensor:
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


def convert(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    rules: str | Rulebook = "abslrp",
    strict: bool = False,
    output: Output = None,
    checkpoint: bool = False,
    batch: Batch = "auto",
    read: str | Sequence[str] = (),
    seed: int = 0,
) -> Explainer:
    """An explainer for `model`: call it like the model and get an `Attribution`.

    model: any nn.Module in eval mode; it is not modified, its weights are shared.
    example_inputs: what to capture it with now: a tensor, a tuple of positional or a dict of keyword arguments; without
    it, capture happens at the first call.
    rules: the name of a rulebook (see `fxlrp.rulebooks()`) or a Rulebook.
    strict: refuse a model in which some op has no rule of its own.
    output: which of several outputs is explained: a key, a field or a place; without it the one named logits, else the
    first.
    checkpoint: keep little of the forward pass and run it again, segment by segment, when relevance comes by: memory
    grows with the root of the depth, time by one forward pass for each map.
    batch: the axis that counts the samples of a call, None for calls that are one sample, or a dict of the axis of each
    tensor by its name (what forward calls it, or "0" for the first positional one), None for one that all samples
    share; without it, what the first axis of the explained output counts, or its second, wherever that leads back to.
    read: where relevance is read, if not at the inputs: names of modules, whose output is taken, of graph nodes, or of
    inputs, as forward calls them, which are explained alone then, masks and positions too.
    seed: which draw is explained of a model that draws random numbers in eval mode, such as noise or a latent code.

    Raises FxlrpError for a model in training mode, one that can't be captured, or an unknown rulebook, output or read.

        explainer = fxlrp.convert(model)
        explainer(images).save("heatmap.png")
    """
    if not isinstance(model, nn.Module):
        raise FxlrpError(f"fxlrp.convert takes an nn.Module, not {type(model).__name__}.")
    if isinstance(model, Explainer):
        raise FxlrpError("This is an explainer already; convert the model it was made from.")
    if getattr(model, "training", False) and not _has_no_modes(model):
        raise FxlrpError(
            "The model is in training mode; call model.eval() before convert (dropout and batch norm change)."
        )
    names = (read,) if isinstance(read, str) else tuple(read)
    explainer = Explainer(model, find_rulebook(rules), strict, output, checkpoint, batch, names, seed)
    if example_inputs is not None:
        named = dict(example_inputs) if isinstance(example_inputs, Mapping) else {}
        args = example_inputs if isinstance(example_inputs, tuple | list) else () if named else (example_inputs,)
        explainer._plan(*open_objects((tuple(args), named)))
    return explainer
