"""Captures a model with example inputs as a flat, functional ATen graph with a symbolic batch.

torch.export does the tracing.  The captured graph takes the tensors found in (args, kwargs) in pytree order and
returns the tensors found in the model's output; everything else in them is constant for one *signature*.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from fxlrp.capture.axes import Axes
from fxlrp.capture.buffers import buffers_of, copies
from fxlrp.capture.caches import caches_cleaned
from fxlrp.capture.calls import lengths_of, names_of, split_tensors
from fxlrp.capture.flat import Flat, OfModel, Returned, close_output
from fxlrp.capture.functionalize import plain_ops
from fxlrp.capture.functions import hide_layers, resolve_recorded
from fxlrp.capture.objects import close_objects
from fxlrp.capture.quantised import hide_packed
from fxlrp.capture.refusals import raised_by, refuse, refuse_shared_out
from fxlrp.capture.state import draws_kept
from fxlrp.capture.symbols import free_symbols
from fxlrp.capture.trace import trace_flat
from fxlrp.capture.twin import twin
from fxlrp.errors import FxlrpError
from fxlrp.nodes import outputs_of

aten = torch.ops.aten


class CaptureMode(Enum):
    """How a model was captured."""

    ANY_BATCH = "torch.export, for batches of any size"
    THIS_BATCH = "torch.export, for batches of one size"
    THIS_INPUT = "make_fx, for the values of one sample: the model branches on them"


@dataclass
class Capture:
    """A captured model.

    graph: takes the input tensors, returns the output tensors, both flat; weights are attributes shared with the model.
    inputs: the example tensors it was captured with, two samples along each batch axis.
    names: the path of each input tensor in the call, e.g. ``args[0]`` or ``kwargs['input_ids']``.
    parameters: forward's name for each input tensor, e.g. ``x`` or ``input_ids``.
    mode: how it was captured, which determines the calls that the graph holds for.
    axes: the sample axes of the call.
    returned: the structure of the model's output, and the path of each output tensor in it.
    lengths: the axes of each input that may be sequence lengths.
    narrow: the types of the call's tensors and of the model's outputs, if some of the model is in half precision and
    `graph` and `inputs` are in float32; empty for all other models.
    branches: whether the model branches on values, so that the trace holds for the values of its inputs.
    nearly: whether the graph's output equals the model's only up to rounding, as for a quantised model.
    buffers: the values of the model's buffers, if the graph holds for these alone.
    kept: the file that it was read from, which may be outdated.
    tried: what its ops do to the samples, as far as that was tried: see `fxlrp.graph.layouts`.
    """

    graph: fx.GraphModule
    inputs: list[Tensor]
    names: list[str]
    parameters: list[str]
    mode: CaptureMode
    returned: Returned
    axes: Axes
    lengths: list[tuple[int, ...]]
    narrow: list[list[torch.dtype]] = field(default_factory=list)
    branches: bool = False
    nearly: bool = False
    buffers: list[Tensor] = field(default_factory=list, repr=False)
    kept: Path | None = None
    tried: dict[tuple, Any] = field(default_factory=dict, repr=False)

    @property
    def any_length(self) -> bool:
        """Whether it holds for sequences of any length: each length is still a symbol other than the batch's."""
        if self.mode is not CaptureMode.ANY_BATCH:
            return False
        shapes = [n.meta["val"].shape for n in self.graph.graph.find_nodes(op="placeholder")]
        batches = {
            s for n, a in zip(shapes, self.axes.inputs, strict=True) if a is not None for s in free_symbols(n[a])
        }
        sizes = [shape[a] for shape, at in zip(shapes, self.lengths, strict=True) for a in at]
        return bool(sizes) and all(free_symbols(n) - batches for n in sizes)

    @property
    def answers_apart(self) -> bool:
        """Whether the output comes from the model itself, and the graph serves only to explain it."""
        return bool(self.narrow) or self.nearly

    def unflatten(self, tensors: tuple[Tensor, ...]) -> Any:
        """The model's own output object, with `tensors` in place of its tensors."""
        it = iter(tensors)
        leaves = [next(it) if leaf is Tensor else leaf for leaf in self.returned.leaves]
        return close_objects(close_output(pytree.tree_unflatten(leaves, self.returned.spec)))

    @property
    def output_names(self) -> list[str]:
        """The path of each output tensor in the model's output, e.g. ``['logits']``."""
        return self.returned.names


