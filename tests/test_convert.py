"""The contract of convert() and of the explainer it returns."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import randomize
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError, convert


def x_like(batch: int = 2, size: int = 8) -> Tensor:
    return torch.randn(batch, 3, size, size, dtype=torch.float64)


def test_output_is_the_models_own(cnn: nn.Module) -> None:
    x = x_like()
    a = convert(cnn)(x)
    torch.testing.assert_close(a.output, cnn(x), rtol=0, atol=0)
    assert a.relevance.shape == x.shape
    assert a.heatmap().shape == (2, 8, 8)
    torch.testing.assert_close(a.heatmap(), a.relevance.sum(1))
    assert a.relevance.isfinite().all()
    assert a.relevance.any()


def test_the_model_is_left_as_it_was(cnn: nn.Module) -> None:
    before = copy.deepcopy(cnn.state_dict())
    keys = set(cnn.__dict__)
    x = x_like()
    original = x.clone()
    expected = cnn(x)
    first, second = convert(cnn), convert(cnn)
    torch.testing.assert_close(first(x).relevance, second(x).relevance, rtol=0, atol=0)
    assert all(torch.equal(before[k], v) for k, v in cnn.state_dict().items())
    assert set(cnn.__dict__) == keys
    assert not any(m._forward_hooks or m._backward_hooks or m._forward_pre_hooks for m in cnn.modules())
    assert all(p.requires_grad and p.grad is None for p in cnn.parameters())
    assert "forward" not in cnn.__dict__
    torch.testing.assert_close(cnn(x), expected, rtol=0, atol=0)
    assert torch.equal(x, original)
    assert not x.requires_grad


def test_weights_are_shared(cnn: nn.Module) -> None:
    explainer, x = convert(cnn), x_like()
    before = explainer(x).output
    with torch.no_grad():
        cnn.head.bias += 1
    torch.testing.assert_close(explainer(x).output, before + 1)


def test_batches_of_any_size_and_rows_apart(cnn: nn.Module) -> None:
    explainer = convert(cnn, x_like(1))
    x = x_like(5)
    whole = explainer(x).relevance
    assert len(explainer.plans.cache.plans) == 1
    for i in range(5):
        torch.testing.assert_close(explainer(x[i : i + 1]).relevance[0], whole[i], rtol=1e-10, atol=1e-13)
    flipped = explainer(x.flip(0)).relevance
    torch.testing.assert_close(flipped.flip(0), whole, rtol=1e-10, atol=1e-13)


def test_another_size_is_captured_anew(cnn: nn.Module) -> None:
    explainer = convert(cnn, x_like())
    assert explainer(x_like(2, 12)).relevance.shape == (2, 3, 12, 12)
    assert explainer(x_like(3, 8)).relevance.shape == (3, 3, 8, 8)


def test_works_under_no_grad(cnn: nn.Module) -> None:
    x = x_like()
    with torch.no_grad():
        inside = convert(cnn)(x).relevance
    torch.testing.assert_close(inside, convert(cnn)(x).relevance)


def test_training_mode_is_refused(cnn: nn.Module) -> None:
    with pytest.raises(FxlrpError, match="eval"):
        convert(cnn.train())


def test_not_a_module_is_refused() -> None:
    with pytest.raises(FxlrpError, match="Module"):
        convert(lambda x: x)


def test_untraceable_model_names_the_users_line() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nested.nested_tensor(list(x)).to_padded_tensor(0)  # the line to be named

    with pytest.raises(FxlrpError, match=r"test_convert\.py"):
        convert(Branches().eval())(torch.ones(2, 3))


def test_dead_output_is_refused() -> None:
    class Rounds(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x > 0).to(x.dtype) + torch.zeros(1)

    with pytest.raises(FxlrpError, match="No input carries relevance"):
        convert(Rounds().eval())(torch.ones(2, 3))


# targets and contrasts


def test_target_forms_agree(cnn: nn.Module) -> None:
    explainer, x = convert(cnn), x_like()
    top = cnn(x).argmax(1)
    expected = explainer(x, contrast=None).relevance
    onehot = torch.nn.functional.one_hot(top, 5).double()
    for target in (top, onehot, lambda out: (out * onehot).sum(1), lambda out: out.argmax(1), lambda out: onehot):
        torch.testing.assert_close(explainer(x, target=target, contrast=None).relevance, expected)
    assert torch.equal(explainer(x).target, top)
    assert explainer(x, target=3).target.tolist() == [3, 3]


def test_relevance_sums_to_the_seed(cnn: nn.Module) -> None:
    """One unit of relevance for the target; with a contrast, one for it and one against."""
    explainer, x = convert(cnn, rules="abslrp"), x_like()
    total = explainer(x, contrast=None).relevance.sum((1, 2, 3))
    torch.testing.assert_close(total, torch.ones(2).double(), rtol=1e-6, atol=0)
    total = explainer(x).relevance.sum((1, 2, 3))
    torch.testing.assert_close(total, torch.zeros(2).double(), rtol=0, atol=1e-6)


def test_contrasts_differ_and_classes_are_antisymmetric(cnn: nn.Module) -> None:
    explainer, x = convert(cnn), x_like()
    maps = [explainer(x, target=1, contrast=c).relevance for c in (None, "others", "softmax", 2)]
    for i, a in enumerate(maps):
        for b in maps[:i]:
            assert not torch.allclose(a, b)
    torch.testing.assert_close(explainer(x, target=2, contrast=1).relevance, -maps[3])


@pytest.mark.parametrize(
    ("target", "contrast", "message"),
    [
        (5, "others", "out of range"),
        (-1, "others", "out of range"),
        (torch.tensor([0, 1, 2]), None, "3 entries for a batch of 2"),
        (torch.ones(2, 4).double(), None, "shape"),
        (1, 1, "both class 1"),
        (1, "nobody", "contrast"),
        (lambda out: 1.0, None, "tensor"),
    ],
)
def test_wrong_questions_are_refused(cnn: nn.Module, target: object, contrast: object, message: str) -> None:
    with pytest.raises(FxlrpError, match=message):
        convert(cnn)(x_like(), target=target, contrast=contrast)


def test_dense_outputs_need_a_callable() -> None:
    model = randomize(nn.Conv2d(3, 4, 1))
    with pytest.raises(FxlrpError, match="callable"):
        convert(model)(x_like())
    a = convert(model)(x_like(), target=lambda out: out[:, 2, 3, 3])
    assert a.relevance[:, :, 3, 3].any()
    rest = a.relevance.clone()
    rest[:, :, 3, 3] = 0
    assert not rest.any()


# inputs and outputs of other shapes


class Pair(nn.Module):
    """Two float inputs, keyword arguments, an output in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(6, 3)

    def forward(self, left: Tensor, right: Tensor | None = None, scale: float = 1.0) -> dict[str, Tensor]:
        hidden = torch.relu(self.a(left)) + torch.relu(self.b(right)) * scale
        return {"hidden": hidden, "logits": hidden @ torch.eye(3).to(hidden)}


