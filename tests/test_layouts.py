"""Ops tried one by one: where they put the samples, and that they keep them apart, as nudging the network agrees."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fxlrp.capture.model import Capture, capture
from fxlrp.graph.layouts import Layouts, locate
from fxlrp.graph.probe import Probe
from fxlrp.graph.samples import Samples, batch_symbols
from fxlrp.nodes import outputs_of
from fxlrp.rules.per_sample import SampleAxis

W = torch.randn(6, 6)

MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(0, keepdim=True),
    "cumsum": lambda x: x.cumsum(0),
    "cummax": lambda x: x.cummax(0).values,
    "flip": lambda x: x.flip(0),
    "roll": lambda x: x.roll(1, 0),
    "sort": lambda x: x.sort(0).values,
    "softmax": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(0),
    "gram": lambda x: x @ x.T @ x,
    "first row": lambda x: x + x[:1],
    "other row": lambda x: x[torch.arange(len(x)).flip(0)],
    "statistics": lambda x: F.batch_norm(x, None, None, training=True),
    "group norm": lambda x: F.group_norm(x.T[None], 1)[0].T,
    "attention": lambda x: F.scaled_dot_product_attention(*[x[None, None]] * 3)[0, 0],
    "convolution": lambda x: F.conv1d(x.T[:, None], torch.ones(1, 1, 3), padding=1)[:, 0].T,
    "convolution of rows": lambda x: F.conv1d(x, torch.ones(x.shape[0], x.shape[0], 1)),
    "filters of rows": lambda x: F.conv1d(x[:, None], x[:, None, :3]).mean(1),
    "weights of rows": lambda x: F.linear(x, x).sum(1, keepdim=True),
    "spectrum over rows": lambda x: torch.fft.ifft(torch.fft.fft(x, dim=0) * 2, dim=0).real,
    "differences": lambda x: torch.diff(x, dim=0, append=x.new_zeros(1, 6)),
    "another order": lambda x: x[torch.arange(len(x))][torch.arange(len(x)).flip(0)],
    "sums of later rows": lambda x: torch.ones(x.shape[0], x.shape[0]).triu() @ x,
    "rows beside rows": lambda x: (x[:, None] + x[None]).mean(1),
    "rows above rows": lambda x: (x[:, None] + x[None]).mean(0),
    "added to other rows": lambda x: x.index_add(0, torch.arange(len(x)).flip(0), x),
    "pooling": lambda x: F.max_pool1d(x.T[None], 3, 1, 1)[0].T,
    "pooling of two axes": lambda x: F.avg_pool2d(x.T[None], 3, 1, 1)[0].T,
    "adaptive pooling": lambda x: F.adaptive_avg_pool1d(x.T[None], 1)[0].T + x,
    "norm of all": lambda x: x / x.norm(),
    "largest of all": lambda x: x / x.amax(),
    "folded": lambda x: x.reshape(-1).cumsum(0).reshape(x.shape),
    "after many": lambda x: F.layer_norm(F.relu(x @ W), (6,)).softmax(1).flip(0),
}
APART: dict[str, Callable[[Tensor], Tensor]] = {
    "products": lambda x: F.relu(x @ W) @ W.T,
    "softmax": lambda x: x.softmax(1),
    "layer norm": lambda x: F.layer_norm(x, (6,)),
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(6), torch.ones(6)),
    "sort": lambda x: x.sort(1).values,
    "flip": lambda x: x.flip(1),
    "columns": lambda x: torch.cat([x[:, 2:], x[:, :2]], 1),
    "rows of its own": lambda x: x - x.mean(1, keepdim=True),
    "attention": lambda x: F.scaled_dot_product_attention(*[x.view(x.shape[0], 1, 3, 2)] * 3).flatten(1),
    "convolution": lambda x: F.max_pool1d(F.conv1d(x[:, None], torch.ones(2, 1, 3), padding=1), 3, 1, 1)[:, 1],
    "pooling": lambda x: F.adaptive_max_pool1d(F.avg_pool2d(x.view(-1, 2, 3), (1, 2)), 1).flatten(1),
    "spectrum": lambda x: torch.fft.irfft(torch.fft.rfft(x) * torch.tensor([1.0, 2j, 3.0, 1j]), n=6),
    "turned": lambda x: torch.view_as_real(torch.complex(x[:, :3], x[:, 3:]).conj() * 1j).flatten(1).softmax(1),
    "other axis": lambda x: x.T.softmax(0).T,
    "outer": lambda x: torch.einsum("bi,ij,bj->bi", x, W, x),
}


class Calling(nn.Module):
    """A function as a module."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


