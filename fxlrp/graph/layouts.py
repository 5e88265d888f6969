"""Finds the sample axis of nodes op by op: where the samples of an op's inputs are known, trying the op on random
values (or, if it moves entries, on the numbers of their samples) shows where those of its result are, and that it keeps
them apart.

This takes a fraction of a network's run: repeated ops (in blocks, layers of one shape) are tried once, and products and
pointwise ops, whose shapes suffice, not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter, getitem
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxlrp.capture.symbols import free_symbols, hint
from fxlrp.nodes import args_of, target_of
from fxlrp.ops import about, is_pointwise, of_kind
from fxlrp.rules.per_sample import SampleAxis, entries_of

aten = torch.ops.aten

SHAPES_TELL = {*of_kind("matmul", "product")}
"""Ops that keep samples apart if their result has an axis for them: they sum products over other axes."""

Layout = SampleAxis | list["SampleAxis | None"] | None
"""Where the samples of a node's value are, or of each tensor in it; None where that is not known."""


def candidates(traced: Tensor, symbols: set) -> list[int]:
    """The axes of a traced tensor whose size contains a symbol of the batch."""
    return [axis for axis, size in enumerate(traced.shape) if free_symbols(size) & symbols]


def plain(traced: Tensor, symbols: set) -> int | None:
    """The axis of a traced tensor that counts the samples and nothing else, if its shape shows one."""
    axes = candidates(traced, symbols)
    if len(axes) == 1 and traced.shape[axes[0]].node.expr in symbols:  # type: ignore[attr-defined]
        return axes[0]
    return None


