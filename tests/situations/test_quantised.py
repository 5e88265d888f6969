"""Models quantised by torch.ao are explained as the models in floating point that they stand for."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

from fxlrp import convert

ao = pytest.importorskip("torch.ao.quantization")
engines = [e for e in torch.backends.quantized.supported_engines if e != "none"]
pytestmark = [
    pytest.mark.skipif(not engines, reason="this torch has no kernels for quantised tensors"),
    pytest.mark.filterwarnings("ignore"),
]
BOOKS = ["abslrp", "abslrp-hybrid", "epsilon", "zplus", "attnlrp", "gradient-input"]


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + self.inner(x)))


def dequantised(model: nn.Module, quantised: nn.Module) -> nn.Module:
    """The model in floating point, with the weights the quantised one has."""
    model, known = copy.deepcopy(model), dict(quantised.named_modules())
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.data = known[name].weight().dequantize()
    return model


def close(a: Tensor, b: Tensor, off: float) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=off * float(b.abs().max()))


@pytest.mark.parametrize("rules", BOOKS)
def test_dynamic(rules: str) -> None:
    model, x = Mixer().eval(), torch.randn(5, 8)
    quantised = ao.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    explainer = convert(quantised, rules=rules)
    a, b = explainer(x, target=1), convert(dequantised(model, quantised), rules=rules)(x, target=1)
    assert torch.equal(a.output, quantised(x))
    close(a.relevance, b.relevance, 1e-5)
    close(explainer(x[3:4], target=1).relevance, b.relevance[3:4], 1e-5)
    assert explainer.report().mode.endswith("any size")


@pytest.mark.parametrize("rules", BOOKS)
def test_static(rules: str) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.Flatten(), nn.Linear(32, 4))
    model = nn.Sequential(ao.QuantStub(), *layers, ao.DeQuantStub()).eval()
    model.qconfig = ao.get_default_qconfig(engines[-1])
    torch.backends.quantized.engine = engines[-1]
    ao.fuse_modules(model, [["1", "2"]], inplace=True)
    prepared = ao.prepare(model)
    x = torch.randn(6, 3, 7, 7)
    prepared(torch.randn(64, 3, 7, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = ao.convert(prepared)
    explainer = convert(quantised, rules=rules)
    a = explainer(x, target=1)
    assert torch.equal(a.output, quantised(x))
    plain = copy.deepcopy(layers)
    for at, name in ((0, "1"), (2, "3"), (4, "5")):
        plain[at].weight.data = quantised.get_submodule(name).weight().dequantize()
    b = convert(plain.eval(), rules=rules)(x, target=1)
    cosine = torch.cosine_similarity(a.relevance.flatten(1), b.relevance.flatten(1))
    assert cosine.median() > 0.98, cosine
    assert (cosine > 0.8).all(), cosine
    close(explainer(x[3:4], target=1).relevance, a.relevance[3:4], 1e-5)


class Steps(nn.Module):
    """The last state of both directions, of sequences that may be packed."""

    def __init__(self, layer: type[nn.RNNBase]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = layer(8, 6, 2, batch_first=True, bidirectional=True), nn.Linear(12, 4)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is not None:
            x = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
        states = self.layer(x)[1]
        return self.head((states[0] if isinstance(states, tuple) else states)[-2:].transpose(0, 1).flatten(1))


@pytest.mark.parametrize("rules", BOOKS)
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_steps(layer: type[nn.RNNBase], rules: str) -> None:
    model, x = Steps(layer).eval(), torch.randn(3, 4, 8)
    quantised = ao.quantize_dynamic(model, {layer, nn.Linear}, torch.qint8)
    plain = dequantised(model, quantised)
    for kind in ("weight", "bias"):
        for name, value in getattr(quantised.layer, f"get_{kind}")().items():
            getattr(plain.layer, name).data = value.dequantize() if value.is_quantized else value
    for call in ((x,), (x, torch.tensor([4, 3, 1]))):
        a, b = convert(quantised, rules=rules)(*call, target=1), convert(plain, rules=rules)(*call, target=1)
        assert torch.equal(a.output, quantised(*call))
        close(a.relevance, b.relevance, 1e-5)
