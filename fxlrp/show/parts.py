"""The parts of an attribution: each explained input of one sample, as what it can be shown as."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fxlrp.capture.axes import argument
from fxlrp.errors import FxlrpError
from fxlrp.show.colours import diverging

if TYPE_CHECKING:
    from fxlrp.attribution import Attribution

Kind = Literal["picture", "curves", "features", "nodes", "edges"]
MOST_ROWS = 12
"""Series side by side that are shown as curves; more are a picture."""
MOST_NUMBERS = 128
"""Numbers without names that are shown as features; more are a curve."""
MOST_NODES = 300
"""The nodes of a graph that are drawn: those with the most relevance."""


class Part(NamedTuple):
    """An explained input of one sample.

    kind: a picture [H, W]; curves [C, T] over time; features [F], each a number; or the nodes [N] or edges [E] of a
    graph.
    name: where it stood in the call.
    values: what is shown beside the relevance: a picture [H', W', 3] in 0…1, curves [C, T], features [F], and what a
    graph's nodes or edges are given by.
    relevance: float64 [K, H, W], [K, C, T], [K, F], [K, N] or [K, E], a map for each class that was explained.
    labels: the names of features, nodes or edges.  edges: which nodes are joined [2, E].
    """

    kind: Kind
    name: str
    values: np.ndarray
    relevance: np.ndarray
    labels: tuple[str, ...] = ()
    edges: np.ndarray | None = None

    @property
    def title(self) -> str:
        """What it is called beside others."""
        return f"input {self.name}" if self.name.isdigit() else self.name


def parts_of(a: Attribution, index: int = 0, picture: Any = None, features: Sequence[str] = ()) -> list[Part]:
    """The parts of sample `index`, those that are neither pictures nor curves as features.

    picture: the original [H', W', 3], uint8 or in 0…1.  features: the names of the features.  What has a row for each
    node that `Attribution.edges` join, or for each edge, is shown on the graph, and `features` may name the nodes.

    Raises FxlrpError for an index or picture that can't be.
    """
    count = samples_of(a)
    if not -count <= index < count:
        raise FxlrpError(f"index={index} is out of range; give one of the {count} samples, 0 to {count - 1}.")
    index %= count
    several = a.several
    names = [argument(name) for name in a.names]
    features = tuple(features or a.features)
    on_graph = _on_graph(a)
    parts: list[Part] = []
    for i, (x, r) in enumerate(zip(a.inputs, a.each, strict=True)):
        name = names[i] if i < len(names) else str(i)
        if i in on_graph:
            parts.append(_of_graph(on_graph[i], name, x, _double(r) if several else _double(r)[None], a, features))
            continue
        axis = _axis(x, count)
        if axis is not None:  # before anything is converted: a batch is shown sample by sample
            r, x = r.select(axis, index), x.select(axis, index)
        maps = _double(r) if several else _double(r)[None]
        seen = picture if picture is not None else a.pictures[index] if index < len(a.pictures) else None
        is_first_picture = not any(p.kind == "picture" for p in parts)
        parts.append(_part(name, x, maps, seen if is_first_picture else None, features))
    return parts


def samples_of(a: Attribution) -> int:
    """The number of samples of a call: the rows of what was explained."""
    first = a.inputs[0]
    if a.target is not None:
        return max(1, len(a.target)) if _axis(first, len(a.target)) is not None else 1
    return len(a.logits) if a.logits.ndim and _axis(first, len(a.logits)) is not None else 1


def _axis(x: Tensor, count: int) -> int | None:
    """The axis of an input's samples: the first of their number; None where one sample is the whole input."""
    sizes = list(x.shape)
    return sizes.index(count) if count in sizes[:2] and x.ndim > 1 else None


def _on_graph(a: Attribution) -> dict[int, Kind]:
    """Which inputs have a row for each node of the graph, and which for each edge."""
    if a.edges is None or not a.edges.numel():
        return {}
    rows = {i: len(x) for i, x in enumerate(a.inputs) if x.ndim in (1, 2)}
    nodes = min((n for n in rows.values() if n > int(a.edges.max())), default=0)
    kinds: dict[int, Kind] = {a.edges.shape[1]: "edges", nodes: "nodes"}  # as many edges as nodes: nodes
    return {i: kinds[n] for i, n in rows.items() if n in kinds}


def _of_graph(kind: Kind, name: str, x: Tensor, maps: Tensor, a: Attribution, features: Sequence[str]) -> Part:
    """An input x [N, …] of nodes or [E, …] of edges with its maps [K, *x.shape]."""
    assert a.edges is not None
    edges = a.edges.cpu().numpy()
    labels = tuple(f"edge {u} → {v}" for u, v in edges.T.tolist())
    if kind == "nodes":
        labels = tuple(features) if len(features) == len(x) else tuple(f"node {i}" for i in range(len(x)))
    return Part(kind, name, _double(x).numpy(), maps.reshape(*maps.shape[:2], -1).sum(2).numpy(), labels, edges)


class Drawing(NamedTuple):
    """How a graph is drawn: the nodes with the most relevance [N'], where they stand [N', 2] in 0…1, which of them are
    joined, by their places among them [E', 2], and of each line the edges that it stands for, of both directions."""

    nodes: np.ndarray
    places: np.ndarray
    joined: np.ndarray
    lines: list[list[int]]


