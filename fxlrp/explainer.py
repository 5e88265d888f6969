"""Explainer: a converted model, which returns attributions with its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxlrp.attribution import Attribution
from fxlrp.capture import Signature, Way, batch_size, capture, open_output, split_tensors
from fxlrp.errors import FxlrpError
from fxlrp.mass import Weighing
from fxlrp.report import Report
from fxlrp.rewrite import Plan, at_positions, rewrite
from fxlrp.rules.propagate import relevance
from fxlrp.rules.registry import Rulebook, find_rulebook
from fxlrp.seeds import Contrast, Position, Question, Target, at_position, directions, relevance_at_output


class Explainer(nn.Module):
    """A model that also says what it looked at.  Made by `fxlrp.convert`; shares the model's weights.

    One graph is kept per signature of a call (shapes but for the batch and, where the model allows, the length of
    texts; dtypes, devices, constants).
    """

    def __init__(self, model: nn.Module, rulebook: Rulebook, strict: bool, output: str | int | None = None) -> None:
        super().__init__()
        self.output = output
        self.model = model
        self.rulebook = rulebook
        self.strict = strict
        self._plans: dict[Any, Plan] = {}
        self._checked: set[tuple[Any, int]] = set()  # calls whose graph was seen to give the model's own output
        self._parts: tuple[int, ...] = ()
        self._latest: Plan | None = None
        self._others: dict[str | int | None, Explainer] = {}

    def of(self, output: str | int | None) -> Explainer:
        """The same for another of the model's outputs; it is kept, with what it captures."""
        if output == self.output:
            return self
        if output not in self._others:
            self._others[output] = Explainer(self.model, self.rulebook, self.strict, output).eval()
        return self._others[output]

    def forward(
        self,
        *args: Any,
        target: Target = None,
        contrast: Contrast = "default",
        at: Position = None,
        **kwargs: Any,
    ) -> Attribution:
        """Explain a call of the model.

        target: None (the top class), a class, a tensor of one class per sample [B], a float tensor of weights over the
        logits, or a callable on the model's output that returns a score per sample (its gradient is explained).
        contrast: what the target is set against: None, "others" (the mean of all other classes), "softmax" (all others
        by probability) or a class; "default" is what the rulebook was found best with.  A target of weights or a
        callable states its own.
        at: which of a sequence of logits [B, T, K] is explained: a position or a tensor of one per sample [B].

        Raises FxlrpError if the model can't be captured or the target does not fit.
        """
        return self.ask([Question(target, contrast, at)], *args, **kwargs)[0]

    def ask(self, questions: Sequence[Question], *args: Any, **kwargs: Any) -> list[Attribution]:
        """An attribution for each question about one call of the model, which runs forward once for all of them.

        Raises FxlrpError if the model can't be captured or a question does not fit its output.
        """
        with torch.inference_mode(False), torch.enable_grad():
            return self._explain(args, kwargs, questions)

    def _explain(
        self, args: tuple, kwargs: dict, questions: Sequence[Question], run: Callable | None = None
    ) -> list[Attribution]:
        plan, tensors = self._plan(args, kwargs)
        batch = batch_size(tensors)
        if batch > 1 and (plan.capture.way is Way.THIS_INPUT or not plan.apart):
            return self._one_by_one(batch, args, kwargs, questions)
        out = (run or plan.graph)(*(t.clone() if t.is_inference() else t.detach() for t in tensors))
        last = len(questions) - 1
        return [self._answer(plan, tensors, out, q, keep=i < last) for i, q in enumerate(questions)]

    def _answer(self, plan: Plan, tensors: list[Tensor], out: Any, question: Question, keep: bool) -> Attribution:
        """The relevance pass of one question through the graph that gave `out`; `keep`: it is passed through again."""
        count = len(plan.capture.output_names)
        logits, target = out[plan.logits], question.target
        output = plan.capture.unflatten(tuple(o.detach() for o in out[:count]))
        leaves = [out[i] for places in plan.readouts.values() for i in places]
        if callable(target):
            target = _asked_of(target, plan, [o.detach() for o in out[:count]], logits.detach())
        logits = at_position(logits, question.at)
        contrast = self.rulebook.against if question.contrast == "default" else question.contrast
        v, against, index = directions(logits, target, contrast)
        grads = self._passes(logits, leaves, v, against, keep)
        reading = zip((at for places in plan.readouts.values() for at in places), leaves, grads, strict=True)
        whole = self.rulebook.reads == "relevance"
        read = {at: relevance(a.detach(), g) if whole else g for at, a, g in reading}
        relevances = []
        for i, places in plan.readouts.items():
            x = tensors[i]
            parts = [
                at_positions(read[at], out[plan.positions[at]], x.numel()).view(x.shape)
                if at in plan.positions
                else read[at]
                for at in places
            ]
            relevances.append(sum(parts[1:], parts[0]))
        return Attribution(
            relevances[0] if len(relevances) == 1 else tuple(relevances),
            output,
            logits.detach(),
            index,
            tuple(plan.capture.names[i] for i in plan.readouts),
            tuple(tensors[i] for i in plan.readouts),
        )

    def _one_by_one(self, batch: int, args: tuple, kwargs: dict, questions: Sequence[Question]) -> list[Attribution]:
        """Samples explained alone, where each takes branches of its own or they can't be told apart inside; put
        together again beside the model's output for all of them."""

        def sample(thing: Any, i: int) -> Any:
            return pytree.tree_map_only(Tensor, lambda t: t[i : i + 1] if t.ndim and len(t) == batch else t, thing)

        def one(i: int) -> list[Attribution]:
            some, named = sample((args, kwargs), i)
            return self._explain(
                some, named, [replace(q, target=sample(q.target, i), at=sample(q.at, i)) for q in questions]
            )

        def join(*ts: Tensor) -> Tensor:
            return torch.cat(ts)

        samples = [one(i) for i in range(batch)]
        with torch.no_grad():
            output = self.model(*args, **kwargs)
        return [
            Attribution(
                pytree.tree_map(join, *(p.relevance for p in parts)),
                output,
                join(*(p.logits for p in parts)),
                None if parts[0].target is None else join(*(p.target for p in parts if p.target is not None)),
                parts[0].names,
                pytree.tree_map(join, *(p.inputs for p in parts)),
            )
            for parts in zip(*samples, strict=True)
        ]

    def _passes(
        self, logits: Tensor, leaves: list[Tensor], v: Tensor, against: Tensor | None, keep: bool = False
    ) -> list[Tensor]:
        """Gradients at the readouts: one pass for a seed of both signs, or one a side, as the rulebook has it."""
        book = self.rulebook

        def run(direction: Tensor, keep: bool = keep) -> list[Tensor]:
            seed = relevance_at_output(book.seed, logits, direction)
            found = torch.autograd.grad(logits, leaves, seed, retain_graph=keep, allow_unused=True)
            return [torch.zeros_like(a) if g is None else g for a, g in zip(leaves, found, strict=True)]

        if against is None:
            return run(v)
        if book.contrast == "signed":
            return run(v - against)
        return [p - n for p, n in zip(run(v, keep=True), run(against), strict=True)]

    def _plan(self, args: tuple, kwargs: dict) -> tuple[Plan, list[Tensor]]:
        tensors, rebuild, signature = split_tensors(args, kwargs)
        if not tensors:
            raise FxlrpError("There is no tensor in the call; pass the model's inputs.")
        if self.model.training:
            raise FxlrpError("The model was put into training mode; call model.eval() before explaining.")
        parts = tuple(map(id, (*self.model.modules(), *self.model.parameters(), *self.model.buffers())))
        if parts != self._parts:  # a layer or weight was replaced: the graphs hold the old one
            self._plans, self._checked, self._parts = {}, set(), parts
        batch = batch_size(tensors)
        key = (signature.shapes, batch)
        plan = self._plans.get(key) or self._plans.get(signature.shapes) or self._plans.get(signature.like)
        if plan is None:
            plan = self._capture(args, kwargs, key, signature)
        if plan.capture.way is Way.THIS_INPUT:
            outdated = batch == 1 and not all(map(torch.equal, tensors, plan.capture.inputs))
        else:  # does the model take another branch at this batch size?
            outdated = key not in self._checked and not self._same_output(plan, tensors, rebuild)
        if outdated:
            plan = self._capture(args, kwargs, key)
        self._checked.add(key)
        shared = [i for i in plan.readouts if not (tensors[i].ndim and len(tensors[i]) == batch)]
        if batch > 1 and (plan.mixes or (shared and not plan.apart)):
            raise FxlrpError(
                f"The samples of this batch share more than the weights, so a batch of {batch} would mix their "
                "relevance; explain one sample at a time."
            )
        self._latest = plan
        return plan, tensors

    def _capture(self, args: tuple, kwargs: dict, key: Any, signature: Signature | None = None) -> Plan:
        """A plan for this call, and by `signature`, if given, for batches of any size and texts of any length where
        possible."""
        captured = capture(self.model, args, kwargs, fixed=signature is None)
        plan = rewrite(captured, self.rulebook, strict=self.strict, output=self.output)
        if captured.any_length and not plan.any_length:
            captured = capture(self.model, args, kwargs, any_length=False)
            plan = rewrite(captured, self.rulebook, strict=self.strict, output=self.output)
        if signature is not None and captured.way is Way.ANY_BATCH:
            key = signature.like if captured.any_length else signature.shapes
        self._plans[key] = plan
        return plan

    def _same_output(self, plan: Plan, tensors: list[Tensor], rebuild: Callable[[Any], tuple[tuple, dict]]) -> bool:
        """Whether the graph gives the model's own output for this call, to a hundredth of its largest value."""
        copied = [t.detach().clone() for t in tensors]
        args, kwargs = rebuild(t.clone() for t in copied)  # the model may write into its inputs, the graph does not
        with torch.no_grad():
            expected = [
                t for t in pytree.tree_leaves(open_output(self.model(*args, **kwargs))) if isinstance(t, Tensor)
            ]
            try:
                found = plan.graph(*copied)
            except (RuntimeError, IndexError):  # shapes that don't fit: two lengths that were one when it was captured
                return False
        return all(
            f.shape == e.shape and bool((f - e).abs().max() <= 0.01 * e.abs().max())
            for f, e in zip(found, expected, strict=False)
            if e.is_floating_point() and e.numel() and e.isfinite().all()
        )

    @property
    def graph(self) -> fx.GraphModule:
        """The rewritten graph of the latest call (or of the example inputs): forward and relevance rules in one."""
        return self._known().graph

    def report(self, *args: Any, target: Target = None, contrast: Contrast = "default", **kwargs: Any) -> Report:
        """What became of every node of that graph, and which line of the model it comes from.

        Given a call to explain, also how much relevance arrives at each node and leaves it.
        """
        if not args and not kwargs:
            return self._known().report
        with torch.inference_mode(False), torch.enable_grad():
            plan, tensors = self._plan(args, kwargs)
            if batch_size(tensors) > 1 and not plan.apart:
                raise FxlrpError("The samples of this batch can't be told apart inside: weigh one sample at a time.")
            weighing = Weighing(plan.graph)
            self._explain(args, kwargs, [Question(target, contrast)], weighing.run)
        return plan.report.weighed(weighing.edges)

    def _known(self) -> Plan:
        if self._latest is None:
            raise FxlrpError("Nothing is captured yet: call the explainer once, or give convert() example_inputs.")
        return self._latest


