"""What `fxlrp.ops` says of an op holds for it: each fact is tried on numbers."""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxlrp import acceleration, convert
from fxlrp.ops import OPS, Op, about, describe, overloads

aten = torch.ops.aten


def of(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


X, IMAGE, PAIRS = of(4, 6), of(1, 4, 6, 6), of(4, 3, 2)
MASK, ORDER = X > 0.3, torch.tensor([2, 0, 1])

# Arguments behind the first, and that one where it is not X, of every op that moves entries or keeps signs.


def each(names: str, value: Any) -> dict[str, Any]:
    return dict.fromkeys(names.split(), value)


CALLS: dict[str, tuple] = {
    "residual_sum": (X.flip(0), 3),
    **each("clone contiguous alias lift_fresh_copy _to_copy numpy_T mT t ravel atleast_1d squeeze tril triu", ()),
    **each(
        "diagonal diag_embed fft_fftshift fft_ifftshift fliplr flipud relu neg nan_to_num max min amax amin sort", ()
    ),
    **each("sum.default mean.default trace sqrt exp sigmoid hardsigmoid softplus relu6 square abs", ()),
    **each("amax amin sort linalg_vector_norm", ()),
    **each("feature_dropout alpha_dropout dropout", (0.5, False)),
    **each("cat concat concatenate stack hstack vstack", ([X, X.flip(0)],)),
    **each("transpose swapdims swapaxes moveaxis movedim", (0, 1)),
    **each("split unsafe_split chunk unsafe_chunk tensor_split", (2, 1)),
    **each("split_with_sizes unsafe_split_with_sizes", ([2, 4], 1)),
    **each("view reshape _unsafe_view", ([6, 4],)),
    **each("unbind topk kthvalue cummax median softmax.int var std cumsum getitem", (1,)),
    **each("mean.dim sum.dim_IntList flip", ([1],)),
    **each("expand_as view_as reshape_as type_as maximum minimum add mul multiply", (X.flip(0),)),
    **each("div divide", (X.flip(0).exp(),)),
    **each("expand broadcast_to", ([2, 4, 6],)),
    **each("repeat tile", ([2, 2],)),
    **each("max_pool1d max_pool2d max_pool2d_with_indices avg_pool1d avg_pool2d", (2,)),
    **each("unfold unfold_copy", (1, 3, 1)),
    **each("max_pool3d avg_pool3d", (1,)),
    **{f"adaptive_avg_pool{n}d": ([3] * n,) for n in (1, 2, 3)},
    **{f"upsample_nearest{n}d": ([7] * n,) for n in (1, 2)},
    **{f"upsample_{kind}{n}d": ([7] * n, False) for n, kind in ((1, "linear"), (2, "bilinear"), (3, "trilinear"))},
    "gather": (1, X.argsort(1)),
    "take_along_dim": (X.argsort(1), 1),
    "adaptive_max_pool2d": ([3, 3],),
    "to": (torch.float32,),
    "flatten": (0, 1),
    "unflatten": (1, [2, 3]),
    "permute": ([1, 0],),
    "unsqueeze": (-1,),
    "repeat_interleave": (2, 1),
    "slice": (1, 1, 5, 2),
    "select": (1, 2),
    "narrow": (1, 1, 3),
    "index": ([ORDER],),
    "index_select": (0, ORDER),
    "roll": ([1], [1]),
    "rot90": (1, [0, 1]),
    "im2col": ([2, 2], [1, 1], [0, 0], [1, 1]),
    "col2im": ([6, 6], [2, 2], [1, 1], [0, 0], [2, 2]),
    "as_strided": ([3, 2], [6, 1]),
    "pixel_shuffle": (2,),
    "pixel_unshuffle": (2,),
    "channel_shuffle": (2,),
    "masked_select": (MASK,),
    "slice_scatter": (X[:, :3], 1, 0, 3),
    "select_scatter": (X[0], 0, 2),
    "diagonal_scatter": (X.diagonal(),),
    "index_put": ([ORDER], X[:3]),
    "_unsafe_index_put": ([ORDER], X[:3], True),
    "masked_scatter": (MASK, X.flip(1)),
    "constant_pad_nd": ([1, 1], 0.5),
    "pad": ([1, 1], "constant", 0.5),
    "scatter": (1, X.argsort(1), X.flip(1)),
    "index_copy": (0, ORDER, X[:3].flip(1)),
    "index_add": (0, ORDER, X[:3].flip(1)),
    "scatter_add": (1, X.argsort(1), X.flip(1)),
    "scatter_reduce.two": (1, X.argsort(1), X.flip(1), "sum"),
    "index_fill": (0, ORDER, 0.5),
    "masked_fill": (MASK, 0.5),
    "where": (MASK, X, X.flip(1)),
    "_softmax": (1, False),
}
FIRST = {
    **each("pixel_shuffle pixel_unshuffle channel_shuffle im2col adaptive_max_pool2d max_pool2d", IMAGE),
    **each("max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d", IMAGE),
    **each("max_pool1d avg_pool1d adaptive_avg_pool1d upsample_nearest1d upsample_linear1d", PAIRS),
    **each("max_pool3d avg_pool3d adaptive_avg_pool3d upsample_trilinear3d", of(1, 2, 4, 4, 4)),
    "col2im": of(1, 16, 9),
}
NAMES = {
    (op.__name__ if isinstance(op, FunctionType | BuiltinFunctionType) else str(op).removeprefix("aten.")): op
    for op, known in OPS.items()
    if known.sign or (known.moves and not known.parts)
}


def call(name: str, change: Callable[[Any], Any]) -> list[Tensor]:
    """The results of an op for its arguments, those that are values changed."""
    op, known = NAMES[name], about(NAMES[name])
    behind = CALLS[name]
    lists = bool(behind) and isinstance(behind[0], list) and isinstance(behind[0][0], Tensor)
    args = behind if name == "where" or (lists and known.values == (0,) and name != "index") else (X, *behind)
    args = (FIRST[name], *args[1:]) if name in FIRST else args
    places = known.values

    def changed(a: Any) -> Any:
        return [change(t) for t in a] if isinstance(a, list) else change(a)

    out = op(*(changed(a) if i in places else a for i, a in enumerate(args)))
    outs = list(out) if isinstance(out, list | tuple) else [out]
    return [t for t in outs if t.is_floating_point()]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_said_of_signs(name: str) -> None:
    known = about(NAMES[name])
    if known.sign == "positive":
        assert all((t >= 0).all() for t in call(name, lambda a: a) if not t.isnan().any())
    if known.sign == "kept":
        assert all((t >= 0).all() for t in call(name, lambda a: a.abs() if isinstance(a, Tensor) else a))
    if known.sign is None:
        assert any((t < 0).any() for t in call(name, lambda a: a.abs() if isinstance(a, Tensor) else a))


@pytest.mark.parametrize("name", [n for n, op in NAMES.items() if about(op).moves])
def test_what_moves_gives_entries_of_its_values(name: str) -> None:
    known = about(NAMES[name])
    given: list[Any] = []
    found = call(name, lambda a: given.append(a) or a)
    entries = torch.cat([torch.as_tensor(v, dtype=torch.float64).flatten() for v in given])
    entries = torch.cat([entries, -entries]) if name == "neg" else entries
    for t in found:
        fits = torch.isin(t, entries if t.dtype == torch.float64 else entries.to(t.dtype))
        assert bool(fits.all()) or known.entrywise or (known.sign == "kept" and not t[~fits].any())
    if known.copies:
        (value,) = found
        torch.testing.assert_close(value.double(), X, atol=1e-6, rtol=1e-6)
    if known.chooses or not known.moves:
        return
    # other values take the same ways
    doubled = call(name, lambda a: 2 * a)
    assert all(torch.equal(d, 2 * t) for d, t in zip(doubled, found, strict=True))


def test_an_op_is_described_once() -> None:
    with pytest.raises(AssertionError, match="twice"):
        describe("relu", sign="kept")
    assert about(aten.relu.default).sign == "positive"
    assert about(aten.gelu.default) is about(overloads(aten.gelu)[0])
    assert about(len) == Op()


class Positive(nn.Module):
    """A product behind a ReLU and what keeps its sign."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f, self.head = f, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.f(x.relu()).flatten(1))


KEEPING: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(-1),
    "narrow": lambda x: x.narrow(1, 1, 2),
    "pixel_shuffle": lambda x: nn.functional.pixel_shuffle(x, 2),
    "hstack": lambda x: torch.hstack([x, x]),
    "half": lambda x: x / 2,
    "gather": lambda x: x.gather(1, torch.zeros(len(x), 2, 4, 4, dtype=torch.int64)),
    "fill": lambda x: x.masked_fill(x > 1, 0.5),
    "upsample": lambda x: nn.functional.interpolate(x, scale_factor=2.0),
    "window": lambda x: x.unfold(2, 2, 1),
    "minimum": lambda x: torch.minimum(x, x.flip(1)),
}
TURNING: dict[str, Callable[[Tensor], Tensor]] = {
    "minus": lambda x: -x,
    "times": lambda x: x * -2,
    "fill": lambda x: x.masked_fill(x > 1, -0.5),
    "pad": lambda x: nn.functional.pad(x, (1, 1), value=-1.0),
    "alpha": lambda x: torch.add(x, x.flip(1), alpha=-2),
    "weight": lambda x: x * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=x.dtype),
    "integers": lambda x: x * torch.tensor([1, -1, 1, -1]),
    "where": lambda x: torch.where(x > 1, x, -1.0),
    "scatter": lambda x: x.slice_scatter(torch.full_like(x[:, :1], -1.0), 1, 0, 1),
}


@pytest.mark.parametrize(("name", "kept"), [*((n, True) for n in KEEPING), *((n, False) for n in TURNING)])
def test_a_product_behind_what_keeps_a_sign_is_one(name: str, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sees values ≥ 0 for all that is known costs one product instead of two."""
    told: list[bool] = []
    with_kernel = acceleration.with_kernel

    def spied(replaced: Any, nonnegs: tuple[bool, ...]) -> Any:
        if replaced.op in (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default):
            told.append(nonnegs[0])
        return with_kernel(replaced, nonnegs)

    monkeypatch.setattr(acceleration, "with_kernel", spied)
    torch.manual_seed(0)
    model, x = Positive((KEEPING if kept else TURNING)[name]), torch.randn(2, 4, 4, 4, dtype=torch.float64)
    model(x.float())
    model.double().eval()
    convert(model, x, rules="abslrp")(x, target=0)
    assert told
    assert told[-1] is kept