def laid_out(part: Part) -> Drawing:
    """How a graph is drawn, by springs."""
    import networkx

    assert part.edges is not None
    r = np.abs(part.relevance).sum(0)
    r = r if part.kind == "nodes" else np.bincount(part.edges.ravel(), np.tile(r, 2))
    nodes = np.sort(np.argsort(-r, kind="stable")[:MOST_NODES])
    order = {node: i for i, node in enumerate(nodes.tolist())}
    lines: dict[tuple[int, int], list[int]] = {}
    for e, (u, v) in enumerate(part.edges.T.tolist()):
        if u in order and v in order and u != v:
            lines.setdefault((order[min(u, v)], order[max(u, v)]), []).append(e)
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(nodes)))
    graph.add_edges_from(lines)
    laid = networkx.spring_layout(graph, seed=0)
    places = np.array([laid[node] for node in graph])
    low, high = places.min(0), places.max(0)
    joined = np.array(list(lines), dtype=int).reshape(-1, 2)
    return Drawing(nodes, (places - low) / np.maximum(high - low, 1e-9), joined, list(lines.values()))


def _double(t: Tensor) -> Tensor:
    t = t.detach().cpu()
    return (torch.view_as_real(t.resolve_conj()).sum(-1) if t.is_complex() else t).double()


def _part(name: str, x: Tensor, maps: Tensor, picture: Any, features: Sequence[str]) -> Part:
    """One input x of a sample with its maps [K, *x.shape]."""
    values = _double(x)
    if maps.ndim >= 5:  # a video or a volume: its middle frame, with the relevance of all of them
        maps, values = maps.sum(2), values[:, values.shape[1] // 2]
    while maps.ndim >= 5:
        maps, values = maps.sum(2), values[:, values.shape[1] // 2]
    if maps.ndim == 4:
        shown = stretch(values) if picture is None else unit(picture)
        return Part("picture", name, shown, maps.sum(1).numpy())
    if maps.ndim == 2 and x.is_floating_point() and maps.shape[1] > MOST_NUMBERS and len(features) != maps.shape[1]:
        maps, values = maps[:, None], values[None]  # sound, or a series of one
    is_number = x.is_floating_point() or x.is_complex()
    if maps.ndim == 3 and min(maps.shape[1:]) > 0 and is_number:
        turned = maps.shape[1] > maps.shape[2]  # the longer axis is time
        maps, values = (maps.transpose(1, 2), values.transpose(0, 1)) if turned else (maps, values)
        if len(values) > MOST_ROWS:  # a spectrogram, or hidden states
            return Part("picture", name, stretch(values[None]), maps.numpy())
        return Part("curves", name, values.numpy(), maps.numpy())
    values, maps = values.reshape(-1), maps.reshape(len(maps), -1)
    ids = () if is_number else tuple(f"id {int(v)}" for v in values)
    labels = tuple(features) if len(features) == len(values) else ids or tuple(f"[{i}]" for i in range(len(values)))
    return Part("features", name, values.numpy(), maps.numpy(), labels)


def unit(picture: Any) -> np.ndarray:
    """A picture [H, W, 3] of uint8 or in 0…1, in 0…1.  Raises FxlrpError for anything else."""
    given = np.asarray(picture.detach().cpu() if isinstance(picture, Tensor) else picture)
    if given.dtype.kind in "biuf" and given.ndim == 3 and given.shape[2] == 3 and given.size:
        scaled = given.astype(np.float64) / (255 if given.dtype == np.uint8 else 1)
        if scaled.min() > -1e-3 and scaled.max() < 1 + 1e-3:  # as far as rounding goes
            return scaled
    raise FxlrpError(
        f"picture is a {type(picture).__name__} of shape {given.shape}; give an array [H, W, 3] of uint8 or in 0…1, "
        "such as PIL.Image.open(path).convert('RGB')."
    )


def framed(picture: np.ndarray, corners: Sequence[float]) -> np.ndarray:
    """A picture with the frame of a box, given by left, top, right and bottom in parts of its width and height."""
    from PIL import Image, ImageDraw

    image = Image.fromarray((unit(picture) * 255).round().astype(np.uint8))
    sizes = image.width - 1, image.height - 1, image.width - 1, image.height - 1
    left, top, right, bottom = (min(max(c, 0.0), 1.0) * size for c, size in zip(corners, sizes, strict=True))
    wide = max(1, round(max(image.size) / 150))
    draw = ImageDraw.Draw(image)
    draw.rectangle((left, top, max(left, right), max(top, bottom)), outline="white", width=2 * wide)
    draw.rectangle((left, top, max(left, right), max(top, bottom)), outline="black", width=wide)
    return np.asarray(image)


def stretch(x: Tensor) -> np.ndarray:
    """A network's input [C, H, W] as a picture [H, W, 3], stretched to 0…1."""
    x = x[:3] if x.shape[0] >= 3 else x[:1].expand(3, -1, -1)
    low, high = x.min(), x.max()
    return ((x - low) / (high - low).clamp(min=1e-12)).permute(1, 2, 0).numpy()


def top_of(relevance: np.ndarray) -> float:
    """What the colours are scaled to: the 99.5 % quantile of |R|, so that one pixel does not darken all others."""
    sizes = np.abs(relevance).ravel()
    at = max(0, int(sizes.size * 0.995) - 1)
    return float(np.partition(sizes, at)[at]) or float(sizes.max(initial=0.0)) or 1.0


def reduced(relevance: np.ndarray, most: int) -> np.ndarray:
    """A map [H, W] of at most so many entries a side, means taken where it is larger."""
    size = min(relevance.shape[0], most), min(relevance.shape[1], most)
    if size == relevance.shape:
        return relevance
    held = torch.from_numpy(np.ascontiguousarray(relevance))[None]
    return torch.nn.functional.adaptive_avg_pool2d(held, size)[0].numpy()


def heat_of(relevance: np.ndarray) -> np.ndarray:
    """A map [H, W] as a picture [H, W, 3] in 0…1: red for, blue against."""
    return diverging(np.clip(relevance / top_of(relevance), -1, 1))