def _asked_of(score: Callable[[Any], Tensor], plan: Plan, outputs: list[Tensor], logits: Tensor) -> Tensor:
    """What a callable target says about the model's output, as a target: ∂ Σ score/∂ logits; what does not depend on
    the logits (classes, weights) as it stands."""
    with torch.enable_grad():
        value = logits = logits.requires_grad_()
        for node in plan.head:
            value = node.target(value, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        outputs[plan.explained] = value
        answer = score(plan.capture.unflatten(tuple(outputs)))
        if not isinstance(answer, Tensor):
            raise FxlrpError(f"The target callable must return a tensor, not {type(answer).__name__}.")
        if not answer.requires_grad and answer.is_floating_point() and answer.shape != logits.shape:
            name = plan.capture.output_names[plan.explained] or "the first"
            raise FxlrpError(
                f"The target does not depend on the explained output ({name}); name another by convert(…, output=…)."
            )
        return torch.autograd.grad(answer.sum(), logits)[0] if answer.requires_grad else answer


def convert(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    rules: str | Rulebook = "abslrp",
    strict: bool = False,
    output: str | int | None = None,
) -> Explainer:
    """An explainer for `model`: call it like the model and get an `Attribution`.

    model: any nn.Module in eval mode; it is not modified, its weights are shared.
    example_inputs: what to capture it with now: a tensor, a tuple of positional or a dict of keyword arguments; without
    it, capture happens at the first call.
    rules: the name of a rulebook (see `fxlrp.rulebooks()`) or a Rulebook.
    strict: refuse a model in which some op has no rule of its own.
    output: which of several outputs is explained: a key, a field or a place; without it the one named logits, else the
    first.

    Raises FxlrpError for a model in training mode, one that can't be captured, or an unknown rulebook or output.

        explainer = fxlrp.convert(model)
        explainer(images).save("heatmap.png")
    """
    if not isinstance(model, nn.Module):
        raise FxlrpError(f"fxlrp.convert takes an nn.Module, not {type(model).__name__}.")
    if isinstance(model, Explainer):
        raise FxlrpError("This is an explainer already; convert the model it was made from.")
    if model.training:
        raise FxlrpError(
            "The model is in training mode; call model.eval() before convert (dropout and batch norm change)."
        )
    explainer = Explainer(model, find_rulebook(rules), strict, output).eval()
    if example_inputs is not None:
        if isinstance(example_inputs, Mapping):
            explainer._plan((), dict(example_inputs))
        else:
            args = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
            explainer._plan(tuple(args), {})
    return explainer
