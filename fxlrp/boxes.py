"""The boxes that a detector found: where each is, of what, and its score as what is explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fxlrp.errors import FxlrpError
from fxlrp.show.words import name_of


class Box(NamedTuple):
    """A box that was found in a picture.

    corners: left, top, right and bottom, in parts of the width and height.  label: its class.  score: the model's, 0…1.
    question: the score, as an explainer is asked for it.
    """

    corners: tuple[float, float, float, float]
    label: int
    score: float
    question: dict[str, Any]

    def named(self, labels: Sequence[str]) -> str:
        """What it is of, and its score: `dog, 93.1 %`."""
        return f"{name_of(labels, self.label)}, {100 * self.score:.1f} %"


def boxes_in(output: Any, size: tuple[int, int], labels: Sequence[str] = ()) -> list[Box] | None:
    """The boxes of the first picture in a detector's output, the surest first; None for another model's.

    Understood are dicts of boxes [N, 4] (corners in pixels), scores [N] and labels [N], as torchvision returns them,
    and logits [B, N, K] with pred_boxes [B, N, 4] (middle and size, in parts of the picture), as transformers does.

    size: height and width of the picture in pixels, as the network takes it.
    """
    if not returns_boxes(output):
        return None
    return _by_queries(output, labels) if isinstance(output, Mapping) else _by_scores(output[0], size)


def returns_boxes(output: Any) -> bool:
    """Whether a model's output is one that `boxes_in` understands."""
    if isinstance(output, Mapping):
        return isinstance(output.get("pred_boxes"), Tensor) and "logits" in output
    is_list = isinstance(output, list | tuple) and len(output) > 0 and isinstance(output[0], Mapping)
    return is_list and {"boxes", "scores", "labels"} <= set(output[0])


def _by_scores(output: Mapping[str, Tensor], size: tuple[int, int]) -> list[Box]:
    height, width = size
    corners = (output["boxes"].detach().cpu() / torch.tensor([width, height, width, height])).tolist()
    rows = zip(corners, output["labels"].tolist(), output["scores"].tolist(), strict=True)
    every = [Box((x0, y0, x1, y1), k, s, {"target": _score(i)}) for i, ((x0, y0, x1, y1), k, s) in enumerate(rows)]
    return sorted(every, key=lambda box: -box.score)


def _score(i: int) -> Callable[[Any], Tensor]:
    return lambda output: output[0]["scores"][i : i + 1]


def _by_queries(output: Mapping[str, Tensor], labels: Sequence[str]) -> list[Box]:
    logits, places = output["logits"][0].detach().float().cpu(), output["pred_boxes"][0].detach().float().cpu()
    has_nothing = len(labels) and logits.shape[1] == len(labels) + 1  # the last class is no object
    chances = logits.softmax(1)[:, :-1] if has_nothing else logits.sigmoid()
    scores, classes = chances.max(1)
    corners = torch.cat([places[:, :2] - places[:, 2:] / 2, places[:, :2] + places[:, 2:] / 2], 1).tolist()
    every = []
    for i in scores.argsort(descending=True).tolist():
        left, top, right, bottom = corners[i]
        question = {"target": int(classes[i]), "position": i}
        every.append(Box((left, top, right, bottom), int(classes[i]), float(scores[i]), question))
    return every


def box_at(boxes: Sequence[Box] | None, k: int) -> Box:
    """The k-th of the boxes, the surest first.  Raises FxlrpError if there is none."""
    if boxes is None:
        raise FxlrpError("The model returns no boxes with scores and labels, so there is no box to explain.")
    if not 0 <= k < len(boxes):
        found = f"the last that was found is {len(boxes) - 1}" if boxes else "none was found"
        raise FxlrpError(f"There is no box {k}: {found}; a picture of what the model knows has more.")
    return boxes[k]