def test_several_inputs_and_a_dictionary_out() -> None:
    model = randomize(Pair())
    left, right = torch.randn(2, 4).double(), torch.randn(2, 6).double()
    explainer = convert(model, {"left": left, "right": right})
    a = explainer(left=left, right=right)
    assert isinstance(a.relevance, tuple)
    assert [r.shape for r in a.relevance] == [left.shape, right.shape]
    assert set(a.output) == {"hidden", "logits"}
    torch.testing.assert_close(a.output["logits"], model(left, right)["logits"])
    torch.testing.assert_close(a.logits, a.output["logits"])
    scaled = explainer(left=left, right=right, scale=2.0)  # a constant of the call: another graph
    torch.testing.assert_close(scaled.output["logits"], model(left, right, 2.0)["logits"])


class Words(nn.Module):
    """Token ids in, padding masked out of attention, class scores out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Embedding(16, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        bias = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(mask == 0, float("-inf"))[:, None, None]
        q = k = v = self.layer.norm1(x).unflatten(-1, (2, 4)).transpose(1, 2)
        x = x + torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)
        x = x + self.layer.linear2(torch.nn.functional.gelu(self.layer.linear1(self.layer.norm2(x))))
        return self.head(x[:, 0])


def test_token_ids_are_explained_at_their_embedding() -> None:
    model = randomize(Words())
    ids = torch.tensor([[3, 4, 5, 6, 0, 0], [7, 8, 9, 1, 2, 3]])
    mask = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6])
    explainer = convert(model, (ids, mask), strict=True)
    a = explainer(ids, mask)
    assert a.relevance.shape == ids.shape
    assert a.relevance.isfinite().all()
    assert not a.relevance[0, 4:].any(), "padding carries no relevance"
    torch.testing.assert_close(a.output, model(ids, mask), rtol=1e-9, atol=1e-9)
    alone = explainer(ids[:1, :4], mask[:1, :4])
    torch.testing.assert_close(alone.relevance[0], a.relevance[0, :4], rtol=1e-9, atol=1e-12)


# report, graph, rules


def test_report_counts_every_node_and_names_the_source(cnn: nn.Module) -> None:
    explainer = convert(cnn, x_like(), rules="abslrp")
    report = explainer.report()
    ours = ("readout", "constant")
    calls = [n for n in explainer.graph.graph.nodes if n.op == "call_function" and n.target.__name__ not in ours]
    assert sum(report.counts.values()) == len(report.nodes) == len(calls)
    assert report.counts["generic"] == 0
    conv = next(n for n in report.nodes if n.op == "conv2d.default" and n.kind == "rule")
    assert "conftest.py" in conv.source
    assert conv.rule == "absolute"
    assert "structural" in str(report)
    assert report.table().row_count == len(report.nodes)


def test_graph_reads_like_the_model(cnn: nn.Module) -> None:
    text = convert(cnn, x_like(), rules="abslrp").graph.print_readable(print_output=False)
    assert "abslrp_conv2d" in text
    assert "abslrp_linear" in text
    assert "model.head.weight" in text


class OfEveryKind(nn.Module):
    """What a rewrite changes in place: norms that are folded, recurrent layers, a loop, random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.lstm = nn.Conv1d(4, 6, 3, padding=1), nn.BatchNorm1d(6), nn.LSTM(6, 5)
        self.attention, self.head = nn.MultiheadAttention(5, 1, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu_().permute(2, 0, 1)
        x = self.lstm(x)[0].movedim(0, 1)
        x = x + self.attention(x, x, x)[0] + 0.1 * torch.randn_like(x)
        return self.head(x.amax(1))


@pytest.mark.parametrize("dtype", [torch.float64, pytest.param(torch.bfloat16, marks=pytest.mark.whole)])
def test_explainers_by_other_rulebooks_share_what_is_captured(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = randomize(OfEveryKind()).to(dtype), torch.randn(3, 4, 7, dtype=dtype)
    names = ["abslrp", "abslrp-hybrid", "attnlrp", "epsilon-plus-flat", "gradient-input"]
    wanted = {name: convert(model, x[:2], rules=name)(x, target=1) for name in names}
    first = convert(model)
    first.by(names[0])(x[:2])
    monkeypatch.setattr("fxlrp.plans.capture", None)  # nothing is captured from here on
    for name in reversed(names):
        a = first.by(name)(x, target=1)
        torch.testing.assert_close(a.relevance, wanted[name].relevance, rtol=0, atol=0)
    monkeypatch.undo()
    model.head = nn.Linear(5, 3, dtype=dtype).eval()  # another model: its explainers capture anew
    torch.testing.assert_close(first.by("attnlrp")(x).output, convert(model)(x).output)
    with pytest.raises(FxlrpError, match="abslpr"):
        first.by("abslpr")


def test_nothing_captured_yet_is_said(cnn: nn.Module) -> None:
    with pytest.raises(FxlrpError, match="example_inputs"):
        convert(cnn).report()


def test_strict_names_generic_nodes_and_a_rule_mends_it() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(torch.lgamma(x))

    model, x = randomize(Odd()), torch.randn(2, 4).double()
    loose = convert(model, x)
    assert loose.report().counts["generic"] == 1
    assert loose(x).relevance.isfinite().all()
    with pytest.raises(FxlrpError, match=r"lgamma.*test_convert"):
        convert(model, x, strict=True)

    @fxlrp.rule(torch.ops.aten.lgamma.default)
    def lgamma(g: Tensor, z: Tensor, x: Tensor) -> Tensor:
        """The identity: R_x = R_z."""
        return g * z / x

    try:
        strict = convert(model, x, strict=True)
        assert next(n for n in strict.report().nodes if "lgamma" in n.op).rule == "lgamma"
    finally:
        fxlrp.unregister(torch.ops.aten.lgamma.default)


def test_a_rule_of_the_wrong_shape_is_named() -> None:
    book = fxlrp.rulebooks()["abslrp"].extend([(lambda g, z, x, w, b: g, torch.ops.aten.linear.default)], name="wrong")
    with pytest.raises(FxlrpError, match="returned cotangents of shapes"):
        convert(randomize(nn.Linear(4, 3)), rules=book)(torch.randn(2, 4).double())


def test_samples_that_mix_are_one() -> None:
    class Mixes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(x - x.mean(0, keepdim=True)) + self.lin(x.flip(0))

    explainer = convert(randomize(Mixes()), rules="epsilon")
    x = torch.randn(2, 4).double()
    with pytest.raises(FxlrpError, match="position=0 for the first"):
        explainer(x)
    a = explainer(x, position=1, target=2, contrast=None)
    assert (a.relevance.shape, a.logits.shape) == ((2, 4), (1, 3))
    assert a.relevance.any(1).all()


# pictures


def test_a_heatmap_of_something_else_is_refused() -> None:
    a = convert(randomize(nn.Linear(4, 3)))(torch.randn(2, 4).double())
    with pytest.raises(FxlrpError, match="No explained input is an image"):
        a.heatmap()


# what users' models do


def body(function: object, **modules: nn.Module) -> nn.Module:
    """A module of those submodules whose forward is function(self, x)."""
    model = nn.Module()
    for name, module in modules.items():
        model.add_module(name, module)
    model.forward = lambda x: function(model, x)
    return randomize(model)


def test_probabilities_are_explained_by_their_logits() -> None:
    net = randomize(nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)))
    x = torch.randn(3, 6).double()
    expected = convert(net)(x, target=1).relevance
    for head in (nn.Softmax(1), nn.LogSoftmax(-1)):
        a = convert(nn.Sequential(net, head).eval())(x, target=1)
        torch.testing.assert_close(a.relevance, expected)
        torch.testing.assert_close(a.output, head(net(x)))
        torch.testing.assert_close(a.logits, net(x))
        by_score = convert(nn.Sequential(net, head).eval())(x, target=lambda out: out[:, 1])
        assert by_score.relevance.isfinite().all()


