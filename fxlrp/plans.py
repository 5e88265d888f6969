"""Plans: which rewritten graph answers a call, captured when there is none and held against the model's own output."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxlrp.agreement import no_fast_attention, rounding, share_apart
from fxlrp.capture.axes import Axes, Batch
from fxlrp.capture.calls import answer, equal, names_of, signature, split_tensors
from fxlrp.capture.confine import alone
from fxlrp.capture.flat import open_output
from fxlrp.capture.model import Capture, CaptureMode, capture, parameters_of
from fxlrp.capture.precision import no_autocast, widened
from fxlrp.capture.state import Place, State, drawing, undisturbed
from fxlrp.errors import FxlrpError
from fxlrp.graph.find_samples import find_samples, spelled
from fxlrp.graph.outputs import Output
from fxlrp.graph.plan import Plan
from fxlrp.graph.rewrite import rewrite
from fxlrp.nodes import outputs_of
from fxlrp.recent import Recent
from fxlrp.rules.registry import Rulebook

PLANS = 32
"""How many plans, each a graph for calls of one signature, an explainer keeps."""
CHECKED = 1024
"""How many shapes of calls it remembers the plan of, which was checked against the model's own output."""


EACH = "each"
"""Stands for the shapes of calls of which every length has a graph of its own."""


@dataclass(frozen=True)
class Known:
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


