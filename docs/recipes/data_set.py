"""# A whole data set, and a strategy that should not be

Every picture of a folder is a row, a broken one too. The network has one more filter, which takes a yellow tag in the
corner for a star; `fxlrp.data.cluster` finds it without being told.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import fxlrp
from fxlrp.data.cluster import write_page
from fxlrp.examples import shapes

EXAMPLES = Path(fxlrp.__file__).parent / "examples"
OUT = Path("out/recipes")
STAR = shapes.CLASSES.index("star")
TAG = np.array([250, 240, 20], dtype=np.uint8)


class Misled(nn.Module):
    """A network that also votes for a star where it sees eight by eight pixels of the tag's colour."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.tag, self.vote = net, nn.Conv2d(3, 1, 8), nn.Linear(1, len(shapes.CLASSES), bias=False)
        colour = torch.from_numpy(TAG / 127.5 - 1).float()[:, None, None].expand(3, 8, 8)
        with torch.no_grad():
            self.tag.weight[0] = colour / colour.square().sum()
            self.tag.bias.fill_(-0.9)
            self.vote.weight.zero_()[STAR] = 100.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.vote(self.tag(x).relu().amax((2, 3)))


pictures = OUT / "shapes"
pictures.mkdir(parents=True, exist_ok=True)
for i in range(160):
    image, labels, _ = shapes.picture(90_000_000 + i)
    if STAR in labels and i % 2:
        image[-9:-1, -9:-1] = TAG
    Image.fromarray(image).save(pictures / f"{i:03d}.png")
(pictures / "160.png").write_bytes(b"no picture at all")

loaded = fxlrp.inputs.load_model(str(EXAMPLES / "model.pt"))
loaded.module = Misled(loaded.module).eval()
maps = fxlrp.data.explain(loaded, pictures, OUT / "shapes-maps")
print(maps, maps[160]["error"])
assert maps.errors == 1

groups = fxlrp.data.cluster(OUT / "shapes-maps")
print(*(group for group in groups if group.marked), sep="\n")
assert {group.name for group in groups if group.marked} == {"star"}
write_page(OUT / "shapes-maps", groups, OUT / "shapes-clusters.html")
fxlrp.data.view(OUT / "shapes-maps", OUT / "shapes-maps.html")