def test_a_branch_on_the_batch_size_is_followed() -> None:
    model = body(lambda m, x: m.b(x) if x.shape[0] > 3 else m.a(x), a=nn.Linear(6, 3), b=nn.Linear(6, 3))
    explainer = convert(model)
    for batch in (2, 5, 1, 3, 4):
        x = torch.randn(batch, 6).double()
        torch.testing.assert_close(explainer(x).output, model(x))


def test_replaced_layers_are_seen(cnn: nn.Module) -> None:
    explainer, x = convert(cnn), x_like()
    explainer(x)
    cnn.head = nn.Linear(16, 4).double()
    torch.testing.assert_close(explainer(x).output, cnn(x))


def test_constants_of_the_call_are_told_apart() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(6, 3)

        def forward(self, x: Tensor, w: np.ndarray) -> Tensor:
            return self.lin(x) * float(w.sum())

    model, x = randomize(Scaled()), torch.randn(2, 6).double()
    explainer = convert(model)
    for value in (1.0, 5.0):
        w = np.ones(2000)
        w[1000] = value
        torch.testing.assert_close(explainer(x, w).output, model(x, w))


def test_no_grad_inside_the_model_is_seen_through() -> None:
    def frozen(m: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.relu(m.a(x))
        return m.b(y)

    layers = {"a": nn.Linear(6, 16), "b": nn.Linear(16, 3)}
    model, x = body(frozen, **layers), torch.randn(3, 6).double()
    plain = body(lambda m, x: m.b(torch.relu(m.a(x))), **layers)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(convert(model, strict=True)(x).relevance, convert(plain)(x).relevance)


def test_inference_mode(cnn: nn.Module) -> None:
    expected = convert(cnn)
    with torch.inference_mode():
        x = x_like()
        inside = convert(cnn)(x).relevance
    torch.testing.assert_close(inside, expected(x.clone()).relevance)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_their_steps(layer: type) -> None:
    model = body(lambda m, x: m.head(m.rnn(x)[0][:, -1]), rnn=layer(6, 8, batch_first=True), head=nn.Linear(8, 3))
    x = torch.randn(3, 4, 6).double()
    explainer = convert(model)
    a = explainer(x)
    assert explainer.report().counts["generic"] == 0
    torch.testing.assert_close(a.output, model(x))
    assert a.relevance.isfinite().all()
    torch.testing.assert_close(explainer(x[1:2]).relevance[0], a.relevance[1], rtol=1e-9, atol=1e-12)


def test_infinite_derivatives_carry_no_relevance() -> None:
    model = body(lambda m, x: m.b(torch.relu(m.a(x)).sqrt()), a=nn.Linear(6, 8), b=nn.Linear(8, 3))
    assert convert(model)(torch.randn(3, 6).double()).relevance.isfinite().all()


def test_in_place_writes_equal_concatenation() -> None:
    def written(m: nn.Module, x: Tensor) -> Tensor:
        h = m.a(x)
        h[:, 1] = 0
        return m.b(h)

    def joined(m: nn.Module, x: Tensor) -> Tensor:
        h = m.a(x)
        return m.b(torch.cat([h[:, :1], torch.zeros_like(h[:, :1]), h[:, 2:]], 1))

    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3)}
    one, two = body(written, **layers), body(joined, **layers)
    two.load_state_dict(one.state_dict())
    x = torch.randn(3, 6).double()
    torch.testing.assert_close(convert(one, strict=True)(x).relevance, convert(two)(x).relevance)