class Layouts:
    """The layouts of the nodes that depend on samples, as far as the ops show them.

    starts: the nodes where the samples are known, and their layouts.
    count: the number of samples in the inputs that the graph was captured with.
    symbols: the symbols that stand for it.
    tried: what trials of ops showed so far, of copies of this graph too; more is added.
    """

    def __init__(
        self,
        gm: fx.GraphModule,
        inputs: Sequence[Tensor],
        starts: Mapping[fx.Node, SampleAxis],
        count: int,
        symbols: set,
        tried: dict[tuple, Layout],
    ) -> None:
        self.gm, self.count, self.symbols = gm, count, symbols
        self.random = torch.Generator().manual_seed(0)
        self.shared: dict[fx.Node, Any] = dict(zip(gm.graph.find_nodes(op="placeholder"), inputs, strict=True))
        self.tried, self.tried_here = tried, dict[tuple, Layout]()
        self.of: dict[fx.Node, Layout] = {}
        for node in gm.graph.nodes:
            if node in starts:
                self.of[node] = starts[node]
            elif node.target is not aten.sym_size.int and any(n in self.of for n in node.all_input_nodes):
                self.of[node] = self._after(node)

    def _after(self, node: fx.Node) -> Layout:
        """The layout of a node that follows from those of its inputs."""
        before = {n: self.of[n] for n in node.all_input_nodes if n in self.of}
        if node.target is getitem:
            whole, place = before.get(node.args[0]), node.args[1]  # type: ignore[arg-type]
            return whole[place] if isinstance(whole, list) and isinstance(place, int) else None
        if "val" not in node.meta or not all(isinstance(layout, SampleAxis) for layout in before.values()):
            return None
        return self._by_shapes(node, before) or self._by_trial(node, before)  # type: ignore[arg-type]

    def _by_shapes(self, node: fx.Node, before: Mapping[fx.Node, SampleAxis]) -> SampleAxis | None:
        """The layout of the result of a product or a pointwise op, if shapes tell it."""
        op, val = node.target, node.meta["val"]
        if not isinstance(val, Tensor):
            return None
        shared = [n.meta["val"] for n in node.all_input_nodes if n not in before]
        counted = any(candidates(v, self.symbols) for v in shared if isinstance(v, Tensor))
        axis = plain(val, self.symbols)
        if op in SHAPES_TELL and axis is not None and not counted:
            return SampleAxis(axis)
        if about(op).kind == "convolution" or op is aten.linear.default:
            x, weight, *more = args_of(node)
            unmixed = val.ndim - 1
            if op is not aten.linear.default:  # an input without a batch has one axis less than the weight
                unmixed = int(val.ndim == weight.meta["val"].ndim)
            alone = x in before and not any(n in before for n in (weight, *more) if isinstance(n, fx.Node))
            return before[x] if alone and before[x].axis < unmixed else None
        if "_pool" in str(op) and len(before) == 1:  # it mixes as many of the last axes as its window has
            (layout,) = before.values()
            window = node.args[1]
            return layout if isinstance(window, list) and layout.axis < val.ndim - len(window) else None
        by_statistics = op is aten.batch_norm.default and not node.args[5]  # its own, not the batch's
        if not (is_pointwise(op) or about(op).copies or by_statistics):
            return None
        aligned = {layout._replace(axis=layout.axis + val.ndim - n.meta["val"].ndim) for n, layout in before.items()}
        return aligned.pop() if len(aligned) == 1 else None

    def _by_trial(self, node: fx.Node, before: Mapping[fx.Node, SampleAxis]) -> Layout:
        """The layout of a node's value, computed from values made for it."""
        signature = self._signature(node, before)
        indices = any(n not in before and _counts(n) for n in node.all_input_nodes)
        tried = self.tried_here if indices else self.tried  # a copy of the graph may have others of the same name
        if signature not in tried:
            facts = about(node.target)
            numbers = facts.routes and not facts.parts and all(n.meta["val"].is_floating_point() for n in before)
            trials = (self._moved, self._changed) if numbers else (self._changed,)
            found = (self._try(trial, node, before) for trial in trials)
            tried[signature] = next((layout for layout in found if layout is not None), None)
        return tried[signature]

    def _try(self, trial: Callable, node: fx.Node, before: Mapping[fx.Node, SampleAxis]) -> Layout:
        """The layout that fits what a trial shows: masks for two samples of the entries of each result that are
        theirs."""
        traced = node.meta["val"]
        try:
            shown = zip(pytree.tree_leaves(traced), *trial(node, before), strict=True)
            each = [self._fitting(t, masks) for t, *masks in shown]
        except (RuntimeError, IndexError, ValueError, NotImplementedError, TypeError):  # the op refuses such values
            return None
        return each[0] if isinstance(traced, Tensor) else each

    def _fitting(self, traced: Tensor, masks: Sequence[Tensor]) -> SampleAxis | None:
        """The only layout of a traced tensor in which the first and the last sample have only the entries in their
        masks; None if there are several."""
        axis, axes = plain(traced, self.symbols), candidates(traced, self.symbols) or range(traced.ndim)
        fits = [
            {SampleAxis(axis)} if axis is not None and not mask.any() else set(locate(mask, axes, self.count, sample))
            for mask, sample in zip(masks, self._two, strict=True)
        ]
        common = set.intersection(*fits)
        return common.pop() if len(common) == 1 else None

    @property
    def _two(self) -> list[int]:
        return sorted({0, self.count - 1})

    def _signature(self, node: fx.Node, before: Mapping[fx.Node, SampleAxis]) -> tuple:
        """A signature of a node's call; nodes with the same one treat their samples alike."""

        def describe(n: fx.Node) -> str:
            val = n.meta["val"]
            if not isinstance(val, Tensor):
                return repr(val)
            name = n.name if n not in before and _counts(n) else None
            places = candidates(val, self.symbols)
            return repr([name, list(map(hint, val.shape)), val.dtype, before.get(n), places])

        return (
            self.count,
            frozenset(self.symbols),
            node.target,
            repr(fx.node.map_arg((node.args, node.kwargs), describe)),
        )

    def _changed(self, node: fx.Node, before: Mapping[fx.Node, SampleAxis]) -> Iterator[list[Tensor]]:
        """Where a node's value, computed from random inputs, changes with each of two samples."""
        values = {n: self._value(n, n in before) for n in node.all_input_nodes}
        outputs = _call(node, values)
        for sample in self._two:
            others = {n: _other_values(values[n], layout, sample) for n, layout in before.items()}
            yield list(map(differ, outputs, _call(node, {**values, **others})))

    def _moved(self, node: fx.Node, before: Mapping[fx.Node, SampleAxis]) -> Iterator[list[Tensor]]:
        """Where a node that moves entries puts those of each of two samples: it is given their samples' numbers."""
        dtype = torch.uint8 if self.count < 255 else torch.int32
        values = {}
        for n in node.all_input_nodes:
            val = n.meta["val"]
            if n in before:
                axis, earlier, after = before[n]
                owner = torch.arange(1, self.count + 1, dtype=dtype, device=val.device)
                owner = owner.repeat_interleave(after).repeat(earlier)
                owner = owner.view([-1 if i == axis else 1 for i in range(val.ndim)])
                values[n] = owner.expand(_lengths(val)).contiguous()
            elif isinstance(val, Tensor) and val.is_floating_point():
                values[n] = torch.zeros(_lengths(val), dtype=dtype, device=val.device)
            else:
                values[n] = self._shared(n)
        outputs = _call(node, values)
        for sample in self._two:
            yield [out == sample + 1 for out in outputs]

    def _value(self, n: fx.Node, has_samples: bool) -> Any:
        """A value for a node: what samples share, if it is no floating-point number, is computed; all else is random.

        Raises ValueError for a size that depends on values."""
        val = n.meta["val"]
        if not isinstance(val, Tensor):
            return hint(val)
        if not has_samples and (n.op == "get_attr" or not val.is_floating_point()):
            return self._shared(n)
        return _random_like(torch.empty(_lengths(val), dtype=val.dtype, device=val.device), self.random)

    def _shared(self, n: fx.Node) -> Any:
        """The value of a node that depends on no sample."""
        if n not in self.shared:
            if n.op == "get_attr":
                self.shared[n] = attrgetter(str(n.target))(self.gm)
            elif isinstance(n.meta["val"], Tensor) and n.op == "call_function" and n not in self.of:
                self.shared[n] = _call(n, {m: self._shared(m) for m in n.all_input_nodes})[0]
            else:
                self.shared[n] = hint(n.meta["val"])
        return self.shared[n]


