"""# An LSTM that forecasts

A series has a pulse somewhere, and the target is its height: relevance should lie on the pulse.
"""

import torch
from torch import Tensor, nn

import fxlrp


class Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0].mean(1))


def series(count: int, length: int = 30) -> tuple[Tensor, Tensor, Tensor]:
    at, height = torch.randint(2, length - 2, (count,)), torch.rand(count) * 2 + 0.5
    x = 0.05 * torch.randn(count, length, 1)
    x[torch.arange(count), at, 0] += height
    return x, height[:, None], at


torch.manual_seed(0)
net = Forecast()
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
for _ in range(150):
    x, y, _ = series(64)
    optimizer.zero_grad()
    (net(x) - y).square().mean().backward()
    optimizer.step()

x, _, at = series(16)
a = fxlrp.explain(net.eval(), x)
found = a.relevance[..., 0].argmax(1)
print("pulse at", at.tolist(), "most relevance at", found.tolist())
assert (found == at).float().mean() > 0.8
a.plot(index=1).savefig("out/recipes/forecast.png")
a.to_html("out/recipes/forecast.html", index=1)