def test_one_minus_is_a_difference() -> None:
    layers = {"a": nn.Linear(6, 8), "b": nn.Linear(8, 3)}
    maps = []
    for f in (lambda m, x: m.b(1 - m.a(x)), lambda m, x: m.b(-m.a(x) + 1)):
        model = body(f, **layers)
        model.load_state_dict({k: torch.linspace(-1, 1, v.numel()).view_as(v) for k, v in model.state_dict().items()})
        maps.append(convert(model, strict=True)(torch.linspace(-1, 2, 12).view(2, 6).double()).relevance)
    torch.testing.assert_close(maps[0], maps[1])


def test_a_second_input_all_samples_share() -> None:
    class Compares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.image, self.text = nn.Linear(8, 6), nn.Linear(4, 6)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.image(x) @ self.text(t).T

    model, t = randomize(Compares()), torch.randn(4, 4).double()
    explainer = convert(model)
    a = explainer(torch.randn(1, 8).double(), t)
    assert [tuple(r.shape) for r in a.relevance] == [(1, 8), (4, 4)]
    x = torch.randn(3, 8).double()
    together = explainer(x, t)
    alone = [explainer(x[i : i + 1], t).relevance for i in range(3)]
    torch.testing.assert_close(together.relevance[0], torch.cat([x for x, _ in alone]))
    torch.testing.assert_close(together.relevance[1], torch.stack([t for _, t in alone]).sum(0))


