"""Relevance of weights: by the definition of the ε-rule, over batches of any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxlrp
from tests.inside.networks import branches, captured


def test_it_is_each_weights_part_of_what_its_output_has() -> None:
    """R_ij = x_i w_ij / z_j · R_j of a dense layer, summed over samples: by two loops."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double().eval()
    x = torch.randn(5, 4).double()
    explainer = fxlrp.convert(model, rules="epsilon")
    found = explainer.weights([x[:2], x[2:]], target=1)
    latent = explainer(x, target=1, at=["0"]).latent["0"]
    z, w = model[0](x).detach(), model[0].weight.detach()
    expected = torch.zeros(3, 4).double()
    for j in range(3):
        for i in range(4):
            expected[j, i] = (x[:, i] * w[j, i] / z[:, j] * latent[:, j]).mean()
    torch.testing.assert_close(found.weight["0.weight"], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(found.channel["0.weight"], latent.mean(0))
    torch.testing.assert_close(found.size["0.weight"], latent.abs().mean(0))
    assert not found.weight_size
    each = explainer.weights([x[:2], x[2:]], target=1, each=True)
    part = x[:, None] * w / z[..., None] * latent[..., None]
    torch.testing.assert_close(each.weight["0.weight"], expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(each.weight_size["0.weight"], part.abs().mean(0), rtol=1e-5, atol=1e-7)
    assert found.count == each.count == 5
    assert list(found.weight) == ["0.weight", "2.weight"]


def test_without_a_bias_a_layers_weights_add_up_to_its_output_norms_folded_in() -> None:
    model, call, _, _ = branches()
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)
    found = fxlrp.convert(model).weights([(call["x"], torch.tensor([1, 2]))], target="label")
    assert set(found.weight) == {f"{m}.weight" for m in ("stem.0", "left", "right", "body.1", "head")}
    for name, weight in found.weight.items():
        assert weight.shape == model.get_parameter(name).shape
        torch.testing.assert_close(weight.sum(), found.channel[name].sum(), rtol=1e-6, atol=1e-9)


def test_every_layer_of_transformers_is_found() -> None:
    for name, count in (("vit", 14), ("bert", 20), ("gpt", 13)):
        explainer, call = captured(name)
        found = explainer.weights([call], target=1)
        assert len(found.weight) == count
        assert all(w.isfinite().all() and w.any() for w in found.weight.values())
    assert "half of" in str(found)


def test_what_is_no_data_is_said() -> None:
    model, call, _, _ = branches()
    explainer = fxlrp.convert(model)
    with pytest.raises(fxlrp.FxlrpError, match="no batch"):
        explainer.weights([])
    with pytest.raises(fxlrp.FxlrpError, match="inputs, classes"):
        explainer.weights([call["x"]], target="label")


def test_rules_of_first_layers_too() -> None:
    explainer, call = captured("branches")
    flat = explainer.by("epsilon-plus-flat").weights([call], target=1)
    assert flat.weight["stem.0.weight"].any()
