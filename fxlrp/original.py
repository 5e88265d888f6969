"""Runs the model itself beside its graphs, and compares what they give."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import repeat

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxlrp.agreement import ROUNDINGS, is_noise, moved_by_rounding, no_fast_attention, rounding, share_apart
from fxlrp.capture.axes import Axes
from fxlrp.capture.buffers import copies
from fxlrp.capture.calls import Call, call_without_gradients, refused
from fxlrp.capture.flat import open_output
from fxlrp.capture.precision import widened
from fxlrp.capture.state import Attribute, drawing, undisturbed
from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.nodes import outputs_of


@dataclass(frozen=True, eq=False)
class Original:
    """The model as it was given to `convert`.

    seed: by which it draws random numbers.  changed_by_runs: the attributes that its runs changed, kept up to date.
    """

    model: nn.Module
    seed: int
    changed_by_runs: set[Attribute]

    def gives(self, plan: Plan, call: Call) -> bool:
        """Whether a graph gives the model's own output for this call, up to rounding."""
        return _is_close(plan, self._apart(plan, call))

    def _apart(self, plan: Plan, call: Call) -> list[float]:
        """The difference of each output from the model's own, relative to the output's largest value."""
        expected = self.outputs(call)
        with torch.no_grad(), plan.in_its_types(), self.draw(plan):
            try:
                outputs = plan.graph(*copies(widened(call.tensors)))
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
        noisy = [
            share > 0 and is_noise(f, e, call.tensors) for share, f, e in zip(shares, outputs, expected, strict=False)
        ]
        if not any(noisy):
            return shares
        moved = [self.outputs(call.mapped(partial(moved_by_rounding, period=period))) for period in (2, 3, 5)]
        by_rounding = [max(map(share_apart, of, repeat(e))) for *of, e in zip(*moved, expected, strict=False)]
        return [
            0.0 if noise and (moves > 0.1 or share <= ROUNDINGS * moves or not e.any()) else share
            for share, noise, moves, e in zip(shares, noisy, by_rounding, expected, strict=False)
        ]

    def check(self, plan: Plan, call: Call) -> None:
        """Raises FxlrpError if a graph captured for this call gives another output than the model, unless the model is
        random."""
        shares = self._apart(plan, call)
        if _is_close(plan, shares):
            return
        first, second = self.outputs(call), self.outputs(call, seed=1)
        if not all(map(torch.equal, first, second)):
            return
        names = zip(plan.capture.output_names, shares, strict=False)
        parted = ", ".join(
            f"{name or 'its output'} by {share:.0%} of its largest value" for name, share in names if share
        )
        with no_fast_attention():
            slow = self.gives(plan, call)
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

    def check_rows(self, plan: Plan, axes: Axes, rows: Sequence[object], output: object, call: Call) -> None:
        """Raises FxlrpError if samples alone get other outputs than within their batch, unless the model is random."""
        single = [plan.axes.rows(tensors_of(row)[plan.explained]) for row in rows]
        batch = axes.rows(tensors_of(output)[plan.explained])
        alike = len({row.shape[1:] for row in single}) == 1 and _is_close(plan, [share_apart(torch.cat(single), batch)])
        if alike or not batch.isfinite().all():
            return
        if torch.equal(batch, axes.rows(self.outputs(call, seed=1)[plan.explained])):
            raise FxlrpError(
                "A sample of this batch alone has another output than among the others (is it padded to the longest of "
                "them?), and they can't be explained together; explain one sample at a time."
            )

    def outputs(self, call: Call, seed: int = 0) -> list[Tensor]:
        """The tensors that the model itself returns for a call."""
        return [t.detach() for t in tensors_of(self.returned(call, seed))]

    def returned(self, call: Call, seed: int = 0) -> object:
        """Calls the model itself on copies of the tensors, which it may write into, and restores its state.

        Raises FxlrpError if the model refuses the call."""
        copies = call.mapped(lambda t: t.detach().clone())
        with undisturbed(self.model, self.seed + seed) as changed:
            try:
                returned = call_without_gradients(self.model, copies.args, copies.kwargs)
            except Exception as error:
                raise refused(error) from error
        self.changed_by_runs.update(changed)
        return returned

    def draw(self, plan: Plan) -> AbstractContextManager:
        """A context to run a graph in, with random numbers by the seed if it is random; restores torch's state."""
        return drawing(self.seed, plan.capture.inputs) if plan.random else nullcontext()


def _is_close(plan: Plan, shares: Sequence[float]) -> bool:
    """Whether outputs equal the model's own up to rounding.  shares: their differences relative to their largest value;
    half precision and quantisation may add up over the layers to an eighth."""
    explained = outputs_of(plan.graph)[plan.explained]
    return max(shares, default=0.0) <= (0.125 if plan.capture.answers_apart else rounding(explained.meta["val"]))


def tensors_of(returned: object) -> list[Tensor]:
    """The tensors in a model's output."""
    return [t for t in pytree.tree_leaves(open_output(returned)) if isinstance(t, Tensor)]
