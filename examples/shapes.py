"""Pictures with ground truth: one to three textured shapes on a cluttered background, and a mask for each shape.

Colour, texture, size, angle and place are drawn independently of the class, so that only the outline of an object
tells what it is. A picture is a function of its seed alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("disc", "ring", "square", "triangle", "star", "cross", "heart", "crescent")
SIZE = 64  # side of a picture in pixels
FINE = 4  # shapes and strokes are drawn this many times larger and averaged down, for smooth edges
Y, X = np.mgrid[:SIZE, :SIZE].astype(np.float32)  # pixel coordinates


class Picture(NamedTuple):
    """A picture and what is in it: object i has the class `CLASSES[labels[i]]` and covers `masks[i]`."""

    image: np.ndarray  # uint8 [H, W, 3]
    labels: tuple[int, ...]  # k distinct classes
    masks: np.ndarray  # bool [k, H, W]


def _circle(radius: float, x: float = 0.0) -> np.ndarray:
    """Points [48, 2] on a circle round (x, 0)."""
    t = 2 * np.pi * np.arange(48) / 48
    return np.stack([x + radius * np.cos(t), radius * np.sin(t)], 1)


def _star(radii: Iterable[float], turns: Iterable[float]) -> np.ndarray:
    """Corners [n, 2] at these distances from the origin and at these angles, in full turns."""
    r, t = np.array(list(radii)), 2 * np.pi * np.array(list(turns))
    return np.stack([r * np.cos(t), r * np.sin(t)], 1)


def _heart() -> np.ndarray:
    t = 2 * np.pi * np.arange(48) / 48
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([np.sin(t) ** 3, -(y + 2.5) / 16], 1)


# Outline of each class within the unit circle, and of what is cut out of it.
OUTLINES: dict[str, tuple[np.ndarray, np.ndarray | None]] = {
    "disc": (_circle(0.9), None),
    "ring": (_circle(0.95), _circle(0.5)),
    "square": (_star([1] * 4, np.arange(4) / 4), None),
    "triangle": (_star([1] * 3, np.arange(3) / 3), None),
    "star": (_star([1, 0.42] * 5, np.arange(10) / 10), None),
    "cross": (_star([1, 1, 0.45] * 4, [i / 4 + d for i in range(4) for d in (-0.0517, 0.0517, 0.125)]), None),
    "heart": (_heart(), None),
    "crescent": (_circle(1.0), _circle(0.85, 0.55)),
}


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Stripes, checks, dots or smooth noise, float [H, W] in [0, 1], turned by a random angle."""
    if (kind := rng.integers(4)) == 3:
        coarse = Image.fromarray(rng.integers(0, 256, (20, 20), dtype=np.uint8))
        return np.asarray(coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float32) / 255
    angle, period = rng.uniform(0, np.pi), rng.uniform(4, 8)
    c, s = 2 * np.pi * np.cos(angle) / period, 2 * np.pi * np.sin(angle) / period
    u, v = np.sin(c * X + s * Y), np.sin(c * Y - s * X)
    return np.clip(0.5 + 3 * (u, u * v, u + v - 0.8)[kind], 0, 1)


def _far(rng: np.random.Generator, colours: np.ndarray, distance: float) -> np.ndarray:
    """A random colour [3] at least this far from the given colours [n, 3]."""
    while True:
        colour = rng.random(3, np.float32)
        if np.linalg.norm(colours - colour, axis=1).min() > distance:
            return colour


def _background(rng: np.random.Generator, colours: np.ndarray) -> np.ndarray:
    """A textured gradient between two colours [2, 3] under strokes and specks, float [H, W, 3] in [0, 1]."""
    angle = rng.uniform(0, 2 * np.pi)
    slope = 0.5 + (np.cos(angle) * (X - SIZE / 2) + np.sin(angle) * (Y - SIZE / 2)) / (1.5 * SIZE)
    mix = np.clip(slope + rng.uniform(0, 0.5) * (_texture(rng) - 0.5), 0, 1)[..., None]
    clutter = Image.new("RGBA", (SIZE * 2, SIZE * 2))
    draw = ImageDraw.Draw(clutter)
    for _ in range(rng.integers(2, 7)):
        colour = (*rng.integers(0, 256, 3).tolist(), 200)
        draw.line(rng.uniform(0, SIZE * 2, 6).tolist(), colour, int(rng.integers(2, 5)))
    for x, y, rx, ry in rng.uniform((0, 0, 2, 2), (SIZE * 2, SIZE * 2, 7, 7), (rng.integers(2, 9), 4)):
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), (*rng.integers(0, 256, 3).tolist(), 200))
    layer = np.asarray(clutter.reduce(2), dtype=np.float32) / 255
    alpha = layer[..., 3:]
    return (1 - alpha) * ((1 - mix) * colours[0] + mix * colours[1]) + alpha * layer[..., :3]


def _places(rng: np.random.Generator, count: int) -> list[tuple[float, float, float]]:
    """Centre and radius, in pixels, of circles inside the picture that do not overlap."""
    while True:
        radii = rng.uniform(11, (20, 17, 14)[count - 1], count)
        places = [(*rng.uniform(r, SIZE - r, 2).tolist(), float(r)) for r in radii]
        pairs = ((a, b) for i, a in enumerate(places) for b in places[:i])
        if all(np.hypot(a[0] - b[0], a[1] - b[1]) > a[2] + b[2] for a, b in pairs):
            return places


def _coverage(name: str, x: float, y: float, radius: float, angle: float) -> np.ndarray:
    """Share of each pixel that the shape covers, float [H, W]."""
    turn = radius * np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    canvas = Image.new("L", (SIZE * FINE, SIZE * FINE))
    for points, fill in zip(OUTLINES[name], (255, 0), strict=True):
        if points is not None:
            ImageDraw.Draw(canvas).polygon((FINE * (points @ turn + (x, y))).ravel().tolist(), fill)
    return np.asarray(canvas.reduce(FINE), dtype=np.float32) / 255


def picture(seed: int) -> Picture:
    """The picture of this seed."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 4))
    labels = rng.permutation(len(CLASSES))[:count].tolist()
    first, second = rng.random((2, 3), np.float32)
    ground = np.stack([first, first + rng.uniform(0, 0.5) * (second - first)])
    image, masks = _background(rng, ground), []
    for label, place in zip(labels, _places(rng, count), strict=True):
        cover = _coverage(CLASSES[label], *place, rng.uniform(0, 2 * np.pi))
        colours = [_far(rng, ground, 0.5), _far(rng, ground, 0.4)]
        mix = (rng.uniform(0.1, 0.6) * _texture(rng))[..., None]
        image += cover[..., None] * ((1 - mix) * colours[0] + mix * colours[1] - image)
        masks.append(cover > 0.5)
    image += rng.uniform(0, 0.04) * rng.standard_normal(image.shape, np.float32)
    return Picture((image.clip(0, 1) * 255).astype(np.uint8), tuple(labels), np.stack(masks))


def batch(seeds: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures as uint8 [n, H, W, 3], and which classes are in each as bool [n, classes]."""
    pictures = [picture(seed) for seed in seeds]
    present = np.zeros((len(pictures), len(CLASSES)), dtype=bool)
    for row, one in zip(present, pictures, strict=True):
        row[list(one.labels)] = True
    return np.stack([one.image for one in pictures]), present
