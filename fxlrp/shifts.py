"""Shifts: the mean of the maps of slightly moved pictures, each moved back, which does not show the grid of patches.

A model that cuts a picture into patches gives each of them relevance as a whole; where their borders lie is arbitrary.
Berend et al., "ResLRP", 2026 (ResLRP+: four shifts suffice).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from operator import mul
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxlrp.answers import ModelCall
from fxlrp.attribution import Attribution
from fxlrp.engine.seeds import Question
from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.nodes import args_of
from fxlrp.ops import about
from fxlrp.rows import map_lists

CELL = 8
"""The least side, in pixels, of the square that shifts are spread over."""
Move = tuple[int, int]
"""The pixels that a picture moves, down and to the right."""


def moves_within(cell: int, count: int) -> list[Move]:
    """`count` moves spread evenly over a square of side `cell` around 0, which is the first of them: the R2 sequence
    (Roberts, "The Unreasonable Effectiveness of Quasirandom Sequences", 2018)."""
    powers = 0.7548776662466927, 0.5698402909980532  # of 1/p, p the real root of p³ = p + 1
    down, right = ([int(cell * ((0.5 + i * power) % 1)) - cell // 2 for i in range(count)] for power in powers)
    return list(zip(down, right, strict=True))


def mean_over_shifts(
    call: ModelCall, answers: Sequence[Attribution], questions: Sequence[Question]
) -> list[Attribution]:
    """Replaces the maps of pictures [B, C, H, W] in the answers to a call by their mean over the explainer's shifts.

    The moved pictures are one batch, with the call's other tensors repeated, unless samples share an explained input.
    Pixels that a move brings in repeat the edge; the mean at a pixel is over the moves that keep it in the picture.

    Raises FxlrpError if no explained input is a picture.
    """
    plan, args, kwargs, shifts = call.plan, call.args, call.kwargs, call.explainer.settings.shifts
    names, batch = answers[0].names, call.batch
    pictures = {n: x.shape[-2:] for n, x in zip(names, answers[0].inputs, strict=True) if x.ndim == 4}
    if not pictures:
        raise FxlrpError("shifts= moves pictures [batch, channels, height, width], and no explained input is one.")
    axes = dict(zip(call.names, plan.axes.inputs, strict=True))
    moves = moves_within(max(CELL, _stride(plan)), shifts)[1:]
    sums = [list(a.each) for a in answers]
    for group in [[move] for move in moves] if any(axes[n] is None for n in names) else [moves]:
        moved = _moved(args, kwargs, axes, pictures, group)
        arguments = map_lists(partial(mul, len(group)), moved, batch)
        asked = [
            replace(q, target=_again(a.target, q.target, batch, group), position=_again(None, q.position, batch, group))
            for q, a in zip(questions, answers, strict=True)
        ]
        for total, answer in zip(sums, call.explainer.explain(arguments[0], arguments[1], asked), strict=True):
            for i, (name, r) in enumerate(zip(names, answer.each, strict=True)):
                for part, move in zip(r.chunk(len(group), axes[name] or 0), group, strict=True):
                    total[i] = total[i] + (_moved_back(part, move) if name in pictures else part)
    counts = [_counts(pictures[n], moves).to(sums[0][0]) if n in pictures else len(moves) + 1 for n in names]
    means = [tuple(r / count for r, count in zip(total, counts, strict=True)) for total in sums]
    return [
        replace(a, relevance=mean if isinstance(a.relevance, tuple) else mean[0])
        for a, mean in zip(answers, means, strict=True)
    ]


def _moved(
    args: tuple, kwargs: dict, axes: dict[str, int | None], pictures: Collection[str], moves: Sequence[Move]
) -> Any:
    """The call with its pictures moved, once for each move, one after the other along the sample axis."""
    paths = iter(axes.items())

    def one(t: Tensor) -> Tensor:
        path, axis = next(paths)
        copies = [_shifted(t, move) if path in pictures else t for move in moves]
        return copies[0] if axis is None else torch.cat(copies, axis)

    return pytree.tree_map_only(Tensor, one, (args, kwargs))


def _again(answered: Tensor | None, asked: Any, batch: int, moves: Sequence[Move]) -> Any:
    """The question about the moved samples: the classes that were explained, or what was asked, repeated."""
    asked = asked if answered is None else answered
    per_sample = isinstance(asked, Tensor) and asked.ndim and len(asked) == batch
    return torch.cat([asked] * len(moves)) if per_sample else asked


def _shifted(x: Tensor, move: Move) -> Tensor:
    """Pictures [..., H, W] moved; pixels that come in repeat the edge."""
    rows, columns = (
        (torch.arange(n, device=x.device) - by).clamp(0, n - 1) for n, by in zip(x.shape[-2:], move, strict=True)
    )
    return x[..., rows[:, None], columns]


def _moved_back(relevance: Tensor, move: Move) -> Tensor:
    """Relevance of moved pictures at the pixels of the pictures themselves; 0 at those that were moved out."""
    back = -move[0], -move[1]
    return _shifted(relevance, back) * _inside(relevance.shape[-2:], back).to(relevance)


def _inside(size: Sequence[int], move: Move) -> Tensor:
    """A mask of the pixels [H, W] that a move does not bring in."""
    rows, columns = (((at := torch.arange(n) - by) >= 0) & (at < n) for n, by in zip(size, move, strict=True))
    return rows[:, None] & columns


def _counts(size: Sequence[int], moves: Sequence[Move]) -> Tensor:
    """The number of pictures, the unmoved one included, that each pixel is in."""
    return torch.stack([_inside(size, (-y, -x)) for y, x in [(0, 0), *moves]]).sum(0)


def _stride(plan: Plan) -> int:
    """The stride of the first convolution: the side of a patch, where a model cuts its pictures into patches."""
    for node in plan.graph.graph.nodes:
        op = getattr(node.target, "op", node.target)
        if node.op == "call_function" and about(op).kind == "convolution":
            strides = next((a for a in args_of(node)[3:4] if isinstance(a, list | tuple)), [1])
            return max([s for s in strides if isinstance(s, int)], default=1)
    return 1