class Plans:
    """The plans of one model, by one rulebook, for one of its outputs.

    found: what is known of the model as it is now; when it changes, all of it is forgotten.
    """

    def __init__(
        self,
        model: nn.Module,
        rulebook: Rulebook,
        *,
        strict: bool,
        output: Output,
        batch: Batch,
        read: Sequence[str],
        seed: int,
    ) -> None:
        self.model, self.rulebook, self.strict, self.output = model, rulebook, strict, output
        self.batch, self.read, self.seed = batch, read, seed
        self.found = Known()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "found": Known()}

    def find(self, args: tuple, kwargs: dict) -> tuple[Plan, list[Tensor]]:
        """The plan that holds for a call, captured if there is none, and the tensors of the call.

        Raises FxlrpError for a call without tensors, a model in training mode, and one that can't be captured.
        """
        tensors, _ = split_tensors(args, kwargs)
        if not tensors:
            raise FxlrpError("There is no tensor in the call; pass the model's inputs.")
        if getattr(self.model, "training", False) and not has_no_modes(self.model):
            raise FxlrpError("The model was put into training mode; call model.eval() before explaining.")
        state = self.found.state
        if state is None or not state.is_still(self.found.restless):  # the graphs are of the model as it was
            self.found = Known(State(self.model))
        found = self.found
        exact = signature(args, kwargs, Axes.none(tensors)).shapes
        checked = found.checked.get(exact)
        plan = found.plans.get(checked)
        if plan is None:
            plan = self._known_plan(found, args, kwargs, tensors)
        if plan is None:
            with alone(), drawing(self.seed, tensors):  # another thread may have captured it meanwhile
                plan = self._known_plan(found, args, kwargs, tensors) or self.capture(found, args, kwargs)
        if plan.capture.mode is CaptureMode.THIS_INPUT:
            one = plan.axes.count(tensors) == 1
            outdated = one and not all(map(equal, widened(tensors), plan.capture.inputs))
        else:  # does the model take another branch at this batch size?
            outdated = checked is None and not self._same_output(plan, tensors, args, kwargs)
        if outdated:
            with alone(), drawing(self.seed, tensors):
                plan = self.capture(found, args, kwargs, fixed=True)
            self._check_output(plan, tensors, args, kwargs)
        found.checked.set(exact, plan.key)
        return plan, tensors

    def _kind(self, args: tuple, kwargs: dict, tensors: list[Tensor]) -> Any:
        """What calls have in common whose samples are probably at the same axes."""
        return signature(args, kwargs, Axes.none(tensors)).kind

    def axes(self, found: Known, args: tuple, kwargs: dict, tensors: list[Tensor]) -> list[Axes]:
        """Where the samples of a call may be, the likeliest first."""
        if self.batch != "auto":
            names = names_of(args, kwargs), parameters_of(self.model, args, kwargs)
            return [Axes.asked(self.batch, tensors, *names)]
        known = found.axes.get(self._kind(args, kwargs, tensors))
        first = Axes.first(tensors)
        return [known, first] if known is not None and known.fit(tensors) and known.inputs != first.inputs else [first]

    def _known_plan(self, found: Known, args: tuple, kwargs: dict, tensors: list[Tensor]) -> Plan | None:
        """The plan that holds for a call, if there is one."""
        for axes in self.axes(found, args, kwargs, tensors):
            about = signature(args, kwargs, axes)
            plan = found.plan((about.shapes, axes.count(tensors)), about.shapes, about.like)
            if plan is not None:
                return plan
        return None

    def capture(self, found: Known, args: tuple, kwargs: dict, fixed: bool = False) -> Plan:
        """A plan for this call, and, unless it is `fixed` to it, for batches of any size and texts of any length where
        possible."""
        tensors, _ = split_tensors(args, kwargs)
        axes = self.axes(found, args, kwargs, tensors)

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
        if not fixed and captured.mode is CaptureMode.ANY_BATCH:
            plan.key = about.like if plan.any_length else about.shapes
        if longer and plan.key is about.like:
            found.plans.drop(found.first.get(about.like))
        elif not fixed:
            found.first.set(about.like, EACH if longer else about.shapes)
        found.axes.set(self._kind(args, kwargs, tensors), plan.axes)
        return found.plans.set(plan.key, plan)

    def _same_output(self, plan: Plan, tensors: list[Tensor], args: tuple, kwargs: dict) -> bool:
        """Whether the graph gives the model's own output for this call."""
        return _is_close(plan, self._output_apart(plan, tensors, args, kwargs))

    def _output_apart(self, plan: Plan, tensors: list[Tensor], args: tuple, kwargs: dict) -> list[float]:
        """How far each output by the graph is from the model's own, as a share of its largest value."""
        expected = self.outputs(args, kwargs)
        with torch.no_grad(), plan.in_its_types(), self.draw(plan):
            try:
                found = plan.graph(*(t.detach().clone() for t in widened(tensors)))
            except (RuntimeError, IndexError):  # captured for other shapes or values
                return [float("inf")]
        ends = outputs_of(plan.graph)
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
        if _is_close(plan, shares):
            return
        first, second = self.outputs(args, kwargs), self.outputs(args, kwargs, seed=1)
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

    def check_rows(self, plan: Plan, axes: Axes, rows: Sequence[Any], output: Any, args: tuple, kwargs: dict) -> None:
        """Raises FxlrpError if the model answers samples alone otherwise than among the others, unless it is random."""
        apart = [plan.axes.rows(tensors_of(row)[plan.explained]) for row in rows]
        among = axes.rows(tensors_of(output)[plan.explained])
        alike = len({row.shape[1:] for row in apart}) == 1 and _is_close(plan, [share_apart(torch.cat(apart), among)])
        if alike or not among.isfinite().all():
            return
        if torch.equal(among, axes.rows(self.outputs(args, kwargs, seed=1)[plan.explained])):
            raise FxlrpError(
                "A sample of this batch alone has another output than among the others (is it padded to the longest of "
                "them?), and they can't be explained together; explain one sample at a time."
            )

    def outputs(self, args: tuple, kwargs: dict, seed: int = 0) -> list[Tensor]:
        """The tensors that the model itself returns for a call."""
        return [t.detach() for t in tensors_of(self.returned(args, kwargs, seed))]

    def returned(self, args: tuple, kwargs: dict, seed: int = 0) -> Any:
        """What the model itself returns for a call, whose tensors it may write into, and is left as it was."""
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
        with undisturbed(self.model, self.seed + seed) as changed:
            returned = answer(self.model, args, kwargs)
        self.found.restless.update(changed)
        return returned

    def draw(self, plan: Plan) -> AbstractContextManager:
        """A context for a graph to run in, with random numbers by the seed that touch no one else's."""
        return drawing(self.seed, plan.capture.inputs) if plan.random else nullcontext()


def _is_close(plan: Plan, shares: Sequence[float]) -> bool:
    """Whether outputs are the model's own but for rounding, shares of their largest values that they are apart by;
    half precision and quantising add up over the layers to an eighth."""
    explained = outputs_of(plan.graph)[plan.explained]
    return max(shares, default=0.0) <= (0.125 if plan.capture.answers_apart else rounding(explained.meta["val"]))


def has_no_modes(model: nn.Module) -> bool:
    """Whether a model is an exported program's, which says that it trains whatever it was exported as, and can't be
    switched."""
    return isinstance(model, fx.GraphModule) and "eval" in vars(model)


def tensors_of(returned: Any) -> list[Tensor]:
    """The tensors in what a model returns."""
    return [t for t in pytree.tree_leaves(open_output(returned)) if isinstance(t, Tensor)]
