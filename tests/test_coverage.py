"""The coverage benchmark says of a model what is so: one that is fine, one that is not, one that can't be built."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from benchmarks import examine, zoo

pytest.importorskip("timm")


def test_a_small_model_is_ok() -> None:
    record = examine.examine(zoo.Entry("timm", "test_resnet"))
    assert record["ok"], record["error"]
    assert record["nodes"]["generic"] == 0
    assert record["forward_difference"] <= 1e-4


def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).float().sum((2, 3))

    monkeypatch.setattr(zoo, "build", lambda entry, full_size: (Deaf().eval(), (torch.randn(2, 3, 4, 4),), {}, ""))
    record = examine.examine(zoo.Entry("timm", "test_resnet"))
    assert not record["ok"]
    assert "No input carries relevance" in record["error"]


def test_every_zoo_is_listed() -> None:
    assert len(list(zoo.entries("timm"))) > 1000
    sample = zoo.sample([e for name in ("torchvision", "timm") for e in zoo.entries(name)])
    assert len(sample) >= 100
    assert len({e.family for e in sample if e.zoo == "timm"}) == len({e.family for e in zoo.entries("timm")})
