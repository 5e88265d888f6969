"""Where the samples of a call are: on any axis of any input, or nowhere, where a call is one sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxlrp import FxlrpError, convert
from tests.conftest import randomize

RULES = ("abslrp", "abslrp-hybrid", "epsilon", "gradient-input")


class Of(nn.Module):
    """What a function makes of layers and inputs."""

    def __init__(self, f: Callable, **layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.f = f

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.f(self.layers, *args, **kwargs)


def made(f: Callable, **layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return randomize(Of(f, **layers))


def x(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ids(*shape: int) -> Tensor:
    return torch.randint(0, 12, shape, generator=torch.Generator().manual_seed(1))


def mlp(i: int = 6, o: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(i, 8), nn.ReLU(), nn.Linear(8, o))


def recurrent(m: Any, t: Tensor, *state: Any) -> Tensor:
    return m["h"](m["r"](t, *state)[0][-1])


def continued() -> nn.Module:
    """Two layers that go on from a state [layers, B, H]."""
    layers = {"r": nn.LSTM(6, 8, 2, batch_first=True), "h": nn.Linear(8, 3)}
    return made(lambda m, t, h, c: m["h"](m["r"](t, (h, c))[0][:, -1]), **layers)


SEQUENCE_FIRST: dict[str, tuple[nn.Module, tuple, tuple[int | None, ...]]] = {
    "lstm": (made(recurrent, r=nn.LSTM(6, 8), h=nn.Linear(8, 3)), (x(4, 3, 6),), (1,)),
    "gru, both ways": (made(recurrent, r=nn.GRU(6, 8, bidirectional=True), h=nn.Linear(16, 3)), (x(4, 3, 6),), (1,)),
    "lstm, as long as there are samples": (made(recurrent, r=nn.LSTM(6, 8), h=nn.Linear(8, 3)), (x(3, 3, 6),), (1,)),
    "one step": (made(lambda m, t: m["h"](t[0]), h=mlp()), (x(1, 3, 6),), (1,)),
    "mean over steps": (made(lambda m, t: m["h"](t.mean(0)), h=mlp()), (x(5, 3, 6),), (1,)),
    "tokens": (
        made(lambda m, t: m["h"](m["r"](m["e"](t))[0][-1]), e=nn.Embedding(12, 6), r=nn.LSTM(6, 8), h=nn.Linear(8, 3)),
        (ids(5, 3),),
        (1,),
    ),
    "attention": (
        made(
            lambda m, t: m["h"](m["a"](t, t, t, need_weights=False)[0].mean(0)),
            a=nn.MultiheadAttention(6, 2),
            h=nn.Linear(6, 3),
        ),
        (x(4, 3, 6),),
        (1,),
    ),
    "a state of its own axis": (
        continued(),
        (x(3, 4, 6), x(2, 3, 8, seed=2), x(2, 3, 8, seed=3)),
        (0, 1, 1),
    ),
    "as many layers as samples": (
        continued(),
        (x(2, 4, 6), x(2, 2, 8, seed=2), x(2, 2, 8, seed=3)),
        (0, 1, 1),
    ),
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", list(SEQUENCE_FIRST))
def test_rows_of_a_batch_are_what_each_is_alone(name: str, rules: str) -> None:
    model, args, axes = SEQUENCE_FIRST[name]
    explainer = convert(model, rules=rules)
    a = explainer(*args)
    every = a.relevance if isinstance(a.relevance, tuple) else (a.relevance,)
    count = args[0].shape[axes[0] or 0]
    assert a.logits.shape == (count, 3)
    torch.testing.assert_close(a.output, model(*args))
    single = convert(model, rules=rules)
    for i in range(count):
        one = [t.narrow(axis, i, 1) if axis is not None else t for t, axis in zip(args, axes, strict=True)]
        alone = single(*one, target=int(a.target[i])).relevance
        for r, own, axis in zip(every, alone if isinstance(alone, tuple) else (alone,), axes, strict=True):
            torch.testing.assert_close(r.narrow(axis or 0, i, 1), own, rtol=1e-8, atol=1e-10)
    if rules != "epsilon":
        return
    named = convert(model, rules=rules, batch={str(i): axis for i, axis in enumerate(axes)})(*args)
    for r, own in zip(
        every, named.relevance if isinstance(named.relevance, tuple) else (named.relevance,), strict=True
    ):
        torch.testing.assert_close(r, own)


def graph(m: Any, nodes: Tensor, edges: Tensor, pool: bool = True) -> Tensor:
    h = m["a"](nodes)
    h = torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]).relu()
    return m["b"](h.mean(0, keepdim=True) if pool else h)


EDGES = torch.tensor([[0, 1, 2, 3, 1, 4, 2], [1, 2, 3, 0, 4, 2, 0]])
CONV = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
ONE_SAMPLE: dict[str, tuple[nn.Module, tuple, dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "a picture [C, H, W] to [K]": (made(lambda m, t: m["c"](t[None])[0], c=CONV), (x(3, 8, 8),), {}, lambda o: o.max()),
    "a picture to [1, K]": (made(lambda m, t: m["c"](t[None]), c=CONV), (x(3, 8, 8),), {}, lambda o: o.max()),
    "a sequence [T, F] to [K]": (
        made(lambda m, t: m["h"](m["r"](t)[0][-1]), r=nn.LSTM(6, 8), h=nn.Linear(8, 3)),
        (x(4, 6),),
        {},
        lambda o: o.max(),
    ),
    "a number": (made(lambda m, t: m["h"](t).sum(), h=mlp()), (x(1, 6),), {}, lambda o: o),
    "a graph": (made(graph, a=nn.Linear(6, 8), b=nn.Linear(8, 3)), (x(5, 6), EDGES), {}, lambda o: o.max()),
    "a graph, edges first": (
        made(lambda m, e, n: graph(m, n, e), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        (EDGES, x(5, 6)),
        {},
        lambda o: o.max(),
    ),
    "a node of a graph": (
        made(lambda m, n, e: graph(m, n, e, False), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        (x(5, 6), EDGES),
        {"position": 2, "target": 1},
        lambda o: o[2, 1],
    ),
    "a node by a dense matrix": (
        made(lambda m, n, a: m["b"](a @ m["a"](n).relu()), a=nn.Linear(6, 8), b=nn.Linear(8, 3)),
        (x(5, 6), x(5, 5, seed=2).abs()),
        {"position": -1, "target": 0},
        lambda o: o[-1, 0],
    ),
    "pictures of different sizes": (
        made(lambda m, some: torch.stack([m["c"](t[None])[0] for t in some]).sum(0, keepdim=True), c=CONV),
        ([x(3, 8, 8), x(3, 9, 7)],),
        {},
        lambda o: o.max(),
    ),
    "points with distances among them": (
        made(lambda m, n: m["h"](torch.cdist(n, n).exp().neg() @ n).mean(0, keepdim=True), h=mlp()),
        (x(5, 6),),
        {},
        lambda o: o.max(),
    ),
}


@pytest.mark.parametrize("name", list(ONE_SAMPLE))
def test_a_call_that_is_one_sample(name: str) -> None:
    model, args, how, score = ONE_SAMPLE[name]
    floats = [t for t in torch.utils._pytree.tree_leaves(args) if t.is_floating_point()]
    for t in floats:
        t.requires_grad_()
    grads = torch.autograd.grad(score(model(*args)), floats)
    for rules in RULES:
        a = convert(model, rules=rules)(*args, contrast=None, **how)
        every = a.relevance if isinstance(a.relevance, tuple) else (a.relevance,)
        assert [r.shape for r in every] == [t.shape for t in floats]
        assert all(r.isfinite().all() and r.any() for r in every)
        torch.testing.assert_close(a.output, model(*args).detach())
        if rules == "gradient-input":
            for r, t, g in zip(every, floats, grads, strict=True):
                torch.testing.assert_close(r, (t * g).detach())
    by_name = convert(model, rules="abslrp", batch=None)(*args, contrast=None, **how).relevance
    torch.testing.assert_close(by_name, convert(model, rules="abslrp")(*args, contrast=None, **how).relevance)


SHARED: dict[str, tuple[nn.Module, tuple]] = {
    "a bias between positions": (
        made(
            lambda m, t, b: m["h"](m["a"](t, t, t, attn_mask=b, need_weights=False)[0].mean(1)),
            a=nn.MultiheadAttention(6, 2, batch_first=True),
            h=nn.Linear(6, 3),
        ),
        (x(3, 5, 6), x(5, 5, seed=2)),
    ),
    "a temperature": (made(lambda m, t, s: m["h"](t * s), h=mlp()), (x(3, 6), torch.tensor(0.7).double())),
    "texts for pictures": (
        made(lambda m, a, b: F.normalize(m["a"](a), dim=1) @ F.normalize(m["a"](b), dim=1).T, a=mlp()),
        (x(3, 6), x(4, 6, seed=2)),
    ),
    "as many texts as pictures": (
        made(lambda m, a, b: F.normalize(m["a"](a), dim=1) @ F.normalize(m["a"](b), dim=1).T, a=mlp()),
        (x(3, 6), x(3, 6, seed=2)),
    ),
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", list(SHARED))
def test_what_samples_share_gets_the_sum(name: str, rules: str) -> None:
    model, (t, shared) = SHARED[name]
    explainer = convert(model, rules=rules)
    a = explainer(t, shared)
    single = convert(model, rules=rules)
    alone = [single(t[i : i + 1], shared, target=int(a.target[i])).relevance for i in range(3)]
    assert all(r.isfinite().all() for r in a.relevance)
    torch.testing.assert_close(a.relevance[0], torch.cat([r for r, _ in alone]))
    torch.testing.assert_close(a.relevance[1], torch.stack([r for _, r in alone]).sum(0), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("rules", RULES)
def test_a_mask_with_infinities_is_no_explained_input(rules: str) -> None:
    model, (t, _) = SHARED["a bias between positions"]
    mask = torch.full((5, 5), float("-inf"), dtype=torch.float64).triu(1)
    by_argument = convert(model, rules=rules)(t, mask)
    inside = Of(lambda m, t: m["net"](t, mask), net=model).eval()
    torch.testing.assert_close(by_argument.relevance, convert(inside, rules=rules)(t).relevance)


def test_positions_of_sequences_and_maps() -> None:
    tagger = made(lambda m, t: m["h"](m["r"](m["e"](t))[0]), e=nn.Embedding(12, 6), r=nn.LSTM(6, 8), h=nn.Linear(8, 3))
    tokens = ids(5, 3)
    a = convert(tagger, rules="epsilon")(tokens, position=-1, target=2)  # [T, B] → [T, B, K]
    assert a.logits.shape == (3, 3)
    torch.testing.assert_close(a.logits, tagger(tokens)[-1])
    b = convert(tagger, rules="epsilon")(tokens[:, 1:2], target=lambda out: out[-1, :, 2])
    torch.testing.assert_close(
        convert(tagger, rules="epsilon")(tokens, target=lambda out: out[-1, :, 2]).relevance[:, 1:2], b.relevance
    )
    net = made(lambda m, t: m["c"](t), c=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)))
    pictures = x(2, 3, 8, 8)
    at = convert(net)(pictures, position=(3, 4), target=1, contrast=None)
    by_score = convert(net)(pictures, target=lambda out: out[:, 1, 3, 4], contrast=None)
    torch.testing.assert_close(at.relevance, by_score.relevance)
    with pytest.raises(FxlrpError, match=r"position=\(0, 0\)"):
        convert(net)(pictures)
    with pytest.raises(FxlrpError, match=r"out of range: the explained output has positions \(6, 6\)"):
        convert(net)(pictures, position=(6, 0))


def test_values_that_are_indices_are_probed_by_their_like() -> None:
    def codes(m: Any, t: Tensor) -> Tensor:  # the last column is a category
        return m["h"](torch.cat([t[:, :5], m["e"](t[:, 5].long())], 1).view(len(t) * 2, -1)).view(len(t), -1)

    def sparsemax(m: Any, t: Tensor) -> Tensor:
        z = m["h"](t)
        ordered = z.sort(-1, descending=True).values
        sums = ordered.cumsum(-1) - 1
        k = (ordered * torch.arange(1, 4) > sums).sum(-1, keepdim=True)
        return (z - sums.gather(-1, k - 1) / k).clamp(min=0)

    t = torch.cat([x(4, 5), torch.tensor([[0.0], [2], [1], [2]]).double()], 1)
    for model in (made(codes, e=nn.Embedding(3, 3), h=nn.Linear(4, 3)), made(sparsemax, h=mlp())):
        a = convert(model, rules="epsilon")(t, target=1)
        alone = convert(model, rules="epsilon")(t[1:2], target=1).relevance
        torch.testing.assert_close(a.relevance[1:2], alone)


def test_axes_that_are_not_there_are_named() -> None:
    model, args, _ = SEQUENCE_FIRST["lstm"]
    for batch, said in (
        (5, "no tensor of the call has an axis 5"),
        ({"0": 5}, "no axis 5"),
        ({"x": 0}, "the call's tensors are args"),
        ("first", "is not an axis"),
        (0, "depend on each other"),
    ):
        with pytest.raises(FxlrpError, match=said):
            convert(model, batch=batch)(*args)  # type: ignore[arg-type]
    axes = convert(model, batch=1)(*args, target=1).relevance
    layer = randomize(nn.GRU(6, 8))
    named = convert(layer, batch={"input": 1, "hx": 1}, output=0)(x(4, 3, 6), x(1, 3, 8), position=-1).relevance
    torch.testing.assert_close(named, convert(layer, output=0)(x(4, 3, 6), x(1, 3, 8), position=-1).relevance)
    torch.testing.assert_close(axes, convert(model)(*args, target=1).relevance)


def test_the_axis_of_samples_is_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, _ = SEQUENCE_FIRST["mean over steps"]
    explainer = convert(model)
    explainer(x(5, 3, 6))
    plans = len(explainer.plans.cache.plans)
    monkeypatch.setattr("fxlrp.plans.capture", lambda *a, **k: pytest.fail("captured again"))
    assert explainer(x(5, 7, 6)).relevance.shape == (5, 7, 6)
    assert explainer(x(5, 1, 6)).relevance.shape == (5, 1, 6)
    assert len(explainer.plans.cache.plans) == plans == 1


def bags(m: Any, line: Tensor, offsets: Tensor) -> Tensor:
    return m["h"](m["e"](line, offsets))


def graphs(m: Any, nodes: Tensor, edges: Tensor, belongs: Tensor) -> Tensor:
    h = graph(m, nodes, edges, False)
    return m["h"](torch.zeros(2, h.shape[1], dtype=h.dtype).index_add(0, belongs, h))


TWO = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 0, 4, 3]])
ROWS: dict[str, tuple[nn.Module, tuple]] = {
    "pictures in a list": (
        made(lambda m, some: torch.stack([m["c"](t[None])[0] for t in some]), c=CONV),
        ([x(3, 8, 8), x(3, 9, 7)],),
    ),
    "texts in a line": (made(bags, e=nn.EmbeddingBag(12, 6), h=mlp()), (ids(7), torch.tensor([0, 3]))),
    "graphs beside each other": (
        made(graphs, a=nn.Linear(6, 8), b=nn.Linear(8, 6), h=mlp()),
        (x(5, 6), TWO, torch.tensor([0, 0, 0, 1, 1])),
    ),
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", list(ROWS))
def test_rows_with_entries_of_their_own_are_explained_together(name: str, rules: str) -> None:
    model, args = ROWS[name]
    explainer = convert(model, rules=rules)
    a = explainer(*args)
    assert a.logits.shape == (2, 3)
    assert a.target is not None
    apart = [explainer(*args, position=i, target=int(a.target[i])) for i in range(2)]
    for r, parts in zip(_all(a), zip(*map(_all, apart), strict=True), strict=True):
        torch.testing.assert_close(r, parts[0] + parts[1])
    ones = explainer(*args, target=1)
    mixed = explainer(*args, target=torch.tensor([1, 2]))
    torch.testing.assert_close(mixed.logits, ones.logits)
    assert mixed.target is not None
    assert mixed.target.tolist() == [1, 2]
    if name == "pictures in a list":
        torch.testing.assert_close(_all(mixed)[0], _all(ones)[0])


def _all(a: Any) -> tuple[Tensor, ...]:
    return a.relevance if isinstance(a.relevance, tuple) else (a.relevance,)


def test_a_count_that_depends_on_values_is_none_of_samples() -> None:
    model = made(lambda m, t: m["h"](t[t[:, 0] > 0])[:2].sum(), h=mlp())
    a = convert(model, rules="epsilon")(x(5, 6), target=lambda out: out)
    torch.testing.assert_close(a.output, model(x(5, 6)).detach())
    parts = made(lambda m, t: [m["h"](r[r[:, 0] > 0]).flatten()[:3] for r in t], h=mlp())
    b = convert(parts, rules="epsilon")(x(2, 5, 6), target=lambda out: out[0][:1])
    assert b.relevance[0].any()
    assert not b.relevance[1].any()


def test_a_callable_that_fails_says_what_it_was_given() -> None:
    model = made(lambda m, s, q: -(torch.cdist(m["h"](q), m["h"](s).view(3, 2, 3).mean(1)) ** 2), h=mlp())
    call = x(6, 6), x(4, 6, seed=2)
    with pytest.raises(FxlrpError, match=r"IndexError.* of shape \(1, 3\).*batch=None"):
        convert(model, rules="epsilon")(*call, target=lambda out: out[:, 7])
    a = convert(model, rules="epsilon", batch=None)(*call, target=lambda out: out[1, 2])
    assert a.relevance[1].any(1).tolist() == [False, True, False, False]


class Energies(nn.Module):
    """One energy for each graph of several that lie beside each other, of messages by distance, as E(n) networks have;
    with `known`, their number is not read from the values."""

    def __init__(self, known: bool, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.message = nn.Sequential(nn.Linear(9, 8), nn.SiLU())
        self.energy = nn.Sequential(nn.Linear(12, 8), nn.SiLU(), nn.Linear(8, 1))
        self.known, self.end = known, end

    def forward(self, h: Tensor, places: Tensor, edges: Tensor, graph: Tensor) -> Tensor:
        to, of = edges
        distance = (places[to] - places[of]).square().sum(-1, keepdim=True)
        messages = self.message(torch.cat([h[to], h[of], distance], -1))
        nodes = torch.cat([h, h.new_zeros(len(h), 8).index_add(0, to, messages)], -1)
        count = 3 if self.known else int(graph.max()) + 1
        return self.end(h.new_zeros(count).index_add(0, graph, self.energy(nodes).squeeze(-1)))


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("end", [lambda e: e, torch.sigmoid, lambda e: 27.2 * e - 3])
@pytest.mark.parametrize("known", [True, False])
def test_one_score_for_each_graph(known: bool, end: Callable[[Tensor], Tensor], rules: str) -> None:
    """They are no classes: each is explained, by its own graph."""
    model = Energies(known, end).double().eval()
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0], [1, 2, 0, 4, 3, 6, 5, 2]])
    graph = torch.tensor([0, 0, 0, 1, 1, 2, 2])
    h, places = x(7, 4), x(7, 3, seed=2)
    explainer = convert(model, rules=rules)
    a = explainer(h, places, edges, graph)
    torch.testing.assert_close(a.output, model(h, places, edges, graph).detach())
    assert a.logits.shape == (3, 1)
    apart = [explainer(h, places, edges, graph, position=i) for i in range(3)]
    for i, one in enumerate(apart):
        for r in one.relevance:
            assert rules == "abslrp" or r[graph == i].any()  # which gives nothing to summands all below zero
            assert not r[graph != i].any()
    for whole, *parts in zip(a.relevance, *(one.relevance for one in apart), strict=True):
        torch.testing.assert_close(whole, sum(parts))
    with pytest.raises(FxlrpError, match=r"one score for each of 3 rows: position=1"):
        explainer(h, places, edges, graph, target=1)
    if rules == "gradient-input":
        explainer = convert(model, rules=rules)
        total = explainer(h, places, edges, graph, target=lambda out: out.sum())
        leaf = h.clone().requires_grad_()
        (grad,) = torch.autograd.grad(model(leaf, places, edges, graph).sum(), leaf)
        torch.testing.assert_close(total.relevance[0], h * grad)


@pytest.mark.parametrize("rules", RULES)
def test_classes_of_one_sample_are_no_rows(rules: str) -> None:
    model = made(lambda m, t: m.h(t.relu()).mean(0), h=nn.Linear(6, 4))
    a = convert(model, rules=rules)(x(5, 6), target=2)
    assert a.logits.shape == (1, 4)
    assert a.target.tolist() == [2]


@pytest.mark.parametrize("rules", RULES)
def test_samples_that_the_model_refuses_alone_are_rows_of_one(rules: str) -> None:
    """Films, each by its users: an edge leads to a film that is not there where one is alone."""

    def films(m: Any, users: Tensor, some: Tensor, edges: Tensor) -> Tensor:
        seen = torch.zeros(len(some), 5).to(some).index_add(0, edges[1], m["u"](users)[edges[0]])
        return m["h"]((m["v"](some) + seen).relu())

    model = made(films, u=nn.Linear(3, 5), v=nn.Linear(4, 5), h=nn.Linear(5, 2))
    call = (x(3, 3), x(4, 4, seed=2), torch.tensor([[0, 1, 2], [0, 1, 2]]))
    a = convert(model, rules=rules)(*call, target=1, contrast=None)
    torch.testing.assert_close(a.output, model(*call).detach())
    whole = convert(model, rules=rules, batch=None)
    for i in range(4):
        one = whole(*call, target=1, contrast=None, position=i)
        torch.testing.assert_close(a.named["1"][i], one.named["1"][i])
    if rules in ("abslrp-hybrid", "epsilon"):  # the others know the samples apart inside
        with pytest.raises(FxlrpError, match=r"depend on each other, or on inputs that they share.*position=0"):
            convert(model, rules=rules)(*call[:2], torch.tensor([[0, 1, 2, 0], [0, 1, 2, 3]]), target=1)
