"""# A detector

Which pixels made it find this box? Understood are the dicts of boxes, scores and labels that torchvision's detectors
return, and the logits and boxes of transformers'. Here a detector of the example network's own cells.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp.boxes import boxes_in
from fxlrp.inputs import load_model

examples = Path(fxlrp.__file__).parent / "examples"
loaded = load_model(str(examples / "model.pt"))


class Detector(nn.Module):
    """The cell of each class that is surest of it is a box of 28 x 28 pixels; the two best are returned."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> list[dict[str, Tensor]]:
        scores = F.conv2d(self.net.forward_features(x), self.net.fc.weight[:, :, None, None], self.net.fc.bias)
        found = []
        for cells in scores.flatten(2):  # [classes, cells]
            best, cell = cells.max(1)
            chance, label = best.softmax(0).topk(2)
            middle = torch.stack([cell[label] % 8, cell[label] // 8], 1) * 8 + 4
            found.append({"boxes": torch.cat([middle - 14, middle + 14], 1), "scores": chance, "labels": label})
        return found


model = Detector(loaded.module).eval()
labels = (examples / "labels.txt").read_text().split()
how = {"labels": labels, "preprocess": loaded.preprocess}
picture = examples / "pictures" / "ring_star.png"
x = loaded.preprocess(fxlrp.inputs.open_picture(picture))[0][None]
for k in range(len(boxes_in(model(x), (64, 64)) or ())):
    a = fxlrp.explain(model, picture, box=k, **how)
    print(a)
    a.save(f"out/recipes/detector_{k}.png")
