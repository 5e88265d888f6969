"""Cluster: which strategies a model has for a class, by what its maps look alike in (spectral relevance analysis).

After Lapuschkin et al., *Unmasking Clever Hans predictors and assessing what machines really learn* (Nature
Communications 2019): maps are reduced, joined to their nearest neighbours, and the gaps between the eigenvalues of that
graph's Laplacian tell how many groups there are.  A group is marked if much of its relevance for the class lies in one
small place of the picture, where that of all other samples does not.  Texts are grouped by the tokens that relevance is
on, and not marked: whether a word should matter, no map can say.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fxlrp.data.reading import Maps, read
from fxlrp.data.view import chosen, figures, flat, overlay
from fxlrp.data.writing import Row
from fxlrp.errors import FxlrpError, counted
from fxlrp.show.files import write
from fxlrp.show.page import POLICY, document
from fxlrp.show.parts import reduced

SIDE, TOKENS = 16, 512
"""The side that maps are reduced to, and how many tokens, those with most relevance, texts are known by."""
MOST_CLUSTERS, NEIGHBOURS = 8, 10
FEWEST = 8
"""Samples of a class below which there are no groups to find."""
PLACE = 8
"""A place is a square of an eighth of the side."""
MARKED, TIMES = 0.15, 4.0
"""A group is marked if three quarters of its samples have this much of their relevance in one place, and so many times
what all others have there: an object is larger, and nowhere so exactly."""
EXAMPLES = 10


@dataclass(frozen=True)
class Cluster:
    """Samples of a class whose maps look alike.

    name: the class.  members: their numbers in the data set, the most typical first.  among: how many the class has.
    where: the place or token that sets it apart.  share: of its relevance for the class, how much is there.
    elsewhere: the same of all other samples.  marked: whether that is more than should be.
    mean: the mean of the maps [16, 16], or None of texts.  points: of the members in the class's embedding, [n, 2].
    """

    name: str
    members: list[int]
    among: int
    where: str
    share: float
    elsewhere: float
    marked: bool
    mean: np.ndarray | None
    points: np.ndarray

    def __str__(self) -> str:
        shares = f"{self.share:.0%} of its relevance for the class is {self.where}, {self.elsewhere:.0%} of all others'"
        return f"{self.name}: {len(self.members)} of {self.among}, {shares}"


def cluster(out: str | Path, *, limit: int = 5000, name: str | None = None) -> list[Cluster]:
    """Find groups of maps that look alike, class by class; those that are marked come first.

    out: what `fxlrp.data.explain` wrote.  limit: the most samples, taken evenly.  name: only this class.

    Raises FxlrpError where scikit-learn is not installed, or no class has enough maps.
    """
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise FxlrpError("Clusters need scikit-learn: pip install 'fxlrp[data]'.") from error
    maps = read(out)
    rows, _ = chosen(maps, limit, None)
    few = [_slim(maps, row) for row in rows if row["error"] is None]
    x, places = _features(few)
    of = {n: [i for i, row in enumerate(few) if row["name"] == n] for n in dict.fromkeys(r["name"] for r in few)}
    if name is not None and name not in of:
        raise FxlrpError(f"There is no map of class {name} in {out}; there are {', '.join(sorted(of))}.")
    clusters: list[Cluster] = []
    for n, members in sorted(of.items()):
        if len(members) >= FEWEST and name in (None, n):
            clusters += _groups(n, np.array(members), x, places, few)
    if not clusters:
        raise FxlrpError(f"No class in {out} has {FEWEST} maps, which groups take at least: map more samples.")
    return sorted(clusters, key=lambda c: (not c.marked, -c.share + c.elsewhere))


def _slim(maps: Maps, row: Row) -> Row:
    """Return of a row what groups are found by: its map reduced, or its tokens."""
    if row.get("tokens") is not None:
        return {"index": row["index"], "name": row["name"], "tokens": row["tokens"], "relevance": row["relevance"]}
    return {"index": row["index"], "name": row["name"], "map": reduced(flat(maps.map(row)), SIDE)}


def _features(rows: Sequence[Row]) -> tuple[np.ndarray, list[str] | None]:
    """Return the maps [n, H, W], each of size 1 in all; of texts [n, T] and the tokens, a column each."""
    if not rows or "map" in rows[0]:
        x = np.stack([row["map"] for row in rows]) if rows else np.zeros((0, 1, 1))
        return x / np.maximum(np.abs(x).sum((1, 2), keepdims=True), 1e-30), None
    total: dict[str, float] = defaultdict(float)
    for row in rows:
        for token, r in zip(row["tokens"], np.abs(row["relevance"].astype(np.float64)), strict=True):
            total[token] += float(r)
    tokens = sorted(total, key=lambda token: -total[token])[:TOKENS]
    column = {token: i for i, token in enumerate(tokens)}
    x = np.zeros((len(rows), len(tokens)))
    for i, row in enumerate(rows):
        r = row["relevance"].astype(np.float64)
        for token, share in zip(row["tokens"], r / max(np.abs(r).sum(), 1e-30), strict=True):
            if token in column:
                x[i, column[token]] += share
    return x, tokens


def _groups(
    name: str, members: np.ndarray, x: np.ndarray, tokens: list[str] | None, rows: Sequence[Row]
) -> list[Cluster]:
    """Return the groups among the samples of a class."""
    own = x[members].reshape(len(members), -1)
    which, points = _spectral(own)
    clusters = []
    for k in range(which.max() + 1):
        inside = which == k
        chosen_ = members[inside]
        others = np.setdiff1d(np.arange(len(x)), chosen_)
        where, share, elsewhere, marked = _apart(x[chosen_], x[others], tokens)
        typical = np.argsort(np.linalg.norm(own[inside] - own[inside].mean(0), axis=1), kind="stable")
        clusters.append(
            Cluster(
                name,
                [rows[i]["index"] for i in chosen_[typical]],
                len(members),
                where,
                share,
                elsewhere,
                marked,
                None if tokens else x[chosen_].mean(0),
                points[inside],
            )
        )
    return clusters


def _spectral(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of each row of x [n, F], and its place in the plane [n, 2]."""
    from scipy.sparse.csgraph import laplacian
    from sklearn.cluster import KMeans
    from sklearn.neighbors import kneighbors_graph

    graph = kneighbors_graph(x, max(3, min(NEIGHBOURS, len(x) // 6))).toarray()
    values, vectors = np.linalg.eigh(laplacian(np.maximum(graph, graph.T), normed=True))
    most = min(MOST_CLUSTERS, len(x) // FEWEST + 1)
    count = int(np.argmax(np.diff(values[: most + 1]))) + 1
    near = vectors[:, :count] / np.maximum(np.linalg.norm(vectors[:, :count], axis=1, keepdims=True), 1e-12)
    which = KMeans(count, n_init=10, random_state=0).fit_predict(near) if count > 1 else np.zeros(len(x), dtype=int)
    return which, _embedded(x)


def _embedded(x: np.ndarray) -> np.ndarray:
    """Return a place in the plane for each row: by UMAP if it is installed, else by t-SNE."""
    try:
        from umap import UMAP

        return np.asarray(UMAP(random_state=0, n_jobs=1).fit_transform(x))
    except ImportError:
        from sklearn.manifold import TSNE

        return TSNE(perplexity=min(30, (len(x) - 1) / 3), init="pca", random_state=0).fit_transform(x)


def _apart(inside: np.ndarray, others: np.ndarray, tokens: list[str] | None) -> tuple[str, float, float, bool]:
    """Return the place or token that sets samples apart from others, the share of positive relevance that each has
    there, and whether that marks them."""
    ours, theirs = _shares(inside, tokens is None), _shares(others, tokens is None)
    elsewhere = theirs.mean(0) if len(others) else np.zeros(ours.shape[1:])
    best = np.unravel_index(int((ours.mean(0) - elsewhere).argmax()), elsewhere.shape)
    share, least = float(ours.mean(0)[best]), float(np.quantile(ours, 0.25, axis=0)[best])
    if tokens is not None:
        return f"on {tokens[int(best[0])]!r}", share, float(elsewhere[best]), False
    row, column = (_third(int(i), n) for i, n in zip(best, elsewhere.shape, strict=True))
    words = {0: ("at the top", "left"), 1: ("in the middle", ""), 2: ("at the bottom", "right")}
    where = " ".join(filter(None, (words[row][0], words[column][1])))
    return where, share, float(elsewhere[best]), least >= max(MARKED, TIMES * float(elsewhere[best]))


def _third(at: int, count: int) -> int:
    return min(2, 3 * at // count)


def _shares(x: np.ndarray, are_maps: bool) -> np.ndarray:
    """Return the share of positive relevance in each place of maps [n, H, W], or on each token of texts [n, T]."""
    positive = np.maximum(x, 0)
    shares = positive / np.maximum(positive.sum(tuple(range(1, x.ndim)), keepdims=True), 1e-30)
    if not are_maps:
        return shares
    side = [max(1, n // PLACE) for n in x.shape[1:]]
    return np.lib.stride_tricks.sliding_window_view(shares, side, (1, 2)).sum((3, 4))


def write_page(out: str | Path, clusters: Sequence[Cluster], to: str | Path) -> Path:
    """Write a page of groups, with their mean maps, typical samples and places in the embedding; return its path.

    Raises FxlrpError if it can't be written.
    """
    maps = read(out)
    css = Path(__file__).with_name("view.css").read_text("utf-8")
    body = [f"<style>{css}</style><div class=clusters><h1>{html.escape(_title(maps, clusters))}</h1>"]
    for name in dict.fromkeys(c.name for c in clusters):
        groups = [c for c in clusters if c.name == name]
        body.append(f"<h2>{html.escape(name)}, {counted(groups[0].among, 'sample')}</h2>{_scatter(groups)}")
        for number, group in enumerate(groups):
            typical = figures(maps, [maps[i] for i in _places(maps, group.members[:EXAMPLES])])
            mark = ", which all others hardly look at: an artefact?" if group.marked else ""
            caption = f"{counted(len(group.members), 'sample')}: {str(group).partition(', ')[2]}{mark}"
            dot = f'<span style="color:{COLOURS[number % len(COLOURS)]}">●</span>'
            cls = "cluster marked" if group.marked else "cluster"
            body.append(f'<div class="{cls}"><p>{dot} {html.escape(caption)}</p>{_mean(group)}{typical}</div>')
    return write(Path(to), document("".join(body) + "</div>", POLICY, _title(maps, clusters)))


COLOURS = ("#214dd9", "#db141a", "#1a8a3c", "#b8860b", "#7b3fb8", "#00838f", "#c2185b", "#555")


def _places(maps: Maps, members: Sequence[int]) -> list[int]:
    """Return where samples stand among the rows that are there: a run that is not complete lacks some."""
    before, place = 0, {}
    for shard in sorted(maps.done):
        of = maps.settings.range_of(shard)
        place.update({i: before + i - of.start for i in members if i in of})
        before += len(of)
    return [place[i] for i in members]


def _title(maps: Maps, clusters: Sequence[Cluster]) -> str:
    marked = sum(c.marked for c in clusters)
    return f"{maps.settings.model} on {maps.settings.data}: {len(clusters)} groups of maps, {marked} of them marked"


def _mean(group: Cluster) -> str:
    if group.mean is None:
        return ""
    import base64

    shown = base64.b64encode(overlay(group.mean)).decode()
    image = f'<img class="map" src="data:image/png;base64,{shown}" alt="the mean map">'
    return f"<figure><div>{image}</div><figcaption><b>mean</b></figcaption></figure>"


def _scatter(groups: Sequence[Cluster], side: int = 180) -> str:
    """Return the embedding of a class as an SVG, a colour for each group."""
    every = np.concatenate([g.points for g in groups])
    low, size = every.min(0), np.maximum(np.ptp(every, axis=0), 1e-9)
    dots: list[Any] = []
    for number, group in enumerate(groups):
        for px, py in 8 + (side - 16) * (group.points - low) / size:
            dots.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="2.5" fill="{COLOURS[number % len(COLOURS)]}"/>')
    return f'<svg width="{side}" height="{side}" role="img" aria-label="embedding of the maps">{"".join(dots)}</svg>'
