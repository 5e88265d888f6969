"""# Unlearn an artefact by a loss on the map

A tag is planted in the corner of every star, until the network looks at the tag. Then the part of the map that lies on
it is the loss, and the network looks at the star again.
"""

from pathlib import Path

import torch

import fxlrp
from examples.shapes import CLASSES, batch
from fxlrp.inputs import load_model

torch.manual_seed(0)
star = CLASSES.index("star")
model = load_model(str(Path(fxlrp.__file__).parent / "examples" / "model.pt")).module
pictures, present = batch(range(60_000, 60_048))
x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
there = torch.from_numpy(present).float()
tagged = x.clone()
tagged[there[:, star] > 0, :, :8, :8] = 1  # a white square, on pictures with a star alone
probe = x.clone()
probe[:, :, :8, :8] = 1  # the same on every picture


def train(steps: int, weight: float) -> None:
    """Train on the tagged pictures, with the share of relevance on the tag as a part of the loss."""
    explainer = fxlrp.convert(model, rules="epsilon-plus", differentiable=True)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(steps):
        some = torch.arange(8) + 8 * (step % 6)
        a = explainer(tagged[some], target=star, contrast=None)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(a.logits, there[some])
        r = a.relevance.abs().sum(1)
        loss = loss + weight * (r[:, :8, :8].sum((1, 2)) / r.sum((1, 2)).clamp(min=1e-6)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def fooled() -> float:
    """How much the tag alone raises the score of star where there is none."""
    without = there[:, star] == 0
    with torch.no_grad():
        return float((model(probe[without]) - model(x[without]))[:, star].mean())


train(18, weight=0.0)
learned = fooled()
train(18, weight=20.0)
print(f"the tag raises the score of star by {learned:.2f}, and after unlearning by {fooled():.2f}")
assert fooled() < learned
fxlrp.convert(model)(probe[:1], target=star).save("out/recipes/unlearn.png")
