"""Tensors that are written over are explained as the same model without writes is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError, convert

BOOKS = ("abslrp", "abslrp-hybrid", "gradient-input")
X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
PLACES = torch.tensor([[0, 1, 2, 0, 1, 2]])
EVERY_OTHER = torch.tensor([True, False] * 3)


def places(t: Tensor) -> Tensor:
    return PLACES.expand(len(t), 6)


def put(y: Tensor, z: Tensor, accumulate: bool) -> Tensor:
    return y.index_put_((torch.arange(len(y)),), z, accumulate=accumulate)


def after(y: Tensor, _: object) -> Tensor:
    """What was written into holds it."""
    return y


PAIRS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "power": (lambda y, z: y.abs_().add_(0.1).pow_(1.5), lambda y, z: (y.abs() + 0.1).pow(1.5)),
    "power of tensors": (lambda y, z: y.abs_().add_(1).pow_(z), lambda y, z: (y.abs() + 1).pow(z)),
    "difference": (lambda y, z: y.sub_(z, alpha=2), lambda y, z: y.sub(z, alpha=2)),
    "mean of two": (lambda y, z: y.lerp_(z, 0.3), lambda y, z: torch.lerp(y, z, 0.3)),
    "product": (lambda y, z: y.addcmul_(y, z, value=0.5), lambda y, z: torch.addcmul(y, y, z, value=0.5)),
    "sum at places": (lambda y, z: y.scatter_add_(1, places(y), z), lambda y, z: y.scatter_add(1, places(y), z)),
    "scatter that adds": (
        lambda y, z: y.scatter_(1, places(y), z, reduce="add"),
        lambda y, z: y.scatter_add(1, places(y), z),
    ),
    "scatter that adds a number": (
        lambda y, z: y.scatter_(1, places(y), 2.0, reduce="add") + z,
        lambda y, z: y.scatter_add(1, places(y), torch.full_like(y, 2.0)) + z,
    ),
    "scatter that multiplies": (
        lambda y, z: y.scatter_(1, places(y), z, reduce="multiply"),
        lambda y, z: y.scatter_reduce(1, places(y), z, "prod"),
    ),
    "put that adds": (lambda y, z: put(y, z, True), lambda y, z: y + z),
    "put": (lambda y, z: put(y, z, False), lambda y, z: z),
    "index": (
        lambda y, z: y.index_copy_(1, PLACES[0, 1:3], z[:, :2]),
        lambda y, z: torch.cat([y[:, :1], z[:, :2], y[:, 3:]], 1),
    ),
    "copy": (lambda y, z: y.clone().copy_(z) + y, lambda y, z: z + y),
    "copy of another type": (lambda y, z: y.clone().copy_(z.float()), lambda y, z: z.float().double()),
    "copy into a view": (
        lambda y, z: after(y, y[:, :2].copy_(z[:, 2:4])),
        lambda y, z: torch.cat([z[:, 2:4], y[:, 2:]], 1),
    ),
    "zeros in a view": (
        lambda y, z: after(y, y[:, :2].zero_()) + z,
        lambda y, z: y * torch.tensor([0, 0, 1, 1, 1, 1]) + z,
    ),
    "masked": (
        lambda y, z: y.masked_scatter_(EVERY_OTHER.expand_as(y), z[:, :3].contiguous()),
        lambda y, z: torch.stack([z[:, :3], y[:, 1::2]], 2).flatten(1),
    ),
    "turned": (
        lambda y, z: (y[:, :, None] * z[:, None, :3]).transpose_(1, 2).flatten(1)[:, :6],
        lambda y, z: (y[:, :, None] * z[:, None, :3]).transpose(1, 2).flatten(1)[:, :6],
    ),
    "whole numbers": (lambda y, z: y.mul_(4).round_() + z, lambda y, z: (y * 4).round() + z),
}


class Two(nn.Module):
    def __init__(self, body: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.y, self.z, self.head, self.body = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(6, 3), body

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.y(x), self.z(x)))


@pytest.mark.parametrize("name", PAIRS)
def test_writes_are_explained_as_what_they_write(name: str) -> None:
    writes, plain = (Two(body).double().eval() for body in PAIRS[name])
    a, b = convert(writes), convert(plain)
    for rules in BOOKS:
        found, expected = a.by(rules)(X, target=1), b.by(rules)(X, target=1)
        torch.testing.assert_close(found.output, writes(X).detach())
        torch.testing.assert_close(found.relevance, expected.relevance)
        assert found.relevance.any(1).all()


def test_what_has_no_derivative_is_named_with_the_way_out() -> None:
    model = Two(lambda y, z: (y * 4).floor_divide(1.5) + z).double().eval()
    with pytest.raises(
        FxlrpError, match=r"aten::floor_divide has no derivative.*@fxlrp.rule\(torch.ops.aten.floor_div"
    ):
        convert(model, rules="gradient-input")(X, target=1)
    assert convert(model)(X, target=1).relevance.any(1).all()
    op = torch.ops.aten.floor_divide
    fxlrp.rule(op)(lambda *_: (None,))
    try:
        assert convert(model, rules="gradient-input")(X, target=1).relevance.any(1).all()
    finally:
        fxlrp.unregister(op)
