"""However an explanation is run, it is the eager one: joint, compiled by Inductor, as .pt2, by AOTInductor and as ONNX.

`pytest tests/test_ways.py --whole` tries every rulebook on every model in every way, which takes two hours; without
it, some.
"""

from __future__ import annotations

import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import randomize
from torch import Tensor, nn
from torch.nn import functional as F

import fxlrp
from fxlrp import FxlrpError, convert


class Called(nn.Module):
    """A function of a list of layers and of tensors."""

    def __init__(self, layers: list[nn.Module], forward: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layers, self.call = nn.ModuleList(layers), forward

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.call(*self.layers, *tensors)


def mlp() -> tuple[nn.Module, list[Tensor]]:
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 5)), [torch.randn(2, 12)]


def convolutions() -> tuple[nn.Module, list[Tensor]]:
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, 2), nn.SiLU())
    return nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), [torch.randn(2, 3, 10, 10)]


def batch_norm() -> tuple[nn.Module, list[Tensor]]:
    net = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)]
    return Called(
        [*net, nn.Linear(6, 5)],
        lambda a, an, b, bn, head, x: head((bn(b(y := an(a(x)).relu())) + y).relu().mean((2, 3))),
    ), [torch.randn(2, 3, 8, 8)]


def channels_last() -> tuple[nn.Module, list[Tensor]]:
    return Called(
        [nn.Conv2d(3, 6, 2, 2), nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 5)],
        lambda stem, norm, mix, head, x: head(
            F.adaptive_avg_pool2d(F.gelu(mix(norm(stem(x).permute(0, 2, 3, 1)))).permute(0, 3, 1, 2), 1).flatten(1)
        ),
    ), [torch.randn(2, 3, 8, 8)]


def upwards() -> tuple[nn.Module, list[Tensor]]:
    net = [nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ConvTranspose2d(4, 3, 3, 2), nn.Linear(3, 5)]
    return Called(net, lambda a, n, b, head, x: head(F.leaky_relu(b(n(a(x)).tanh())).amax((2, 3)))), [
        torch.randn(2, 2, 7, 7)
    ]


def attention() -> tuple[nn.Module, list[Tensor]]:
    def forward(qkv: nn.Module, out: nn.Module, norm: nn.Module, head: nn.Module, x: Tensor) -> Tensor:
        q, k, v = qkv(norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return head(x[:, 0])

    layers = [nn.Linear(8, 24), nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 5)]
    return Called(layers, forward), [torch.randn(2, 6, 8)]


def encoder() -> tuple[nn.Module, list[Tensor]]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", norm_first=True)
    return Called([layer, nn.Linear(8, 5)], lambda layer, head, x: head(layer(x).mean(1))), [torch.randn(2, 5, 8)]


def gates() -> tuple[nn.Module, list[Tensor]]:
    layers = [nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(6, 5)]
    return Called(
        layers,
        lambda a, b, c, head, x: head(F.glu(c(F.silu(a(x)) * b(x))) * torch.sigmoid(a(x)[:, :6])),
    ), [torch.randn(2, 6)]


def lstm() -> tuple[nn.Module, list[Tensor]]:
    layers = [nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 5)]
    return Called(layers, lambda cell, head, x: head(cell(x)[0][:, -1])), [torch.randn(2, 3, 4)]


def two_inputs() -> tuple[nn.Module, list[Tensor]]:
    layers = [nn.Linear(5, 6), nn.Linear(4, 6), nn.Bilinear(6, 6, 5)]
    return Called(layers, lambda a, b, both, x, y: both(a(x).relu(), b(y).tanh())), [
        torch.randn(2, 5),
        torch.randn(2, 4),
    ]


def tokens() -> tuple[nn.Module, list[Tensor]]:
    layers = [nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 5)]
    return Called(layers, lambda table, norm, mix, head, ids: head(F.gelu(mix(norm(table(ids)))).mean(1))), [
        torch.randint(0, 20, (2, 7))
    ]


def products() -> tuple[nn.Module, list[Tensor]]:
    layers = [nn.Linear(6, 8), nn.Conv1d(4, 4, 3, padding=1), nn.Linear(8, 5)]
    return Called(
        layers,
        lambda a, mix, head, x: head(torch.einsum("btc,bsc->bts", a(x), a(x)).softmax(-1) @ mix(a(x))).sum(1),
    ), [torch.randn(2, 4, 6)]


MODELS = (
    mlp, convolutions, batch_norm, channels_last, upwards, attention, encoder, gates, lstm, two_inputs, tokens,
    products,
)  # fmt: skip
DTYPES = (torch.float64, torch.float32)


def joint(explainer: fxlrp.Explainer, folder: Path) -> Callable[..., list[Tensor]]:
    graph = explainer.joint()
    strided = [n for n in graph.traced.graph.nodes if str(n.target).startswith("aten.as_strided")]
    assert not strided, "what is read or written by strides of its own is what compilers get wrong"
    assert not any(n.target is torch.sym_max for n in graph.traced.graph.nodes)
    return lambda *xs: list(graph(*xs, torch.full((len(xs[0]),), -1))[1:])


