"""Finds the rewritten graph for a call, captures it if there is none, and checks it against the model's own output."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import fx, nn

from fxlrp.capture.axes import Axes, Batch
from fxlrp.capture.buffers import buffers_of
from fxlrp.capture.calls import Call, equal
from fxlrp.capture.confine import alone
from fxlrp.capture.model import Capture, CaptureMode, capture, forward_names
from fxlrp.capture.precision import no_autocast, widened
from fxlrp.capture.state import Attribute, State, drawing
from fxlrp.errors import PAD, FxlrpError
from fxlrp.graph.find_samples import find_samples, spelled
from fxlrp.graph.outputs import Output, are_independent
from fxlrp.graph.plan import Plan
from fxlrp.graph.rewrite import rewrite
from fxlrp.nodes import copied
from fxlrp.original import Original
from fxlrp.recent import Recent
from fxlrp.rules.registry import Rulebook

if TYPE_CHECKING:
    from fxlrp.export.joint import Joint

PLANS = 32
"""The number of plans, each a graph for calls of one signature, that an explainer keeps."""
CHECKED = 1024
"""The number of call shapes for which it remembers the plan that was checked against the model's own output."""


EACH = "each"
"""Marks calls for which each sequence length needs a graph of its own."""


@dataclass(frozen=True)
class Settings:
    """How a model is explained: the arguments of `fxlrp.convert`."""

    rulebook: Rulebook
    strict: bool = False
    output: Output = None
    checkpoint: bool = False
    batch: Batch = "auto"
    read: tuple[str, ...] = ()
    seed: int = 0
    shifts: int = 1
    differentiable: bool = False
    store: Store | None = None


class Store(Protocol):
    """Where captured graphs are kept for other processes: see `fxlrp.inputs.graph_store`."""

    def paths(self, model: nn.Module, *keys: Hashable) -> list[Path]: ...

    def load(self, path: Path, model: nn.Module, call: Call, run: Callable[[Call], Any]) -> Capture | None: ...

    def save(self, path: Path, model: nn.Module, captured: Capture) -> None: ...


@dataclass(frozen=True)
class Cache:
    """What an explainer keeps for a model in this `state`: graphs, and what was found out about calls."""

    state: State | None = None
    changed_by_runs: set[Attribute] = field(default_factory=set)
    plans: Recent[Plan] = field(default_factory=lambda: Recent(PLANS))
    checked: Recent[Hashable] = field(default_factory=lambda: Recent(CHECKED))  # shapes of a call → the key of its plan
    axes: Recent[Axes] = field(default_factory=lambda: Recent(PLANS))  # kinds of calls → their sample axes
    captures: Recent[Capture] = field(default_factory=lambda: Recent(PLANS))  # calls → their graphs before any rulebook
    first: Recent[tuple | str] = field(
        default_factory=lambda: Recent(PLANS)
    )  # calls up to their lengths → shapes of the first one
    compiled: Recent[tuple[Callable, Recent[bool]]] = field(default_factory=lambda: Recent(PLANS))  # and shapes seen
    differentiable: Recent[Joint] = field(default_factory=lambda: Recent(PLANS))


