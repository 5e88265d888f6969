"""Pictures of creatures: a body and five parts, each of one of three kinds, among other objects; any can be removed.

A class is which kind each of its parts is.  A picture is drawn from numbers that say where everything stands and which
parts are there, so that it can be drawn again without one of them.  After Hesse et al., "FunnyBirds", ICCV 2023
(2308.06248).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

SIZE, PARTS, KINDS, CLASSES, OTHERS = 40, 5, 3, 10, 4
BODY = ["..###..", ".#####.", "#######", "#######", "#######", ".#####.", "..###.."]
STENCILS = {  # of each part, three kinds
    0: (["..#..", ".###.", "#####", ".###.", "..#.."], ["##.##", "##.##", "..#..", "##.##", "##.##"], ["#####"] * 5),
    1: (["#...#", ".#.#.", "..#..", ".#.#.", "#...#"], [".###.", "#...#", "#...#", "#...#", ".###."], ["..#.."] * 5),
    2: (["#####", ".....", "#####", ".....", "#####"], ["#.#.#"] * 5, ["#....", "##...", "###..", "####.", "#####"]),
    3: (["..#..", "..#..", "#####", "..#..", "..#.."], ["#####", "#...#", "#...#", "#...#", "#####"], [".###."] * 5),
    4: (
        ["#####", "####.", "###..", "##...", "#...."],
        ["#####", "..#..", "..#..", "..#..", "..#.."],
        ["##...", "##...", ".....", "...##", "...##"],
    ),
}
OTHER = [".##.", "####", "####", ".##."]
COLOURS = torch.tensor([[0.9, 0.2, 0.2], [0.2, 0.8, 0.3], [0.3, 0.4, 1.0]])


class Scene(NamedTuple):
    """What n pictures are drawn from.

    target [n]; kinds [n, 5]: the kind of each part; centre [n, 2]; shifts [n, 5, 2] of the parts; others [n, 4, 5]: of
    each other object its shift and colour; ground [n, 3, 40, 40].
    """

    target: Tensor
    kinds: Tensor
    centre: Tensor
    shifts: Tensor
    others: Tensor
    ground: Tensor


def stencil(rows: Sequence[str]) -> Tensor:
    """A drawing of # and . as 0 and 1."""
    return torch.tensor([[float(c == "#") for c in row] for row in rows])


def classes(seed: int) -> Tensor:
    """The kind of each part of each class, [10, 5]: each has two others with which it shares two parts each, none of
    them the same, which FunnyBirds' target sensitivity needs."""
    for turn in itertools.count(seed * 1000):
        g = torch.Generator().manual_seed(turn)
        codes = torch.randint(KINDS, (CLASSES, PARTS), generator=g)
        if len(codes.unique(dim=0)) == CLASSES and all(rivals(codes, c) for c in range(CLASSES)):
            return codes
    raise AssertionError("unreachable")


def rivals(codes: Tensor, cls: int) -> tuple[int, int] | None:
    """Two other classes that share two parts each with a class, which have none of these in common."""
    same = codes == codes[cls]
    two = [c for c in range(len(codes)) if same[c].sum() == 2]
    return next(((a, b) for a, b in itertools.combinations(two, 2) if not (same[a] & same[b]).any()), None)


def scene(codes: Tensor, n: int, g: torch.Generator) -> Scene:
    """What n pictures of random classes are drawn from."""
    target = torch.randint(len(codes), (n,), generator=g)
    centre = torch.randint(-2, 3, (n, 2), generator=g) + SIZE // 2
    shifts = torch.randint(-1, 2, (n, PARTS, 2), generator=g)
    others = torch.cat([torch.randint(-1, 2, (n, OTHERS, 2), generator=g), torch.rand(n, OTHERS, 3, generator=g)], 2)
    coarse = torch.rand(n, 3, 5, 5, generator=g)
    ground = 0.5 + 0.25 * (torch.nn.functional.interpolate(coarse, SIZE, mode="bilinear") - 0.5)
    ground = ground + 0.03 * torch.randn(n, 3, SIZE, SIZE, generator=g)
    return Scene(target, codes[target], centre, shifts, others, ground)


def _stamp(shape: Tensor, at: Tensor) -> Tensor:
    """Masks [n, 40, 40] of shapes [n, h, w] whose middle is at [n, 2]."""
    n, h, w = shape.shape
    rows = at[:, 0, None, None] + torch.arange(h)[:, None] - h // 2
    columns = at[:, 1, None, None] + torch.arange(w) - w // 2
    flat = (rows * SIZE + columns).expand(n, h, w).flatten(1)
    return torch.zeros(n, SIZE * SIZE).scatter(1, flat, shape.flatten(1)).view(n, SIZE, SIZE)


def _place(part: int) -> Tensor:
    """Where a part stands from the body's middle."""
    angle = 2 * math.pi * part / PARTS
    return torch.tensor([round(-9 * math.cos(angle)), round(9 * math.sin(angle))])


def part_masks(scene: Scene) -> Tensor:
    """Where each part is, [n, 5, 40, 40]."""
    shapes = torch.stack([torch.stack([stencil(rows) for rows in STENCILS[p]]) for p in range(PARTS)])  # [5, 3, 5, 5]
    masks = []
    for p in range(PARTS):
        at = scene.centre + _place(p) + scene.shifts[:, p]
        masks.append(_stamp(shapes[p][scene.kinds[:, p]], at))
    return torch.stack(masks, 1)


def other_masks(scene: Scene) -> Tensor:
    """Where each other object is, [n, 4, 40, 40]: one in each corner."""
    corners = torch.tensor([[4, 4], [4, SIZE - 4], [SIZE - 4, 4], [SIZE - 4, SIZE - 4]])
    shape = stencil(OTHER).expand(len(scene.target), -1, -1)
    return torch.stack([_stamp(shape, corners[o] + scene.others[:, o, :2].long()) for o in range(OTHERS)], 1)


def picture(scene: Scene, parts: Tensor | None = None, others: Tensor | None = None) -> Tensor:
    """Draw [n, 3, 40, 40] about 0; parts [n, 5] and others [n, 4] say which are there, without them all."""
    n = len(scene.target)
    parts = torch.ones(n, PARTS) if parts is None else parts
    others = torch.ones(n, OTHERS) if others is None else others
    x = scene.ground
    for o, mask in enumerate(other_masks(scene).unbind(1)):
        x = torch.lerp(x, scene.others[:, o, 2:, None, None], (mask * others[:, o, None, None])[:, None])
    body = _stamp(stencil(BODY).expand(n, -1, -1), scene.centre)
    x = torch.lerp(x, torch.tensor([0.75, 0.7, 0.4])[:, None, None], body[:, None])
    for p, mask in enumerate(part_masks(scene).unbind(1)):
        colour = COLOURS[scene.kinds[:, p]].roll(p, 1)[..., None, None]
        x = torch.lerp(x, colour, (mask * parts[:, p, None, None])[:, None])
    return 2 * (x - 0.5)


def draw(codes: Tensor, n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """n pictures for training, one in six of whose parts and half of whose other objects are missing."""
    made = scene(codes, n, g)
    parts = (torch.rand(n, PARTS, generator=g) > 1 / 6).float()
    others = (torch.rand(n, OTHERS, generator=g) > 0.5).float()
    return picture(made, parts, others), made.target
