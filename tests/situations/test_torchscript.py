"""TorchScript modules, traced, scripted or frozen, are explained as the modules they were made of."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxlrp import convert

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:")
BOOKS = ("abslrp", "abslrp-hybrid", "epsilon", "zplus", "gradient-input")
LAYERS = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.BatchNorm3d, nn.ConvTranspose3d),
}


def network(axes: int) -> nn.Module:
    torch.manual_seed(0)
    conv, norm, up = LAYERS[axes]
    body = nn.Sequential(conv(2, 4, 3, stride=2), norm(4), nn.ReLU(), nn.Dropout(), up(4, 2, 2, stride=2, padding=1))
    nn.init.normal_(body[1].running_mean)
    nn.init.uniform_(body[1].running_var, 0.5, 2)
    return nn.Sequential(body, nn.Flatten(), nn.Linear(2 * 4**axes, 3)).double().eval()


def picture(axes: int) -> torch.Tensor:
    return torch.randn(2, 2, *[7] * axes, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


HOW: dict[str, Callable[[nn.Module, torch.Tensor], nn.Module]] = {
    "traced": torch.jit.trace,
    "scripted": lambda m, x: torch.jit.script(m),
    "frozen": lambda m, x: torch.jit.freeze(torch.jit.script(m)),
    "inside": lambda m, x: nn.Sequential(torch.jit.script(m[0]), m[1], m[2]).eval(),
}


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("how", list(HOW))
def test_as_the_module_it_was_made_of(how: str, rules: str) -> None:
    model, x = network(2), picture(2)
    expected = convert(model, rules=rules)(x, target=1)
    a = convert(HOW[how](model, x), rules=rules)(x, target=1)
    torch.testing.assert_close(a.relevance, expected.relevance, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(a.output, expected.output)


@pytest.mark.parametrize("axes", [1, 3])
def test_convolutions_along_other_axes(axes: int) -> None:
    model, x = network(axes), picture(axes)
    explainer = convert(torch.jit.trace(model, x))
    torch.testing.assert_close(explainer(x).relevance, convert(model)(x).relevance)
    assert not explainer.report().counts["generic"]
