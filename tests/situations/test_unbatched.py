"""A single sample without an axis of samples, as [C, H, W], is explained as in a batch of one, by every rulebook."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import convert
from tests.conftest import randomize

AXES = (1, 2, 3)


class Net(nn.Module):
    """Convolutions with pooling between, over one, two or three axes, of a batch or of one sample."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        back = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
        pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[axes - 1](2)
        self.net = nn.Sequential(conv(2, 4, 2), nn.ReLU(), pool, conv(4, 4, 2, padding="same"), back(4, 3, 2, stride=2))
        self.axes, self.head = axes, nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x).relu().flatten(-self.axes).mean(-1))


@pytest.mark.parametrize("rules", sorted(fxlrp.rulebooks()))
@pytest.mark.parametrize("axes", AXES)
def test_one_sample_is_a_batch_of_one(axes: int, rules: str) -> None:
    model = randomize(Net(axes))
    x = torch.randn(2, *[5] * axes).double()
    alone, batch = convert(model, rules=rules)(x, target=1), convert(model, rules=rules)(x[None], target=1)
    torch.testing.assert_close(alone.output, batch.output[0])
    torch.testing.assert_close(alone.relevance, batch.relevance[0])
    assert alone.relevance.any()
