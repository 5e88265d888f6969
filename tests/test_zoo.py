"""Families of torchvision and timm, small: no generic node, the model's own output, samples apart, in float64."""

from __future__ import annotations

import pytest
import torch
from conftest import randomize

import fxlrp

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

VIT = {"img_size": 64, "embed_dim": 24, "depth": 2, "num_heads": 3}
SWIN = {"img_size": 64, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
CONVNEXT = {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}
TIMM = {
    "test_resnet": {},
    "test_byobnet": {},
    "test_nfnet": {},
    "test_mambaout": {},
    "test_efficientnet": {},
    "test_efficientnet_gn": {},
    "test_efficientnet_ln": {},
    "test_convnext": {},
    "test_vit": {},
    "resnet10t": {},
    "seresnet18": {},
    "resnext26ts": {},
    "resnetv2_18": {},
    "densenet121": {"growth_rate": 4, "block_config": (2, 2)},
    "mobilenetv2_035": {},
    "mobilenetv3_small_050": {},
    "tf_efficientnetv2_b0": {},
    "convnext_atto": CONVNEXT,
    "convnextv2_atto": CONVNEXT,
    "vit_tiny_patch16_224": VIT,
    "vit_small_patch16_rope_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "deit3_small_patch16_224": VIT,
    "swin_tiny_patch4_window7_224": {**SWIN, "window_size": 4},
    "swinv2_tiny_window8_256": {**SWIN, "window_size": 4},
    "swinv2_cr_tiny_224": {**SWIN, "window_size": 4},
    "mixer_s32_224": {"img_size": 64},
}
TORCHVISION = ("resnet18", "squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t")


def check(model: torch.nn.Module) -> None:
    model = randomize(model)
    x = torch.randn(3, 3, 64, 64).double()
    explainer = fxlrp.convert(model, x, strict=True)
    for contrast in (None, "others"):
        a = explainer(x, contrast=contrast)
        torch.testing.assert_close(a.output, model(x), rtol=1e-10, atol=1e-10)
        assert a.relevance.isfinite().all()
        assert a.relevance.flatten(1).any(1).all()
        alone = explainer(x[1:2], contrast=contrast).relevance[0]
        least = max(1e-8 * a.relevance[1].abs().max().item(), 1e-17)  # of a mass of 1 before all that cancels
        torch.testing.assert_close(alone, a.relevance[1], rtol=0, atol=least)


@pytest.mark.every(2)
@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    check(timm.create_model(name, num_classes=7, **TIMM[name]))


@pytest.mark.every(2)
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    check(torchvision.models.get_model(name, num_classes=7))
