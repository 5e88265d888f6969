"""Every kernel of fxlrp.fast equals the rule it stands for, and what it knows beforehand is true, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_rules import BATCHED, ROWS, Row, aten, name, rand, rule_of, site
from torch import Tensor
from torch.utils import _pytree as pytree

import fxlrp
from fxlrp import acceleration
from fxlrp.engine.replaced import ByRule
from fxlrp.rules.folded import FoldedProduct
from fxlrp.rules.normalise import MASS, NONE
from fxlrp.rules.per_sample import WHOLE, Placement, SampleAxis
from fxlrp.rules.registry import Rule, find_rulebook

if not acceleration.FAST:
    pytest.skip("fxlrp.fast is switched off", allow_module_level=True)

from fxlrp.fast import memory, products
from fxlrp.fast.kernels import KERNELS, kernel_of
from fxlrp.fast.replaced import Fast, InGraph

CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def call(row: Row, at: ByRule, positive: bool = False) -> tuple[Tensor, Tensor, list[Tensor], tuple, dict[str, Any]]:
    """g, z, the tensors that take relevance, args and kwargs of a row; `positive` where all of the first is ≥ 0."""
    leaves, spec = pytree.tree_flatten(row.args)
    if positive:
        leaves[at.argnums[0]] = leaves[at.argnums[0]].abs()
    args, kwargs = pytree.tree_unflatten(leaves, spec), row.kwargs or {}
    z = row.op(*args, **kwargs)
    return rand(*z.shape, seed=9), z, [leaves[i] for i in at.argnums], args, kwargs


def same(row: Row, at: ByRule, fast: Fast, run: Callable[[ByRule], Any], xs: list[Tensor]) -> None:
    for x, a, b in zip(xs, run(fast), run(at), strict=True):
        torch.testing.assert_close(x * a, x * b, **CLOSE)


FAST = [row for row in ROWS if kernel_of(site(row, NONE))]


def test_every_kernel_has_a_row() -> None:
    used = {id(kernel_of(site(row, NONE))) for row in FAST}
    elsewhere = (fxlrp.rules.absolute.grouped_mm, fxlrp.rules.signed.identity, fxlrp.rules.signed.layer_norm)
    missing = {key for key, kernel in KERNELS.items() if id(kernel) not in used and key[0] not in elsewhere}
    assert not missing


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("row", FAST, ids=name)
def test_equals_its_rule(row: Row, nonneg: bool) -> None:
    at = site(row, NONE)
    fast = Fast(at, kernel_of(at), (nonneg,) + (False,) * (len(at.argnums) - 1))
    g, z, xs, args, kwargs = call(row, at, nonneg)
    same(row, at, fast, lambda op: op.call_rule(g.clone(), z, xs, args, kwargs), xs)


@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("row", [r for r in BATCHED if r in FAST], ids=name)
def test_keeps_mass_as_its_rule(row: Row, rectified: bool) -> None:
    at = site(row, MASS)
    fast = Fast(at, kernel_of(at), (False,) * len(at.argnums), InGraph(rectified=rectified))
    g, z, xs, args, kwargs = call(row, at)
    if rectified:  # by a ReLU, behind which no relevance stands where z < 0
        g, z = g * (z > 0), z.relu()
    same(row, at, fast, lambda op: op.propagate(g.clone(), z, xs, args, kwargs), xs)


@pytest.mark.parametrize("row", [r for r in BATCHED if r in FAST and kernel_of(site(r, MASS)).keeps_sign], ids=name)
def test_one_sided_relevance_stays_so_and_its_mass_is_told(row: Row) -> None:
    at = site(row, MASS)
    fast = Fast(at, kernel_of(at), (False,) * len(at.argnums), InGraph(one_sided=True))
    g, z, xs, args, kwargs = call(row, at)
    g = g.abs() * z.sign()
    wanted = at.propagate(g.clone(), z, xs, args, kwargs)
    known = (z * g).flatten(1).sum(1)
    for mass, factor in ((None, 1), (known, 3)):  # one that is told may come with g of any scale
        found, masses = fast.propagate_mass(factor * g, z, xs, args, kwargs, mass)
        for x, a, b, told in zip(xs, found, wanted, masses, strict=True):
            assert (x * a >= -1e-12).all()
            torch.testing.assert_close(x * a, x * b, **CLOSE)
            torch.testing.assert_close(told, (x * a).flatten(1).sum(1), **CLOSE)


@pytest.mark.parametrize("row", [r for r in FAST if kernel_of(site(r, NONE)).contributions], ids=name)
def test_the_sum_they_give_is_the_transpose_of_how_they_give(row: Row) -> None:
    """Σ_i |R_i| at each entry j of the output is x ⊙ give(e_j), summed."""
    at = site(row, NONE)
    fast = Fast(at, kernel_of(at), (False,) * len(at.argnums))
    _, z, xs, args, kwargs = call(row, at)
    by = fast._contributions(z, args, kwargs)
    total = by.total()
    for j in range(z.numel()):
        s = torch.zeros_like(z)
        s.view(-1)[j] = 1
        given = sum(float((x * c).sum()) for x, c in zip(xs, by.give(s), strict=True))
        assert abs(float(total.flatten()[j]) - abs(given)) < 1e-10


PRODUCTS = [r for r in ROWS if getattr(r.op, "overloadpacket", None) in (aten.linear, aten.conv2d, aten.matmul)]
PRODUCTS = [r for r in PRODUCTS if r.argnums in ((0,), (1,))]


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("book", ["zplus", "alpha-beta", "alpha-beta:alpha=1,beta=0", "gamma", "abslrp-hybrid"])
@pytest.mark.parametrize("row", PRODUCTS, ids=name)
def test_classic_products(row: Row, book: str, nonneg: bool) -> None:
    entry = find_rulebook(book).lookup(row.op, row.argnums)
    assert isinstance(entry, Rule)
    at = ByRule(row.op, entry, "row", "test", NONE, row.argnums, Placement(WHOLE, (WHOLE,)))
    kernel = kernel_of(at)
    assert kernel
    g, z, xs, args, kwargs = call(row, at, nonneg)
    same(row, at, Fast(at, kernel, (nonneg,)), lambda op: op.call_rule(g.clone(), z, xs, args, kwargs), xs)


SIGNED = [
    Row(aten.gelu.default, (rand(2, 5),)),
    Row(aten.sigmoid.default, (torch.tensor([[0.0, 1, -2], [3, 0, -1]]).double(),)),
    Row(aten.threshold.default, (rand(2, 5), 0.1, -0.3)),
    Row(aten.prelu.default, (rand(2, 5), torch.full((5,), 0.2).double())),
    Row(aten.layer_norm.default, (rand(2, 3, 8), [8], rand(8, seed=1), rand(8, seed=2))),
    Row(aten.layer_norm.default, (rand(2, 3, 8), [3, 8])),
]


@pytest.mark.parametrize("row", SIGNED, ids=name)
def test_signed_rules(row: Row) -> None:
    entry = find_rulebook("attnlrp").lookup(row.op, (0,))
    at = ByRule(row.op, entry, "row", "test", NONE, (0,), Placement(WHOLE, (WHOLE,)))
    kernel = kernel_of(at)
    assert kernel
    g, z, xs, args, kwargs = call(row, at)
    same(row, at, Fast(at, kernel, (False,)), lambda op: op.call_rule(g.clone(), z, xs, args, kwargs), xs)


@pytest.mark.parametrize("at", [(0,), (1,), (0, 1)])
def test_a_summand_known_to_be_nonnegative(at: tuple[int, ...]) -> None:
    x4 = rand(2, 4, 5, 5)
    xs = [x4.clone().clamp(min=0) if i in at else rand(*x4.shape, seed=i + 3) for i in (0, 1)]
    z, add = xs[0] + xs[1], KERNELS[fxlrp.rules.absolute.add, None, (0, 1)].contributions
    g = rand(*z.shape, seed=9)
    known = add(z, *xs, nonnegs=(0 in at, 1 in at)).rule(g, z)
    assert known[0].data_ptr() != known[1].data_ptr()  # each is somebody's own
    for x, a, b in zip(xs, known, add(z, *xs).rule(g, z), strict=True):
        torch.testing.assert_close(x * a, x * b, rtol=0, atol=0)


def test_grouped_mm_is_a_linear_per_group() -> None:
    x, w, offs = rand(5, 8).float(), rand(3, 8, 4, seed=1).float(), torch.tensor([2, 2, 5], dtype=torch.int32)
    z = torch.cat([x[:2] @ w[0], x[2:] @ w[2]])
    g = rand(5, 4, seed=2).float()

    def grouped(x: Tensor, w: Tensor, offs: Tensor) -> Tensor:
        return torch.cat([x[a:b] @ w[i] for i, (a, b) in enumerate(zip([0, 2, 2], offs.tolist(), strict=True))])

    rule = fxlrp.rules.absolute.absolute
    parts = [(slice(0, 2), 0), (slice(2, 5), 2)]
    expected = torch.cat([rule(g[i], z[i], x[i], w[k], op=aten.mm.default, argnums=(0,))[0] for i, k in parts])
    torch.testing.assert_close(products.grouped_mm(z, x, w, offs, op=grouped).rule(g, z)[0], expected)
    formula = find_rulebook("abslrp").lookup(aten._grouped_mm.default, (0,)).fn
    torch.testing.assert_close(formula(g, z, x, w, offs, op=grouped)[0], expected)


def test_a_large_weight_is_taken_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    z, g, x, w, b = rand(2, 7), rand(2, 7, seed=1), rand(2, 5, seed=2), rand(7, 5, seed=3), rand(7, seed=4)

    def both() -> list[Tensor]:
        made = [products.linear(z, x, w, b, nonneg=n) for n in (False, True)]
        return [t for by in made for t in (*by.rule(g, z), by.total())]

    whole = both()
    monkeypatch.setattr(memory, "LARGE", 10)
    pieces = both()
    for a, c in zip(whole, pieces, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("book", ["zplus", "alpha-beta", "gamma"])
def test_classic_rules_take_a_large_weight_in_pieces(book: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = Row(aten.linear.default, (rand(2, 5, seed=2), rand(7, 5, seed=3), rand(7, seed=4)))
    entry = find_rulebook(book).lookup(row.op, (0,))
    at = ByRule(row.op, entry, "row", "test", NONE, (0,), Placement(WHOLE, (WHOLE,)))
    monkeypatch.setattr(memory, "LARGE", 10)
    g, z, xs, args, kwargs = call(row, at)
    same(row, at, Fast(at, kernel_of(at), (False,)), lambda op: op.call_rule(g, z, xs, args, kwargs), xs)


@pytest.mark.parametrize("size", [10, 5000])
@pytest.mark.parametrize("batch", [SampleAxis(0), SampleAxis(1), SampleAxis(0, 1, 3), WHOLE], ids=str)
def test_products_per_sample(batch: SampleAxis, size: int) -> None:
    a, b = rand(6, 3, size), rand(6, 3, size, seed=1)
    parts = {0: (a * b).sum((1, 2)), 1: (a * b).sum((0, 2)), -1: (a * b).sum()[None]}[batch.axis]
    parts = parts.view(-1, batch.after).sum(1)
    torch.testing.assert_close(memory.sample_dot(a, b, batch), parts)
    twice = torch.vmap(lambda b: memory.sample_dot(a, b, batch))(torch.stack([b, -2 * b]))
    torch.testing.assert_close(twice, torch.stack([parts, -2 * parts]))


def test_what_is_known_to_be_nonnegative_reaches_the_kernel() -> None:
    row, both = ROWS[0], next(r for r in ROWS if r.op is aten.add.Tensor and r.argnums == (0, 1))
    for nonneg in (False, True):
        fast = Fast(site(row, NONE), kernel_of(site(row, NONE)), (nonneg,))
        assert fast.kernel_takes == {"nonneg": nonneg}
    assert Fast(site(both, NONE), kernel_of(site(both, NONE)), (False, True)).kernel_takes == {"nonnegs": (False, True)}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("book", ["abslrp", "gamma"])
def test_a_folded_product_is_the_product_with_its_weight_scaled(book: str, transposed: bool) -> None:
    x, w, b, scale = rand(2, 3, 5), rand(*((3, 4, 2) if transposed else (4, 3, 2)), seed=1), rand(4, seed=2), rand(4)
    op = aten.conv_transpose1d.default if transposed else aten.conv1d.default
    scaled = w * (scale.view(1, 4, 1) if transposed else scale.view(4, 1, 1))
    z = op(x, scaled, b)
    entry, where = find_rulebook(book).lookup(op, (0,)), Placement(SampleAxis(0), (SampleAxis(0),))
    at = ByRule(op, entry, "row", "test", MASS, (0,), where)
    folded = ByRule(FoldedProduct(op, int(transposed)), entry, "row", "test", MASS, (0,), where)
    g = rand(*z.shape, seed=9)
    (wanted,) = at.propagate(g.clone(), z, [x], (x, scaled, b), {})
    for each in (folded, Fast(folded, kernel_of(folded), (False,))):
        leaf = x.clone().requires_grad_()
        torch.testing.assert_close(each(leaf, w, b, value=z, scale=scale), z)
        (found,) = torch.autograd.grad(each(leaf, w, b, value=z, scale=scale), leaf, g)
        torch.testing.assert_close(x * found, x * wanted, **CLOSE)


def test_mass_of_what_is_masked_is_finite() -> None:
    x = torch.tensor([[1.0, -torch.inf, 2.0], [-torch.inf, 3.0, -1.0]]).double()
    row = Row(aten.softmax.int, (x, -1))
    where = Placement(SampleAxis(0), (SampleAxis(0),), masked=True)
    at = ByRule(row.op, rule_of(row), "row", "test", MASS, (0,), where)
    add = find_rulebook("abslrp").lookup(aten.add.Tensor, (0,))
    shift = ByRule(aten.add.Tensor, add, "row", "test", MASS, (0,), where)
    for op, args, z in ((at, (x, -1), x.softmax(-1)), (shift, (x, 0.5), x + 0.5)):
        g = rand(2, 3, seed=9).masked_fill(z.isinf(), 0)
        (wanted,) = op.propagate(g.clone(), z, [x], args, {})
        (found,) = Fast(op, kernel_of(op), (False,)).propagate(g.clone(), z, [x], args, {})
        assert found.isfinite().all()
        torch.testing.assert_close(found, wanted, **CLOSE)


FORMS = [  # kernel, and the arguments behind the bias: stride, padding, dilation, groups
    *((3, (1, 1, 1, 1)), (3, (2, 1, 1, 1)), (2, (2, 0, 1, 1)), (1, (2, 0, 1, 1)), (1, (1, 0, 1, 1))),
    *((3, (1, 2, 2, 1)), (5, (3, 1, 1, 4)), (3, (2, 0, 1, 4)), (3, (1, "same", 1, 1)), (4, (1, "same", 1, 2))),
    (2, (1, "valid", 1, 1)),
]
TRANSPOSED = [
    (2, (2, 0, 0, 1, 1)),
    (3, (2, 1, 1, 1, 1)),
    (3, (1, 1, 0, 2, 1)),
    (3, (1, 0, 0, 1, 2)),
]


@pytest.mark.parametrize("nonneg", [False, True])
@pytest.mark.parametrize("book", ["gamma", "zplus", "alpha-beta"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_signed_kernels_of_convolutions_of_every_form(n: int, book: str, nonneg: bool) -> None:
    x = rand(2, 4, *[8] * n)
    x = x.abs() if nonneg else x
    straight = [(k, args, getattr(aten, f"conv{n}d"), (8, 4 // args[-1])) for k, args in FORMS]
    other = [(k, args, getattr(aten, f"conv_transpose{n}d"), (4, 8 // args[3])) for k, args in TRANSPOSED]
    for k, args, packet, (rows, columns) in (*straight, *other):
        overloads = ["padding"] if isinstance(args[1], str) else ["default", "input"]
        op = next(getattr(packet, name) for name in overloads if name in packet.overloads())
        given = [a if isinstance(a, str) or i == len(args) - 1 else [a] * n for i, a in enumerate(args)]
        if packet in (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d):
            given = [[a] * n if i != 3 else a for i, a in enumerate(args)]
        w, b = rand(rows, columns, *[k] * n, seed=1), rand(8, seed=2)
        z = op(x, w, b, *given)
        entry, where = find_rulebook(book).lookup(op, (0,)), Placement(SampleAxis(0), (SampleAxis(0),))
        at = ByRule(op, entry, "row", "test", NONE, (0,), where)
        g = rand(*z.shape, seed=9)
        (wanted,) = at.propagate(g.clone(), z, [x], (x, w, b, *given), {})
        (found,) = Fast(at, kernel_of(at), (nonneg,)).propagate(g.clone(), z, [x], (x, w, b, *given), {})
        torch.testing.assert_close(x * found, x * wanted, **CLOSE)