FOLDED: dict[str, Callable[[Tensor], Tensor]] = {
    "windows": lambda x: F.layer_norm(x.reshape(-1, 2) @ W[:2, :2], (2,)).softmax(1).reshape(x.shape),
    "heads": lambda x: torch.bmm(h := x.view(-1, 3, 2).transpose(0, 1).flatten(0, 1)[:, None], h.mT).flatten()[:, None],
    "heads last": lambda x: F.linear(x, W).view(-1, 2, 3).transpose(1, 2).reshape(-1, 2).flip(1).sum(1, keepdim=True),
    "channels": lambda x: F.conv1d(x.reshape(1, -1, 2), torch.ones(x.shape[0] * 3, 1, 1), groups=x.shape[0] * 3)[0],
    "padded": lambda x: F.pad(x.view(-1, 2), (1, 2), value=3.0),
    "both ways": lambda x: torch.cat([x.view(-1, 2), x.flip(1).view(-1, 2)], 1).sort(1).values,
    "split": lambda x: (lambda a, b: a.cumsum(1) * b.amax(1, keepdim=True))(*x.view(-1, 2).split(1, 1)),
    "chosen": lambda x: x.view(-1, 3).topk(2).values.gather(1, torch.tensor([[1, 0]]).expand(x.shape[0] * 2, 2)),
    "shared order": lambda x: x.view(-1, 3)[:, torch.arange(3).flip(0)],
    "two orders": lambda x: (
        x.view(-1, 3).softmax(1).view(x.shape)
        + x.view(-1, 2, 3).transpose(0, 1).flatten(0, 1).softmax(1).unflatten(0, (2, -1)).transpose(0, 1).flatten(1)
    ),
    "stacked": lambda x: (x.view(-1, 3) * torch.tensor([1.0, 2.0])[:, None, None]).sum(0),
    "masked": lambda x: x.view(-1, 3).masked_fill(torch.arange(3) > 1, 0.5).prod(1),
}


def captured_of(f: Callable[[Tensor], Tensor]) -> tuple[Capture, Layouts, fx.Node]:
    captured = capture(Calling(f).eval(), (torch.randn(2, 6),), {})
    (start,), (end, *_) = captured.graph.graph.find_nodes(op="placeholder"), outputs_of(captured.graph)
    symbols = batch_symbols(captured.graph, captured.axes)
    return captured, Layouts(captured.graph, captured.inputs, {start: SampleAxis(0)}, 2, symbols, {}), end


@pytest.mark.parametrize("name", MIXING)
def test_ops_that_mix_samples(name: str) -> None:
    *_, layouts, end = captured_of(MIXING[name])
    assert layouts.of[end] is None


@pytest.mark.filterwarnings("error:Casting complex")
@pytest.mark.parametrize("name", APART)
def test_ops_that_keep_them_apart(name: str) -> None:
    *_, layouts, end = captured_of(APART[name])
    assert layouts.of[end] == SampleAxis(0)


@pytest.mark.parametrize("name", FOLDED)
def test_a_batch_folded_into_another_axis(name: str) -> None:
    """Each layout is the only one that nudging the first sample, and the last, leaves; all are known."""
    captured, layouts, _ = captured_of(FOLDED[name])
    nodes = {n for n in layouts.of if isinstance(n.meta.get("val"), Tensor)}
    probe = Probe(
        captured.graph, captured.inputs, dict.fromkeys(captured.graph.graph.find_nodes(op="placeholder"), SampleAxis(0))
    )
    changed = [probe.changes(sample, nodes) for sample in (0, 1)]
    assert any(at.after > 1 or at.before > 1 for n in nodes if isinstance(at := layouts.of[n], SampleAxis))
    for node in nodes:
        assert isinstance(at := layouts.of[node], SampleAxis), node.format_node()
        for sample, masks in enumerate(changed):
            assert masks is not None
            assert not masks[node].any() or at in locate(masks[node], [at.axis], 2, sample), node.format_node()


def test_blocks_that_fold_the_batch_are_not_run() -> None:
    """Attention by heads in the batch's axis needs no run of the network, however deep it is."""
    layers = nn.Sequential(*(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True) for _ in range(3)), nn.Flatten())
    captured = capture(layers.eval(), (torch.randn(2, 4, 6),), {})
    places = {0: captured.graph.graph.find_nodes(op="placeholder")}
    nodes = {n for n in captured.graph.graph.nodes if n.op == "call_function"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Probe, "changes", None)
        samples = Samples(captured, places, nodes)
    folded = [at for n in nodes if (at := samples.of(n)) is not None and at.after * at.before > 1]
    assert folded
    assert all(samples.of(n) is not None for n in nodes if isinstance(n.meta["val"], Tensor))


def test_a_repeated_op_is_tried_once() -> None:
    *_, layouts, _ = captured_of(lambda x: F.softmax(F.softmax(F.softmax(x, 1), 1), 1))
    assert len(layouts.tried) == 1


def test_a_layout_that_is_not_the_only_one_is_not_known() -> None:
    """Where few entries change, they may fit several; so they do if one sample shows none."""
    *_, layouts, _ = captured_of(lambda x: x.view(-1, 2))
    mask = torch.zeros(2, 8, dtype=torch.bool)
    mask[0, 0] = mask[1, 6] = True  # [1, samples, 4] as well as [2, samples, 2]
    assert layouts._fitting(torch.empty(8), list(mask)) is None
    mask[1, 5] = True
    assert layouts._fitting(torch.empty(8), list(mask)) == SampleAxis(0, 1, 4)
    mask[1] = False
    assert layouts._fitting(torch.empty(8), list(mask)) is None
