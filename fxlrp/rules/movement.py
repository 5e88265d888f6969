"""Ops that need no rule, whatever the method.

STRUCTURAL ones move, copy or scale values: their ordinary vector-Jacobian product moves relevance rightly, because
a ⊙ g is routed or conserved.  SHAPE_ONLY ones look at a tensor's shape or type alone: nothing flows through them.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

from fxlrp.rules.registry import STRUCTURAL, overloads, table
from fxlrp.rules.values import nearly, stands_for

aten = torch.ops.aten

MOVEMENT = (
    aten.view,
    aten.reshape,
    aten._unsafe_view,
    aten.flatten,
    aten.unflatten,
    aten.permute,
    aten.transpose,
    aten.t,
    aten.numpy_T,
    aten.mT,
    aten.swapdims,
    aten.moveaxis,
    aten.ravel,
    aten.atleast_1d,
    aten.hstack,
    aten.vstack,
    aten.swapaxes,
    aten.movedim,
    aten.squeeze,
    aten.unsqueeze,
    aten.expand,
    aten.expand_as,
    aten.view_as,
    aten.reshape_as,
    aten.broadcast_to,
    aten.repeat,
    aten.repeat_interleave,
    aten.tile,
    aten.cat,
    aten.concat,
    aten.concatenate,
    aten.stack,
    aten.split,
    aten.split_with_sizes,
    aten.tensor_split,
    aten.chunk,
    aten.unsafe_split,
    aten.unsafe_split_with_sizes,
    aten.unsafe_chunk,
    aten.unbind,
    aten.slice,
    aten.select,
    aten.narrow,
    aten.index,
    aten.index_select,
    aten.gather,
    aten.take_along_dim,
    aten.roll,
    aten.flip,
    aten.rot90,
    aten.pad,
    aten.constant_pad_nd,
    aten.im2col,
    aten.unfold,
    aten.as_strided,
    aten.pixel_shuffle,
    aten.pixel_unshuffle,
    aten.channel_shuffle,
    aten.where,
    aten.masked_fill,
    aten.slice_scatter,
    aten.select_scatter,
    aten.diagonal_scatter,
    aten.scatter,
    aten.index_put,
    aten.index_copy,
    aten.index_fill,
    aten.masked_scatter,
    aten.masked_select,
    aten.nan_to_num,
    aten.maximum,
    aten.minimum,
    aten.tril,
    aten.triu,
    aten.diagonal,
    aten.clone,
    aten.contiguous,
    aten.alias,
    aten.lift_fresh_copy,
    aten.to,
    aten._to_copy,
    aten.type_as,
    aten.dropout,
    aten.feature_dropout,
    aten.alpha_dropout,
    aten.max_pool1d,
    aten.max_pool2d,
    aten.max_pool3d,
    aten.max_pool2d_with_indices,
    aten.adaptive_max_pool2d,
    aten.amax,
    aten.amin,
    aten.min,
    aten.view_as_real,
    aten.view_as_complex,
    aten.real,
    aten.imag,
    aten.complex,
    aten._conj,
    aten.conj,
    aten._conj_physical,
    aten.resolve_conj,
    aten.unfold_copy,
    aten.diag_embed,
    aten.fliplr,
    aten.flipud,
    aten.cummax,
    aten.median,
    aten.kthvalue,
    aten.fft_fftshift,
    aten.fft_ifftshift,
    aten.max,
    aten.topk,
    aten.sort,
    aten.relu,
    aten.neg,
)
"""Routing and copying; the maximum of a window is the one value it copies, and a ReLU is a gate of ones and zeros."""

SHAPE_ONLY = frozenset(
    overload
    for packet in (
        aten.zeros_like,
        aten.ones_like,
        aten.empty_like,
        aten.full_like,
        aten.rand_like,
        aten.randn_like,
        aten.randint_like,
        aten.new_empty_strided,
        aten.fill,
        aten.new_zeros,
        aten.new_ones,
        aten.new_empty,
        aten.new_full,
        aten.heaviside,
        aten.sym_size,
        aten.sym_numel,
    )
    for overload in overloads(packet)
)
"""Nothing flows through these, although a tensor goes in and a tensor comes out: values by shape alone, or a mask."""

SHAPE_ARGUMENT: dict[object, int] = {
    aten.expand_as.default: 1,
    aten.view_as.default: 1,
    aten.reshape_as.default: 1,
    aten.type_as.default: 1,
    stands_for: 1,
    nearly: 1,
}
"""The argument of which only the shape or type is used, or through which no relevance goes."""


def carriers(node: fx.Node) -> list[fx.Node]:
    """The inputs whose values (not just shapes) the node's value depends on differentiably."""
    if node.target in SHAPE_ONLY:
        return []
    skip = SHAPE_ARGUMENT.get(node.target)
    shape_only = {node.args[skip]} if skip is not None and len(node.args) > skip else set()
    return [n for n in node.all_input_nodes if n not in shape_only or node.args[0] is n]


STRUCTURAL_ENTRIES = table(
    (STRUCTURAL, operator.getitem, nearly, *MOVEMENT),
    # a constant factor scales a and g inversely, so R = a ⊙ g passes unchanged
    (STRUCTURAL, (0,), aten.mul, aten.div, aten.multiply, aten.divide),
    (STRUCTURAL, (1,), aten.mul, aten.multiply),
)
