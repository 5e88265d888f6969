"""# A segmentation

Why does this point of the map belong to that class? Here the example network gives its scores at each cell of its last
map, in the place of their mean; a network for segmentation is asked in the same way, by row and column of its map.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.inputs import load_model

examples = Path(fxlrp.__file__).parent / "examples"
loaded = load_model(str(examples / "model.pt"))


class Dense(nn.Module):
    """The scores of each class at each cell [B, 8, 8, 8]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.net.forward_features(x), self.net.fc.weight[:, :, None, None], self.net.fc.bias)


model = Dense(loaded.module).eval()
labels = (examples / "labels.txt").read_text().split()
picture = examples / "pictures" / "ring_star.png"
how = {"labels": labels, "preprocess": loaded.preprocess}
ring = fxlrp.explain(model, picture, position=(2, 6), html="out/recipes/segmentation.html", **how)
star = fxlrp.explain(model, picture, position=(4, 1), **how)
print(ring, star, sep="\n")
ring.save("out/recipes/segmentation.png")

left, right = (torch.stack([a.heatmap()[0].clamp(min=0)[:, side].sum() for side in (slice(32), slice(32, 64))])
               for a in (star, ring))  # fmt: skip
assert left[0] > left[1]  # the star is on the left, the ring on the right
assert right[1] > right[0]