def capture(
    model: nn.Module,
    args: tuple,
    kwargs: dict,
    axes: Axes | None = None,
    *,
    fixed: bool = False,
    longer: bool = False,
    branches: bool = False,
    itself: bool = False,
) -> Capture:
    """Traces `model` on (args, kwargs) with samples at `axes` (default: the first axes) while no other thread traces.

    Traces a twin of the model, because other threads may run the model meanwhile; traces the model itself if `itself`,
    or if the model runs and its twin does not.

    First tries a symbolic batch with symbolic text lengths (with `longer` also those of vectors and shared masks, which
    takes torch several times as long); then a symbolic batch alone; then, or at once if `fixed`, the given shapes; and
    at last, or at once if the model is known to branch on values (`branches`), the run on the first sample.

    Raises FxlrpError, with the line in the user's model, if no mode succeeds.
    """
    tensors, rebuild = split_tensors(args, kwargs)
    refuse_shared_out(model, tensors)
    axes = Axes.first(tensors) if axes is None else axes
    seen: list[Returned] = []
    traced = model if itself else _twin(model)
    flat = Flat(traced, rebuild, seen)
    flat.quantised = traced is not model and _hide_untraceable(model, traced)
    attempts = _attempts(copies(tensors), axes, longer)
    attempts = attempts[-2:] if fixed or axes.whole else attempts
    outcome = _trace(model, flat, attempts, axes, axes.count(tensors), branches)
    if outcome.held is None:
        whole, alone = (partial(_of_copies, rebuild, inputs) for inputs in (tensors, attempts[-1].inputs))
        if traced is not model and raised_by(traced, *whole()) and not raised_by(model, *whole()):
            how = {"fixed": fixed, "longer": longer, "branches": outcome.branches}
            return capture(model, args, kwargs, axes, **how, itself=True)
        refuse(model, whole, alone, outcome.errors[0])
    graph, inputs, mode = outcome.held
    _mark_identities(graph, seen[-1].untouched)
    names, called = names_of(args, kwargs), forward_names(model, args, kwargs)
    about = graph, inputs, names, called, mode, seen[-1], axes, length_axes(tensors, axes)
    buffers = copies(buffers_of(model)) if mode is CaptureMode.THIS_INPUT else []
    return Capture(*about, branches=outcome.branches, nearly=flat.quantised, buffers=buffers)


def _of_copies(rebuild: Callable[[list[Tensor]], tuple[tuple, dict]], inputs: list[Tensor]) -> tuple[tuple, dict]:
    """The (args, kwargs) of a call of copies, which a model may write into."""
    return rebuild(copies(inputs))


class Attempt(NamedTuple):
    """One way to trace a model: on these inputs, with the axes in `dims` symbolic; None traces their values."""

    mode: CaptureMode
    inputs: list[Tensor]
    dims: tuple | None


@dataclass
class Outcome:
    """What came of the attempts to trace a model.

    branches: whether the model is known to branch on values.  errors: what the attempts raised.
    held: the first graph that holds, with its inputs and the calls that it holds for; None if there is none.
    """

    branches: bool
    errors: list[Exception] = field(default_factory=list)
    held: tuple[fx.GraphModule, list[Tensor], CaptureMode] | None = None


def _trace(
    model: nn.Module, flat: Flat, attempts: Sequence[Attempt], axes: Axes, batch: int, branches: bool
) -> Outcome:
    """Makes attempts to trace a model until one holds, of one that branches on values the last alone.

    batch: the number of samples in the call.
    """
    outcome = Outcome(branches)
    for attempt, after in zip(attempts, [*attempts[1:], None], strict=True):
        if outcome.branches and attempt.mode is not CaptureMode.THIS_INPUT:
            continue
        try:
            with caches_cleaned(model), draws_kept():
                graph = trace_flat(flat, attempt.inputs, attempt.dims)
            resolve_recorded(graph, attempt.inputs, plain_ops)
        except FxlrpError:
            raise
        except Exception as problem:
            cause = problem.__cause__ if isinstance(problem, OfModel) else None
            outcome.errors.append(cause if isinstance(cause, Exception) else problem)
            outcome.branches |= isinstance(cause, GuardOnDataDependentSymNode)
            continue
        if mode := _mode_of(graph, attempt, after, axes, batch):
            outcome.held = graph, attempt.inputs, mode
            break
    return outcome


def length_axes(tensors: list[Tensor], axes: Axes) -> list[tuple[int, ...]]:
    """The axes of each tensor of a call that may be sequence lengths."""
    return [lengths_of(t, axis) for t, axis in zip(tensors, axes.inputs, strict=True)]