class Plans:
    """The plans of one model, by one rulebook, for one of its outputs.

    cache: what is kept for the model in its current state, and discarded when the model changes.
    """

    def __init__(self, model: nn.Module, settings: Settings) -> None:
        self.model, self.settings = model, settings
        self.cache = Cache()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "cache": Cache()}

    @property
    def original(self) -> Original:
        """The model itself."""
        return Original(self.model, self.settings.seed, self.cache.changed_by_runs)

    def find(self, call: Call) -> Plan:
        """The plan for a call, captured if there is none.

        Raises FxlrpError for a call without tensors, a model in training mode, and one that can't be captured.
        """
        if not call.tensors:
            raise FxlrpError("There is no tensor in the call; pass the model's inputs.")
        if any(t.is_meta for t in call.tensors):
            raise FxlrpError("The call has tensors on the meta device, with no values to explain; pass real ones.")
        if any(t.is_nested for t in call.tensors):
            raise FxlrpError(f"The call has a nested tensor, which torch can't trace: {PAD}.")
        if getattr(self.model, "training", False) and not has_no_modes(self.model):
            raise FxlrpError("The model was put into training mode; call model.eval() before explaining.")
        state = self.cache.state
        if state is None or state.changed() - self.cache.changed_by_runs:  # graphs of another state are outdated
            self.cache = Cache(State(self.model))
        cache = self.cache
        shapes = call.signature(Axes.none(call.tensors)).shapes
        checked = cache.checked.get(shapes)
        plan = cache.plans.get(checked)
        if plan is None:
            plan = self._kept_plan(cache, call)
        if plan is None:
            with alone(), drawing(self.settings.seed, call.tensors):  # another thread may have captured it by now
                plan = self._kept_plan(cache, call) or self.make(cache, call)
        if plan.capture.mode is CaptureMode.THIS_INPUT:
            one = plan.axes.count(call.tensors) == 1
            values = [*widened(call.tensors), *buffers_of(self.model)]
            outdated = one and not all(map(equal, values, [*plan.capture.inputs, *plan.capture.buffers]))
        else:  # the model may take another branch at this batch size
            outdated = checked is None and not self.original.gives(plan, call)
            if outdated and plan.capture.kept:
                plan.capture.kept.unlink(missing_ok=True)
                cache.captures.clear()
                with alone(), drawing(self.settings.seed, call.tensors):
                    plan = self.make(cache, call)
                outdated = not self.original.gives(plan, call)
        if outdated:
            with alone(), drawing(self.settings.seed, call.tensors):
                plan = self.make(cache, call, fixed=True)
            self.original.check(plan, call)
        cache.checked.set(shapes, plan.key)
        return plan

    def before_rules(self) -> Cache:
        """A cache of another rulebook, which shares what does not depend on rules with this one, now and later."""
        if self.cache.state is None:
            self.cache = Cache(State(self.model))
        cache = self.cache
        return Cache(cache.state, cache.changed_by_runs, axes=cache.axes, captures=cache.captures)

    def axes(self, cache: Cache, call: Call) -> list[Axes]:
        """The possible sample axes of a call, the likeliest first."""
        if self.settings.batch != "auto":
            names = call.names, forward_names(self.model, call.args, call.kwargs)
            return [Axes.asked(self.settings.batch, call.tensors, *names)]
        guess = cache.axes.get(call.signature(Axes.none(call.tensors)).kind)
        first = Axes.first(call.tensors)
        if guess is not None and guess.fit(call.tensors) and guess.inputs != first.inputs:
            return [guess, first]
        return [first]

    def _kept_plan(self, cache: Cache, call: Call) -> Plan | None:
        """The existing plan for a call, or None."""
        for axes in self.axes(cache, call):
            sig = call.signature(axes)
            for key in ((sig.shapes, axes.count(call.tensors)), sig.shapes, sig.like):
                if plan := cache.plans.get(key):
                    return plan
        return None

    def make(self, cache: Cache, call: Call, fixed: bool = False) -> Plan:
        """Makes and keeps a plan for this call: captures the model and rewrites its graph.

        Unless `fixed`, the plan also holds for batches of any size and texts of any length if possible.
        """
        axes = self.axes(cache, call)
        signatures = [call.signature(a) for a in axes]
        longer = any(cache.first.get(sig.like) not in (None, EACH, sig.shapes) for sig in signatures)
        key = tuple(sig.shapes for sig in signatures), longer, self.settings.output
        captured = self._capture_of(cache, key, call, axes, fixed, longer)
        with no_autocast(captured.inputs):
            how = self.settings
            plan = rewrite(captured, how.rulebook, strict=how.strict, output=how.output, read=how.read)
        plan.independent = are_independent(self.model, plan.head)
        sig = call.signature(plan.axes)
        plan.key = (sig.shapes, plan.axes.count(call.tensors))
        if not fixed and captured.mode is CaptureMode.ANY_BATCH:
            plan.key = sig.like if plan.any_length else sig.shapes
        if longer and plan.key is sig.like:
            cache.plans.drop(cache.first.get(sig.like))
        elif not fixed:
            cache.first.set(sig.like, EACH if longer else sig.shapes)
        cache.axes.set(sig.kind, plan.axes)
        return cache.plans.set(plan.key, plan)

    def _capture_of(
        self,
        cache: Cache,
        key: Hashable,
        call: Call,
        axes: list[Axes],
        fixed: bool,
        longer: bool,
    ) -> Capture:
        """The captured graph for a call, to be rewritten: a copy of the one kept, unless it holds for values alone.

        key: what calls have in common that share a graph for batches of any size.
        """
        this_batch = key, fixed, tuple(a.count(call.tensors) for a in axes)
        captured = cache.captures.get(this_batch) or (None if fixed else cache.captures.get(key))
        if captured is None:
            anew = partial(self._capture_anew, call, axes, fixed, longer)
            captured = self._stored_or(anew, (key, fixed), this_batch, call)
            if captured.mode is CaptureMode.THIS_INPUT:
                return captured
            cache.captures.set(key if captured.mode is CaptureMode.ANY_BATCH else this_batch, captured)
        return replace(captured, graph=copied(captured.graph)[0])

    def _stored_or(self, anew: Callable[[], Capture], any_batch: Hashable, this_batch: Hashable, call: Call) -> Capture:
        """The graph for a call that a file holds, else a new one, which is written to a file: if there is a store.

        any_batch, this_batch: keys of the calls that the graph holds for, if its batch is symbolic and if not.
        """
        store = self.settings.store
        paths = store.paths(self.model, any_batch, this_batch) if store else []
        if store is None or not paths:
            return anew()
        for path in paths:
            if kept := store.load(path, self.model, call, self.original.returned):
                return kept
        captured = anew()
        if captured.mode is not CaptureMode.THIS_INPUT:
            store.save(paths[captured.mode is not CaptureMode.ANY_BATCH], self.model, captured)
        return captured

    def _capture_anew(self, call: Call, axes: list[Axes], fixed: bool, longer: bool) -> Capture:
        """Captures the model, with the sample axes that fit it."""
        branches = False

        def captured_at(axes: Axes) -> Capture:
            nonlocal branches
            captured = capture(self.model, call.args, call.kwargs, axes, fixed=fixed, longer=longer, branches=branches)
            branches = captured.branches
            return spelled(captured)

        certain = self.settings.batch != "auto"
        return find_samples(captured_at, axes, call.tensors, self.settings.output, sure=certain)


def has_no_modes(model: nn.Module) -> bool:
    """Whether a model is an exported program's module, which always reports training mode and can't be switched."""
    return isinstance(model, fx.GraphModule) and "eval" in vars(model)