def compiled(explainer: fxlrp.Explainer, folder: Path) -> Callable[..., list[Tensor]]:
    fast = convert(explainer.model, rules=explainer.rulebook).compile()
    return lambda *xs: several(fast(*xs))


def exported(explainer: fxlrp.Explainer, folder: Path) -> Callable[..., list[Tensor]]:
    module = torch.export.load(explainer.export(folder / "e.pt2")).module()
    return lambda *xs: list(module(*xs, torch.full((len(xs[0]),), -1))[1:])


def aoti(explainer: fxlrp.Explainer, folder: Path) -> Callable[..., list[Tensor]]:
    package, data = explainer.export(folder / "e.pt2", aoti=True), folder / "data.pt"

    def run(*xs: Tensor) -> list[Tensor]:
        torch.save([*xs, torch.full((len(xs[0]),), -1)], data)
        done = subprocess.run([sys.executable, "-c", LOAD, package, data], capture_output=True, text=True)
        if done.returncode < 0 and torch.__version__ < "2.12":
            pytest.skip(f"the loader of torch {torch.__version__} was ended by signal {-done.returncode}")
        assert done.returncode == 0, done.stderr
        return torch.load(data)[1:]

    return run


LOAD = """
import sys, torch
run = torch._inductor.aoti_load_package(sys.argv[1])
torch.save(list(run(*torch.load(sys.argv[2]))), sys.argv[2])
"""
"""In a process of its own, which a fault in compiled code ends."""


def onnx(explainer: fxlrp.Explainer, folder: Path) -> Callable[..., list[Tensor]]:
    onnxruntime = pytest.importorskip("onnxruntime")
    try:
        file = explainer.export(folder / "e.onnx")
    except FxlrpError as error:
        pytest.skip(str(error))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def run(*xs: Tensor) -> list[Tensor]:
        given = (*xs, torch.full((len(xs[0]),), -1))
        out = session.run(None, {n: t.numpy() for n, t in zip(names, given, strict=True)})
        return [torch.from_numpy(o) for o in out[1:]]

    return run


def several(attribution: fxlrp.Attribution) -> list[Tensor]:
    r = attribution.relevance
    return list(r) if isinstance(r, tuple) else [r]


def pairs(way: Callable) -> list:
    """(way, model, rulebook, type) for all rulebooks and models; those that run without --whole first, by a hash."""
    dtypes = DTYPES[1:] * 2 if way is onnx else DTYPES  # onnxruntime has no convolution in float64
    every = [(m, r, dtypes[(i + j) % 2]) for i, m in enumerate(MODELS) for j, r in enumerate(fxlrp.rulebooks())]
    slow = "2024" if way is compiled else "none"  # the authors' rules take Inductor minutes
    every.sort(key=lambda p: (slow in p[1], zlib.crc32(f"{way.__name__} {p[0].__name__} {p[1]}".encode())))
    few = SOME.get(way.__name__, len(every))
    marks = [() if i < few else (pytest.mark.whole,) for i in range(len(every))]
    named = (f"{way.__name__}-{m.__name__}-{r}-{str(d)[6:]}" for m, r, d in every)
    return [pytest.param(way, *p, marks=m, id=n) for p, m, n in zip(every, marks, named, strict=True)]


SOME = {"joint": 12, "compiled": 3, "exported": 4, "aoti": 1, "onnx": 4}
"""How many are tried without --whole."""


@pytest.mark.parametrize(
    ("way", "make", "rules", "dtype"), [p for way in (joint, compiled, exported, aoti, onnx) for p in pairs(way)]
)
def test_as_eager(way: Callable, make: Callable, rules: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model, xs = make()
    model, xs = randomize(model).to(dtype), [x.to(dtype) if x.is_floating_point() else x for x in xs]
    explainer = convert(model, tuple(xs), rules=rules)
    run = way(explainer, tmp_path)
    for count in (2, 3):
        given = [torch.cat([x, x.flip(0)])[:count] for x in xs]
        for found, expected in zip(run(*given), several(explainer(*given)), strict=True):
            assert expected.any()
            off = (found - expected).abs().max() / expected.abs().max()
            assert off <= (1e-9 if dtype is torch.float64 else 1e-3), f"{off:.1e} of the largest relevance"


@pytest.mark.parametrize("way", [joint, exported, onnx])
def test_sums_at_places_are_sums_wherever_they_run(way: Callable, tmp_path: Path) -> None:
    """Places in order, too, where an optimizer takes what is added for what is written over."""
    torch.manual_seed(0)
    model = Called(
        [nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3)],
        lambda y, z, head, x: head(y(x).index_put_((torch.arange(len(x)),), z(x), accumulate=True)),
    ).eval()
    x = torch.randn(4, 5)
    explainer = convert(model, x)
    (found,), expected = way(explainer, tmp_path)(x), explainer(x).relevance
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