def _counts(n: fx.Node) -> bool:
    """Whether trials take a node's own value, as of indices and masks, and no random one."""
    val = n.meta["val"]
    return isinstance(val, Tensor) and not val.is_floating_point()


def locate(changed: Tensor, axes: Iterable[int], count: int, sample: int = 0) -> Iterator[SampleAxis]:
    """The layouts [before, count, after] of one of `axes` in which all changes are confined to the sample."""
    for axis in axes:
        size = changed.shape[axis]
        if not changed.numel():
            return
        line = changed.movedim(axis, 0).reshape(size, -1).any(1)
        for before in range(1, size // count + 1):
            if size % (before * count) == 0:
                others = line.view(before, count, -1).clone()
                others[:, sample] = False
                if line.any() and not others.any():
                    yield SampleAxis(axis, before, size // count // before)


def _other_values(t: Tensor, layout: SampleAxis, sample: int) -> Tensor:
    """A copy of a tensor with other values of one sample, in the same range."""
    t = t.clone()
    own = entries_of(sample, t.shape[layout.axis], layout).to(t.device)
    rows = t.index_select(layout.axis, own)
    counts = not (t.is_floating_point() or t.is_complex())
    return t.index_copy_(layout.axis, own, (1 - rows.int()).to(t.dtype) if counts else 2 - rows)


def _lengths(traced: Tensor) -> list[int]:
    """The shape of a traced tensor in the example; raises ValueError if it depends on values."""
    lengths = [length for size in traced.shape if (length := hint(size)) is not None]
    if len(lengths) < traced.ndim:
        raise ValueError("how large this is depends on values")
    return lengths


def _random_like(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers from ½ to 1½, so also the parts of complex ones; for booleans and integers, 0 or 1."""
    if like.is_complex():
        parts = torch.rand(2, *like.shape, generator=generator) + 0.5
        return torch.complex(*parts).to(like.device, like.dtype)
    numbers = torch.rand(like.shape, generator=generator) + 0.5
    return (numbers if like.is_floating_point() else numbers.floor()).to(like.device, like.dtype)


def _call(node: fx.Node, values: Mapping[fx.Node, Any]) -> list[Tensor]:
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    with torch.no_grad():
        return [t for t in pytree.tree_leaves(target_of(node)(*args, **kwargs)) if isinstance(t, Tensor)]


def differ(a: Tensor, b: Tensor) -> Tensor:
    """A mask of the entries that differ by more than rounding."""
    if not a.is_floating_point() and not a.is_complex():
        return a != b
    size = a.abs()
    scale = size.where(size.isfinite(), 0).amax() if a.numel() else 0
    return ~((a - b).abs() <= 8 * torch.finfo(a.dtype).eps * scale) & ~((a == b) | (a.isnan() & b.isnan()))