def test_wrong_inputs_are_the_models_to_refuse(cnn: nn.Module, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(FxlrpError, match="model itself refuses"):
        convert(cnn)(torch.randn(2, 4, 8, 8).double())
    assert capfd.readouterr().err == ""


def test_an_explainer_is_not_converted_again(cnn: nn.Module) -> None:
    with pytest.raises(FxlrpError, match="explainer already"):
        convert(convert(cnn))


def test_a_norm_written_out_takes_nothing() -> None:
    def written(m: nn.Module, x: Tensor) -> Tensor:
        y = m.a(x)
        return m.b(y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6))

    model, x = body(written, a=nn.Linear(6, 8), b=nn.Linear(8, 3, bias=False)), torch.randn(3, 6).double()
    explainer = convert(model, strict=True, rules="abslrp")
    a = explainer(x, contrast=None)
    assert next(n for n in explainer.report().nodes if "square" in n.op).kind == "inactive"
    plain = body(lambda m, x: m.b(m.a(x)), a=nn.Linear(6, 8), b=nn.Linear(8, 3, bias=False))
    plain.load_state_dict(model.state_dict())  # a positive factor per sample moves no relevance
    torch.testing.assert_close(a.relevance, convert(plain, rules="abslrp")(x, target=a.target, contrast=None).relevance)


