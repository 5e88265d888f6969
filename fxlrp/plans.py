"""Finds the rewritten graph for a call, captures it if there is none, and checks it against the model's own output."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxlrp.agreement import ROUNDINGS, is_noise, moved_by_rounding, no_fast_attention, rounding, share_apart
from fxlrp.capture.axes import Axes, Batch
from fxlrp.capture.calls import Signature, call_without_gradients, equal, names_of, refused, split_tensors
from fxlrp.capture.confine import alone
from fxlrp.capture.flat import open_output
from fxlrp.capture.model import Capture, CaptureMode, capture, forward_names
from fxlrp.capture.precision import no_autocast, widened
from fxlrp.capture.state import Attribute, State, drawing, undisturbed
from fxlrp.errors import FxlrpError
from fxlrp.graph.find_samples import find_samples, spelled
from fxlrp.graph.outputs import Output
from fxlrp.graph.plan import Plan
from fxlrp.graph.rewrite import rewrite
from fxlrp.nodes import copied, outputs_of
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

    def load(
        self, path: Path, model: nn.Module, args: tuple, kwargs: dict, run: Callable[[tuple, dict], Any]
    ) -> Capture | None: ...

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

    def find(self, args: tuple, kwargs: dict) -> tuple[Plan, list[Tensor]]:
        """The plan for a call, captured if there is none, and the tensors of the call.

        Raises FxlrpError for a call without tensors, a model in training mode, and one that can't be captured.
        """
        tensors, _ = split_tensors(args, kwargs)
        if not tensors:
            raise FxlrpError("There is no tensor in the call; pass the model's inputs.")
        if any(t.is_meta for t in tensors):
            raise FxlrpError("The call has tensors on the meta device, with no values to explain; pass real ones.")
        if getattr(self.model, "training", False) and not has_no_modes(self.model):
            raise FxlrpError("The model was put into training mode; call model.eval() before explaining.")
        state = self.cache.state
        if state is None or state.changed() - self.cache.changed_by_runs:  # graphs of another state are outdated
            self.cache = Cache(State(self.model))
        cache = self.cache
        shapes = Signature(args, kwargs, Axes.none(tensors)).shapes
        checked = cache.checked.get(shapes)
        plan = cache.plans.get(checked)
        if plan is None:
            plan = self._kept_plan(cache, args, kwargs, tensors)
        if plan is None:
            with alone(), drawing(self.settings.seed, tensors):  # another thread may have captured it by now
                plan = self._kept_plan(cache, args, kwargs, tensors) or self.capture(cache, args, kwargs, tensors)
        if plan.capture.mode is CaptureMode.THIS_INPUT:
            one = plan.axes.count(tensors) == 1
            outdated = one and not all(map(equal, widened(tensors), plan.capture.inputs))
        else:  # the model may take another branch at this batch size
            outdated = checked is None and not self._same_output(plan, tensors, args, kwargs)
            if outdated and plan.capture.kept:
                plan.capture.kept.unlink(missing_ok=True)
                cache.captures.clear()
                with alone(), drawing(self.settings.seed, tensors):
                    plan = self.capture(cache, args, kwargs, tensors)
                outdated = not self._same_output(plan, tensors, args, kwargs)
        if outdated:
            with alone(), drawing(self.settings.seed, tensors):
                plan = self.capture(cache, args, kwargs, tensors, fixed=True)
            self._check_output(plan, tensors, args, kwargs)
        cache.checked.set(shapes, plan.key)
        return plan, tensors

    def before_rules(self) -> Cache:
        """A cache of another rulebook, which shares what does not depend on rules with this one, now and later."""
        if self.cache.state is None:
            self.cache = Cache(State(self.model))
        cache = self.cache
        return Cache(cache.state, cache.changed_by_runs, axes=cache.axes, captures=cache.captures)

    def axes(self, cache: Cache, args: tuple, kwargs: dict, tensors: list[Tensor]) -> list[Axes]:
        """The possible sample axes of a call, the likeliest first."""
        if self.settings.batch != "auto":
            names = names_of(args, kwargs), forward_names(self.model, args, kwargs)
            return [Axes.asked(self.settings.batch, tensors, *names)]
        guess = cache.axes.get(Signature(args, kwargs, Axes.none(tensors)).kind)
        first = Axes.first(tensors)
        return [guess, first] if guess is not None and guess.fit(tensors) and guess.inputs != first.inputs else [first]

    def _kept_plan(self, cache: Cache, args: tuple, kwargs: dict, tensors: list[Tensor]) -> Plan | None:
        """The existing plan for a call, or None."""
        for axes in self.axes(cache, args, kwargs, tensors):
            sig = Signature(args, kwargs, axes)
            for key in ((sig.shapes, axes.count(tensors)), sig.shapes, sig.like):
                if plan := cache.plans.get(key):
                    return plan
        return None

    def capture(self, cache: Cache, args: tuple, kwargs: dict, tensors: list[Tensor], fixed: bool = False) -> Plan:
        """Captures a plan for this call; unless `fixed`, also for batches of any size and texts of any length if
        possible."""
        axes = self.axes(cache, args, kwargs, tensors)
        signatures = [Signature(args, kwargs, a) for a in axes]
        longer = any(cache.first.get(sig.like) not in (None, EACH, sig.shapes) for sig in signatures)
        key = tuple(sig.shapes for sig in signatures), longer, self.settings.output
        captured = self._captured(cache, key, args, kwargs, tensors, axes, fixed, longer)
        with no_autocast(captured.inputs):
            how = self.settings
            plan = rewrite(captured, how.rulebook, strict=how.strict, output=how.output, read=how.read)
        sig = Signature(args, kwargs, plan.axes)
        plan.key = (sig.shapes, plan.axes.count(tensors))
        if not fixed and captured.mode is CaptureMode.ANY_BATCH:
            plan.key = sig.like if plan.any_length else sig.shapes
        if longer and plan.key is sig.like:
            cache.plans.drop(cache.first.get(sig.like))
        elif not fixed:
            cache.first.set(sig.like, EACH if longer else sig.shapes)
        cache.axes.set(sig.kind, plan.axes)
        return cache.plans.set(plan.key, plan)

    def _captured(
        self,
        cache: Cache,
        key: Hashable,
        args: tuple,
        kwargs: dict,
        tensors: list[Tensor],
        axes: list[Axes],
        fixed: bool,
        longer: bool,
    ) -> Capture:
        """The captured graph for a call, to be rewritten: a copy of the one kept, unless it holds for values alone.

        key: what calls have in common that share a graph for batches of any size.
        """
        this_batch = key, fixed, tuple(a.count(tensors) for a in axes)
        captured = cache.captures.get(this_batch) or (None if fixed else cache.captures.get(key))
        if captured is None:
            anew = partial(self._capture_anew, args, kwargs, tensors, axes, fixed, longer)
            captured = self._kept_or(anew, (key, fixed), this_batch, args, kwargs)
            if captured.mode is CaptureMode.THIS_INPUT:
                return captured
            cache.captures.set(key if captured.mode is CaptureMode.ANY_BATCH else this_batch, captured)
        return replace(captured, graph=copied(captured.graph)[0])

    def _kept_or(
        self, anew: Callable[[], Capture], any_batch: Hashable, this_batch: Hashable, args: tuple, kwargs: dict
    ) -> Capture:
        """The graph for a call that a file holds, else a new one, which is written to a file: if there is a store.

        any_batch, this_batch: keys of the calls that the graph holds for, if its batch is symbolic and if not.
        """
        store = self.settings.store
        paths = store.paths(self.model, any_batch, this_batch) if store else []
        if store is None or not paths:
            return anew()
        for path in paths:
            if kept := store.load(path, self.model, args, kwargs, self.returned):
                return kept
        captured = anew()
        if captured.mode is not CaptureMode.THIS_INPUT:
            store.save(paths[captured.mode is not CaptureMode.ANY_BATCH], self.model, captured)
        return captured

    def _capture_anew(
        self, args: tuple, kwargs: dict, tensors: list[Tensor], axes: list[Axes], fixed: bool, longer: bool
    ) -> Capture:
        """Captures the model, with the sample axes that fit it."""
        branches = False

        def captured_at(axes: Axes) -> Capture:
            nonlocal branches
            captured = capture(self.model, args, kwargs, axes, fixed=fixed, longer=longer, branches=branches)
            branches = captured.branches
            return spelled(captured)

        certain = self.settings.batch != "auto"
        return find_samples(captured_at, axes, tensors, self.settings.output, sure=certain)

    def _same_output(self, plan: Plan, tensors: list[Tensor], args: tuple, kwargs: dict) -> bool:
        """Whether the graph gives the model's own output for this call, up to rounding."""
        return _is_close(plan, self._output_apart(plan, tensors, args, kwargs))

    def _output_apart(self, plan: Plan, tensors: list[Tensor], args: tuple, kwargs: dict) -> list[float]:
        """The difference of each output from the model's own, relative to the output's largest value."""
        expected = self.outputs(args, kwargs)
        with torch.no_grad(), plan.in_its_types(), self.draw(plan):
            try:
                outputs = plan.graph(*(t.detach().clone() for t in widened(tensors)))
            except (RuntimeError, IndexError):  # captured for other shapes or values
                return [float("inf")]
        ends = outputs_of(plan.graph)
        if any(f.ndim != n.meta["val"].ndim for f, n in zip(outputs, ends, strict=False)):
            return [float("inf")]  # the graph squeezed out an axis of length 1
        shares = [
            share_apart(f, e) if e.is_floating_point() and e.numel() and e.isfinite().all() else 0.0
            for f, e in zip(outputs, expected, strict=False)
        ]
        if _is_close(plan, shares):
            return shares
        noisy = [share > 0 and is_noise(f, e, tensors) for share, f, e in zip(shares, outputs, expected, strict=False)]
        if not any(noisy):
            return shares
        moved = self.outputs(*pytree.tree_map_only(Tensor, moved_by_rounding, (args, kwargs)))
        return [
            0.0 if noise and share <= ROUNDINGS * share_apart(m, e) else share
            for share, noise, m, e in zip(shares, noisy, moved, expected, strict=False)
        ]

    def _check_output(self, plan: Plan, tensors: list[Tensor], args: tuple, kwargs: dict) -> None:
        """Raises FxlrpError if a graph captured for this call gives another output than the model, unless the model is
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
                "It is torch's fast path of nn.TransformerEncoder and nn.MultiheadAttention, which sets what is padded "
                "to zero and lays out its result in another order, so that writes into views of it go elsewhere: turn "
                "it off by torch.backends.mha.set_fastpath_enabled(False), or leave the padding out of what follows."
                if slow
                else "Take out what asks whether it is traced (torch.compiler.is_exporting, is_compiling)."
            )
        )

    def check_rows(
        self, plan: Plan, axes: Axes, rows: Sequence[object], output: object, args: tuple, kwargs: dict
    ) -> None:
        """Raises FxlrpError if samples alone get other outputs than within their batch, unless the model is random."""
        single = [plan.axes.rows(tensors_of(row)[plan.explained]) for row in rows]
        batch = axes.rows(tensors_of(output)[plan.explained])
        alike = len({row.shape[1:] for row in single}) == 1 and _is_close(plan, [share_apart(torch.cat(single), batch)])
        if alike or not batch.isfinite().all():
            return
        if torch.equal(batch, axes.rows(self.outputs(args, kwargs, seed=1)[plan.explained])):
            raise FxlrpError(
                "A sample of this batch alone has another output than among the others (is it padded to the longest of "
                "them?), and they can't be explained together; explain one sample at a time."
            )

    def outputs(self, args: tuple, kwargs: dict, seed: int = 0) -> list[Tensor]:
        """The tensors that the model itself returns for a call."""
        return [t.detach() for t in tensors_of(self.returned(args, kwargs, seed))]

    def returned(self, args: tuple, kwargs: dict, seed: int = 0) -> object:
        """Calls the model itself on copies of the tensors, which it may write into, and restores its state.

        Raises FxlrpError if the model refuses the call."""
        args, kwargs = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
        with undisturbed(self.model, self.settings.seed + seed) as changed:
            try:
                returned = call_without_gradients(self.model, args, kwargs)
            except Exception as error:
                raise refused(error) from error
        self.cache.changed_by_runs.update(changed)
        return returned

    def draw(self, plan: Plan) -> AbstractContextManager:
        """A context to run a graph in, with random numbers by the seed if it is random; restores torch's state."""
        return drawing(self.settings.seed, plan.capture.inputs) if plan.random else nullcontext()


def _is_close(plan: Plan, shares: Sequence[float]) -> bool:
    """Whether outputs equal the model's own up to rounding.  shares: their differences relative to their largest value;
    half precision and quantisation may add up over the layers to an eighth."""
    explained = outputs_of(plan.graph)[plan.explained]
    return max(shares, default=0.0) <= (0.125 if plan.capture.answers_apart else rounding(explained.meta["val"]))


def has_no_modes(model: nn.Module) -> bool:
    """Whether a model is an exported program's module, which always reports training mode and can't be switched."""
    return isinstance(model, fx.GraphModule) and "eval" in vars(model)


def tensors_of(returned: object) -> list[Tensor]:
    """The tensors in a model's output."""
    return [t for t in pytree.tree_leaves(open_output(returned)) if isinstance(t, Tensor)]