def example_inputs(tensors: list[Tensor], axes: Axes, mode: CaptureMode) -> list[Tensor]:
    """The inputs that a call's graph of this mode is captured with."""
    detached = copies(tensors)
    return next(attempt.inputs for attempt in _attempts(detached, axes, False) if attempt.mode is mode)


def _attempts(tensors: list[Tensor], axes: Axes, longer: bool) -> list[Attempt]:
    """The ways to trace a call, the most general first."""
    pair = axes.each(_two, tensors)  # export specialises batches of 0 and 1
    single = axes.each(lambda t, axis: t.narrow(axis, 0, 1), pair)
    auto = torch.export.Dim.AUTO
    batch: list[dict[int, Any]] = [{} if axis is None else {axis: auto} for axis in axes.inputs]
    lengths = [
        dict.fromkeys(lengths_of(t, axis), auto) if longer or (t.ndim == 2 and axis is not None) else {}
        for t, axis in zip(tensors, axes.inputs, strict=True)
    ]
    both = [b | n for b, n in zip(batch, lengths, strict=True)]
    symbolic = [both, batch] if both != batch else [batch]
    return [
        *(Attempt(CaptureMode.ANY_BATCH, pair, tuple(dim or None for dim in dims)) for dims in symbolic),
        Attempt(CaptureMode.THIS_BATCH, tensors, (None,) * len(tensors)),
        Attempt(CaptureMode.THIS_INPUT, single, None),
    ]


def _mode_of(
    graph: fx.GraphModule, attempt: Attempt, after: Attempt | None, axes: Axes, batch: int
) -> CaptureMode | None:
    """The calls that a traced graph holds for; None if the attempt after it is to be made instead.

    batch: the number of samples in the call.
    """
    if attempt.mode is not CaptureMode.ANY_BATCH or _any_batch(graph, axes):
        return attempt.mode
    if after is not None and after.mode is attempt.mode:  # with fixed lengths, it may hold for any batch
        return None
    specialised_to_pair = axes.count(attempt.inputs) != batch
    return None if specialised_to_pair else CaptureMode.THIS_BATCH


def _any_batch(graph: fx.GraphModule, axes: Axes) -> bool:
    """Whether every axis of samples is still symbolic after tracing."""
    places = zip(graph.graph.find_nodes(op="placeholder"), axes.inputs, strict=True)
    return all(free_symbols(n.meta["val"].shape[axis]) for n, axis in places if axis is not None)


def forward_names(model: nn.Module, args: tuple, kwargs: dict) -> list[str]:
    """The model's forward's name for each tensor in a call, as "input_ids" or "batch.pixels"."""
    try:
        parameters = list(inspect.signature(model.forward).parameters)
    except ValueError:  # a traced module's forward
        forward: Any = model.forward
        parameters = [a.name for a in forward.schema.arguments][1:]

    def called(path: tuple[Any, ...]) -> str:
        first, *rest = (str(getattr(key, "idx", getattr(key, "key", getattr(key, "name", key)))) for key in path[1:])
        first = parameters[int(first)] if path[0].idx == 0 and int(first) < len(parameters) else first
        return ".".join([first, *rest])

    leaves = pytree.tree_leaves_with_path((args, kwargs))
    return [called(path) for path, leaf in leaves if isinstance(leaf, Tensor)]


def _twin(model: nn.Module) -> nn.Module:
    """A twin of the model, or the model itself if some attribute can't be copied."""
    try:
        return twin(model)
    except Exception:
        return model


def _hide_untraceable(model: nn.Module, traced: nn.Module) -> bool:
    """Makes what can't be traced opaque in the twin of a model; returns whether any of it is quantised."""
    hide_layers(model, traced)
    return hide_packed(traced)


def _mark_identities(gm: fx.GraphModule, places: list[int]) -> None:
    """Adds an alias for each identity module at the output, which leaves no op in the graph."""
    output = gm.graph.output_node()
    outputs = outputs_of(gm)
    for i in places:
        with gm.graph.inserting_before(output):
            alias = gm.graph.call_function(aten.alias.default, (outputs[i],))
        alias.meta = dict(outputs[i].meta)
        outputs[i] = alias
    output.args = (tuple(outputs),)


def _two(t: Tensor, axis: int) -> Tensor:
    """The first sample and the last, or two samples of zeros for an empty batch."""
    if not t.shape[axis]:
        return t.new_zeros([2 if i == axis else n for i, n in enumerate(t.shape)])
    return torch.cat([t.narrow(axis, 0, 1), t.narrow(axis, t.shape[axis] - 1, 1)], axis).detach()
