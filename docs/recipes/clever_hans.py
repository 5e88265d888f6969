"""# Clever Hans

A network learns bars of two directions, but one of them always has a small tag in its corner. It is right nearly
always, and the map shows why: it looks at the tag.
"""

import torch
from torch import Tensor, nn

import fxlrp


def pictures(count: int, tagged: bool) -> tuple[Tensor, Tensor]:
    x, y = 0.3 * torch.randn(count, 1, 16, 16), torch.randint(0, 2, (count,))
    for i, way in enumerate(y.tolist()):
        at = int(torch.randint(4, 12, ()))
        if way:
            x[i, 0, at, 4:12] += 0.5
            x[i, 0, :2, :2] += 2.0 * tagged
        else:
            x[i, 0, 4:12, at] += 0.5
    return x, y


torch.manual_seed(0)
net = nn.Sequential(
    *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)),
    *(nn.Flatten(), nn.Linear(256, 2)),
)
optimizer = torch.optim.Adam(net.parameters(), 3e-3)
for _ in range(60):
    x, y = pictures(64, tagged=True)
    optimizer.zero_grad()
    nn.functional.cross_entropy(net(x), y).backward()
    optimizer.step()

net.eval()
right = {
    tagged: float((net(x).argmax(1) == y).float().mean())
    for tagged in (True, False)
    for x, y in [pictures(500, tagged)]
}
print(f"right with the tag {right[True]:.0%}, without it {right[False]:.0%}")
x, y = pictures(64, tagged=True)
a = fxlrp.explain(net, x[y == 1], target=1, labels=["upright", "flat"])
heat = a.heatmap().clamp(min=0)
share = float(heat[:, :3, :3].sum() / heat.sum())
print(f"{share:.0%} of positive relevance lies on the tag, which is 4 % of the picture")
assert share > 0.3
a.save("out/recipes/clever_hans.png")