def test_the_output_to_explain_can_be_named() -> None:
    def detect(m: nn.Module, x: Tensor) -> dict[str, Tensor]:
        y = m.a(x)
        return {"boxes": y[:, :4], "scores": y[:, 4:]}

    model, x = body(detect, a=nn.Linear(5, 6)), torch.randn(2, 5).double()
    boxes, scores = convert(model, output="boxes"), convert(model)  # coordinates are no classes
    torch.testing.assert_close(scores(x).logits, model(x)["scores"])
    torch.testing.assert_close(boxes(x).logits, model(x)["boxes"])
    torch.testing.assert_close(convert(model, output=1)(x).relevance, scores(x).relevance)
    torch.testing.assert_close(
        scores(x, target=lambda o: o["scores"][:, 1]).relevance.abs().sum() > 0, torch.tensor(True)
    )
    elsewhere = boxes(x, target=lambda o: o["scores"][:, 0])
    torch.testing.assert_close(elsewhere.relevance, scores(x, target=0, contrast=None).relevance)
    with pytest.raises(FxlrpError, match="there are 0"):
        convert(model, x, output="masks")


def test_an_additive_mask_shuts_in_float32() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lin = nn.Linear(4, 3)
            self.register_buffer("mask", torch.tensor([0.0, 0, -100, -100]))

        def forward(self, x: Tensor) -> Tensor:
            return self.lin(torch.softmax(x + self.mask, -1))

    explainer, x = convert(Masked().eval()), torch.tensor([[-1.0, -2.0, 3.0, 2.0]])
    for target in range(3):
        r = explainer(x, target=target, contrast=None).relevance[0]
        assert r.isfinite().all()
        assert r[2:].abs().max() < 1e-6


def test_scores_scattered_among_minus_infinity_stay_finite() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.score, self.layer = nn.Linear(6, 4), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            top, at = self.score(x).topk(2, 1)
            return self.layer(x) * torch.full_like(x[:, :4], float("-inf")).scatter(1, at, top).sigmoid()

    a = convert(Router().double().eval())(torch.randn(3, 6).double())
    assert a.relevance.isfinite().all()
    assert a.relevance.any()


class OtherWhenTraced(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.layer, self.by = nn.Linear(4, 3), by

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * (self.by if torch.compiler.is_exporting() else 1.0)


def test_another_output_than_the_models_own_is_an_error() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(FxlrpError, match=r"something else than when it is called.*is_exporting"):
        convert(OtherWhenTraced(1.3).eval())(x)
    with pytest.raises(FxlrpError, match="something else than when it is called"):
        convert(OtherWhenTraced(float("nan")).eval())(x)
    model = OtherWhenTraced(1.0).eval()
    torch.testing.assert_close(convert(model)(x).output, model(x).detach())


def test_the_fast_path_of_a_transformer_is_named() -> None:
    """It sets padded positions to zero, which the layers themselves don't."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(8, 3)

        def forward(self, x: Tensor, padding: Tensor, skip: bool) -> Tensor:
            x = self.encoder(x, src_key_padding_mask=padding)
            return self.head((x * ~padding[..., None]).sum(1) if skip else x.sum(1))

    model, x, padding = Model().eval(), torch.randn(2, 5, 8), torch.arange(5) >= torch.tensor([[5], [3]])
    with torch.no_grad():
        with pytest.raises(FxlrpError, match="set_fastpath_enabled"):
            convert(model)(x, padding, False)
        assert torch.backends.mha.get_fastpath_enabled()
        torch.testing.assert_close(convert(model)(x, padding, True).output, model(x, padding, True))


def test_a_random_model_is_no_error() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    assert convert(Noisy(4, 3).eval())(torch.randn(2, 4)).relevance.isfinite().all()
