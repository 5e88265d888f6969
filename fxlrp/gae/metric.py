"""Global Attribution Evaluation: what is measured, in two definitions.

GAE = LC · C (Vukadin et al., ACM TIST 2024, arXiv 2412.09311, section 4): local consistency, which sets how a map
changes against how the output changes while the input is masked, times contrastiveness on mosaics of four pictures.

"2024-12" is the authors' code of that month to the letter, "fixed" what it means to compute; docs/evaluation.md sets
them side by side.  A `Trial` holds everything that no method takes part in; `score` is what a method makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.gae.definitions import FIXED, PUBLISHED, over
from fxlrp.gae.masking import LEAST, MOST, predict, stepwise
from fxlrp.gae.mosaics import cross, fill, halve, quadrant_scores, tile

Explain = Callable[["Views"], Tensor]


@dataclass(frozen=True)
class Views:
    """The inputs that a method is asked about.

    x [m, C, H, W]; target [m], the class explained; keys [m], a name for each that no other in the run has.
    truth [m, 1, H, W]: where the object is, None where that is not known.
    """

    x: Tensor
    target: Tensor
    keys: Sequence[str]
    truth: Tensor | None = None

    def split(self, size: int) -> list[Views]:
        """Split the inputs into pieces of at most `size`."""
        cuts = [slice(i, i + size) for i in range(0, len(self.x), size)]
        return [
            Views(self.x[c], self.target[c], self.keys[c], None if self.truth is None else self.truth[c]) for c in cuts
        ]


@dataclass(frozen=True)
class Trial:
    """The n samples of a chunk and what the metric does to them.

    x [n, C, H, W]; target [n], the predicted class; probability [n, K].
    masked [2, steps − 1, n, C, H, W]: inputs after each masking step, most and least relevant first.
    outputs [2, steps, n]: the target's logit, from the unmasked input on.
    impact [n, C, H, W] in −1, 0, 1: whether masking late (+) or early (−) hurt.
    mosaics [m·n, C, H, W], score [m·n, 1 or C, H, W]: four pictures in one, and what relevance is worth at each pixel.
    """

    definition: str
    ids: tuple[int, ...]
    x: Tensor
    target: Tensor
    probability: Tensor
    masked: Tensor
    outputs: Tensor
    impact: Tensor
    mosaics: Tensor
    score: Tensor
    truth: Tensor | None = field(default=None, repr=False)
    mosaic_truth: Tensor | None = field(default=None, repr=False)

    def views(self) -> Views:
        """Return all inputs that a method explains: the samples, the mosaics, the masked inputs."""
        _, steps, n = self.masked.shape[:3]
        m = len(self.mosaics) // n
        stages = ["x", *(f"mosaic{i}" for i in range(m)), *(f"{o}{i}" for o in ("morf", "lerf") for i in range(steps))]
        x = torch.cat([self.x, self.mosaics, self.masked.flatten(0, 2)])
        truth = None
        if self.truth is not None and self.mosaic_truth is not None:
            left = self.truth * (self.masked != 0).any(3, keepdim=True).flatten(0, 2).unflatten(0, (-1, n))
            truth = torch.cat([self.truth, self.mosaic_truth, left.flatten(0, 1)])
        keys = [f"{i}:{stage}" for stage in stages for i in self.ids]
        return Views(x, self.target.repeat(len(stages)), keys, truth)


def dice(a: Tensor, b: Tensor, definition: str = FIXED) -> Tensor:
    """Return Σ|a − b| / (Σ|a| + Σ|b|) per row [n], in 0…1: 0 where equal."""
    a, b = a.flatten(1), b.flatten(1)
    return over((a - b).abs().sum(1), a.abs().sum(1) + b.abs().sum(1), definition)


def overlap(relevance: Tensor, worth: Tensor, definition: str = FIXED) -> Tensor:
    """Return Σ worth · R / Σ R per row [n], for R ≥ 0: what a unit of relevance is worth where the map puts it."""
    return over((worth * relevance).flatten(1).sum(1), relevance.flatten(1).sum(1), definition)


def published_trial(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    *,
    ids: Sequence[int] | None = None,
    steps: int = 10,
    positives: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Trial:
    """Compute what the authors' code does on a batch x [4n, C, H, W] with labels [4n], before any method.

    positives [n]: which of each group of four is scored; without it drawn by `generator`, with the softmax over the
    mosaic's scores for their predicted classes.  A group is samples 4i to 4i + 3, though mosaic i consists of samples
    i, n + i, 2n + i and 3n + i, and the labels, not the predictions, name the quadrants: so it was published.

    Raises FxlrpError unless the batch is a multiple of four, sides are even and labels are classes of the model.
    """
    count, n, sides = len(x), len(x) // 4, x.shape[-2:]
    if count % 4 or not n:
        raise FxlrpError(f"Definition {PUBLISHED} scores batches of a multiple of four; this one has {count}.")
    if sides[0] % 2 or sides[1] % 2:
        raise FxlrpError(
            f"Definition {PUBLISHED} halves pictures, and these are {sides[0]} × {sides[1]}; give even sides, or "
            f"take definition {FIXED!r}."
        )
    logits = predict(model, x, count)
    if not ((labels >= 0) & (labels < logits.shape[1])).all():
        raise FxlrpError(
            f"Labels are {labels.min()} to {labels.max()}; the model has classes 0 to {logits.shape[1] - 1}."
        )
    mosaics = tile(halve(x).view(4, n, *halve(x).shape[1:]))
    predicted = logits.argmax(1)
    if positives is None:
        of_members = predict(model, mosaics, count).repeat_interleave(4, 0).gather(1, predicted[:, None]).view(n, 4)
        positives = torch.multinomial(of_members.softmax(1).cpu(), 1, generator=generator)[:, 0]
    place = positives.to(x.device)
    scored = place + 4 * torch.arange(n, device=x.device)
    probability, classes = logits[scored].softmax(1), labels.to(x.device).view(n, 4)
    worth = quadrant_scores(probability, classes, classes.gather(1, place[:, None])[:, 0])
    quarters = worth.flatten().view(4, n, 1, 1, 1).expand(4, n, x.shape[1], sides[0] // 2, sides[1] // 2)
    masked, outputs, impact = stepwise(model, x[scored], predicted[scored], steps, PUBLISHED)
    names = scored.tolist() if ids is None else [ids[i] for i in scored.tolist()]
    value = cross(tile(quarters), PUBLISHED)
    samples = (tuple(names), x[scored], predicted[scored], probability)
    return Trial(PUBLISHED, *samples, masked, outputs, impact, mosaics, value)


def fixed_trial(
    model: nn.Module,
    x: Tensor,
    members: Tensor,
    *,
    ids: Sequence[int],
    places: Tensor,
    steps: int = 10,
    batch_size: int = 16,
    mask_of: Callable[[int, int, int], Tensor | None] | None = None,
) -> Trial:
    """Score each of the first n = len(ids) pictures of x [·, C, H, W], with m mosaics that it stands in itself.

    members [m, n, 3]: which rows of x stand beside it in each of its mosaics.  places [m, n]: its quadrant, 0 to 3.
    mask_of(row of x, its prediction, class) → bool [H, W], where a picture shows the class, or None.
    """
    n, m = len(ids), len(members)
    logits = predict(model, x, batch_size)
    predicted, probability = logits.argmax(1), logits[:n].softmax(1)
    scored = torch.arange(n, device=x.device).expand(m, n)[..., None]
    rows = torch.cat([scored, members.to(x.device)], 2).view(m * n, 4)  # the scored picture first …
    turn = (torch.arange(4, device=x.device) - places.to(x.device).reshape(-1, 1)) % 4
    rows = rows.gather(1, turn)  # … turned to its place
    worth = quadrant_scores(probability.repeat(m, 1), predicted[rows], predicted[:n].repeat(m))
    small = halve(x)
    mosaics = fill(tile(small[rows.T]), x)
    quarters = worth.T[..., None, None, None].expand(4, m * n, 1, *small.shape[-2:])
    value = fill(cross(tile(quarters), FIXED), x)
    truths = (None, None) if mask_of is None else _truths(x, n, rows, predicted.tolist(), mask_of)
    masked, outputs, impact = stepwise(model, x[:n], predicted[:n], steps, FIXED)
    samples = (tuple(ids), x[:n], predicted[:n], probability)
    return Trial(FIXED, *samples, masked, outputs, impact, mosaics, value, *truths)


def _truths(
    x: Tensor, n: int, rows: Tensor, predicted: list[int], mask_of: Callable[[int, int, int], Tensor | None]
) -> tuple[Tensor | None, Tensor | None]:
    """Return where the n scored pictures show their class, [n, 1, H, W], and where mosaics of rows [m·n, 4] do.

    Both are None if that is not known of every scored picture; where it is not known of another, it shows nothing.
    """

    def shown(row: int, cls: int) -> Tensor | None:
        mask = mask_of(row, predicted[row], cls)
        return None if mask is None else mask.to(x)

    masks = [mask for i in range(n) if (mask := shown(i, predicted[i])) is not None]
    if len(masks) < n:
        return None, None
    truth = torch.stack(masks)[:, None]
    nothing = torch.zeros_like(truth[0, 0])
    quarters = [
        [nothing if (mask := shown(row, predicted[i % n])) is None else mask for i, row in enumerate(column)]
        for column in rows.T.tolist()
    ]
    return truth, fill(tile(torch.stack([halve(torch.stack(q)[:, None]) for q in quarters])), x)


def positive(relevance: Tensor, definition: str = FIXED) -> Tensor:
    """Return relevance [m, C or 1, H, W] in units of its largest value, what is negative left out."""
    r = relevance
    for cut in (False, True):
        r = r.relu() if cut else r
        r = over(r, r.abs().flatten(1).amax(1).view(-1, 1, 1, 1), definition)
    return r


def score(trial: Trial, relevance: Tensor) -> dict[str, Tensor]:
    """Return GAE and what it is made of, each [n], for relevance [·, C or 1, H, W] of all of `trial.views()`.

    robustness = 1 − 2 dice(ΔR, Δf) in −1…1, where per step ΔR = dice(R, R_morf) − dice(R, R_lerf) and
    Δf = (f_lerf − f_morf) / f; faithfulness = overlap of R with `impact` in −1…1; LC = (both)⁺/2;
    contrastiveness = (overlap of R on the mosaic with its score)⁺, meaned over mosaics; GAE = LC · C.
    """
    d = trial.definition
    _, steps, n = trial.masked.shape[:3]
    m, channels = len(trial.mosaics) // n, trial.x.shape[1]
    r = positive(relevance, d)
    if d == FIXED and r.shape[1] == 1 < channels:
        r = r.expand(-1, channels, -1, -1) / channels  # or it counts `channels` times against a mask of every channel
    at_x, at_mosaics, at_masked = r[:n], r[n : n + m * n], r[n + m * n :].view(2, steps, n, *r.shape[1:])
    far = torch.stack([torch.stack([dice(at_x, step, d) for step in order], 1) for order in at_masked])
    start = trial.outputs[0, 0]
    ratios = trial.outputs[:, 1:] / (start + (1e-9 if d == PUBLISHED else 0))
    faithfulness = overlap(at_x, trial.impact, d)
    robustness = 1 - 2 * dice(far[MOST] - far[LEAST], (ratios[LEAST] - ratios[MOST]).T, d)
    lc = (faithfulness + robustness).relu() / 2
    contrastiveness = overlap(at_mosaics, trial.score, d).relu().view(m, n).mean(0)
    return {
        "robustness": robustness,
        "faithfulness": faithfulness,
        "lc": lc,
        "contrastiveness": contrastiveness,
        "gae": lc * contrastiveness,
    }
