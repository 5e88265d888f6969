"""Conditional relevance: parts add up to the whole, in every rulebook; it is what hooks that mask the gradient give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from tests.inside.networks import ALL, ATTENTION, branches, captured, vit

RULES = ("abslrp-hybrid", "abslrp", "abslrp-2024-12", "attnlrp", "zplus")


def close(a: Tensor, b: Tensor, most: float = 1e-6) -> None:
    size = b.abs().max()
    assert size > 0
    assert (a - b).abs().max() / size < most


@pytest.mark.every(2)
@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("name", ALL)
def test_the_maps_of_all_channels_add_up(name: str, rules: str) -> None:
    _, _, place, count = ALL[name]()
    explainer, call = captured(name)
    explainer = explainer.by(rules)
    parts = explainer(**call, target=1, given=[{place: [c]} for c in range(count)])
    assert parts.relevance.shape[:2] == (2, count)
    close(parts.relevance.sum(1), explainer(**call, target=1).relevance)


@pytest.mark.parametrize("rules", ["abslrp-hybrid", "abslrp", "cp-lrp"])
@pytest.mark.parametrize("name", ATTENTION)
def test_the_maps_of_all_heads_add_up_to_what_passes_the_attention(name: str, rules: str) -> None:
    place, count = ATTENTION[name]
    explainer, call = captured(name)
    explainer = explainer.by(rules)
    heads = explainer(**call, target=1, given=[{place: {"heads": [h]}} for h in range(count)])
    width = 8 if name == "swin" else 12
    close(heads.relevance.sum(1), explainer(**call, target=1, given={place: torch.ones(width)}).relevance)
    assert all(heads.of(h).relevance.any() for h in range(count))
    with pytest.raises(fxlrp.FxlrpError, match="out of range"):
        explainer(**call, target=1, given={place: {"heads": [count]}})


def test_it_is_what_hooks_that_mask_the_gradient_give() -> None:
    """Of a rulebook that is the ordinary gradient, by torch alone: two masks, one behind the other, and one token."""
    model, call, _, _ = vit()
    kept: dict[str, Callable[[Tensor], Tensor]] = {
        "blocks.2": lambda g: g * torch.isin(torch.arange(12), torch.tensor([1, 7])),
        "blocks.0": lambda g: g * (torch.arange(17) == 5)[:, None] * (torch.arange(12) == 3),
    }
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, i, out, mask=mask: out.register_hook(mask) and None)
        for name, mask in kept.items()
    ]
    x = call["x"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(x)[:, 1].sum(), x)
    for hook in hooks:
        hook.remove()
    given = {"blocks.0": {"channels": 3, "tokens": [5]}, "blocks.2": [1, 7]}
    a = fxlrp.convert(model, rules="gradient-input")(**call, target=1, contrast=None, given=given)
    close(a.relevance, x.detach() * expected, 1e-10)


def test_relevance_past_a_place_is_left_out() -> None:
    model, call, _, _ = branches()
    explainer = fxlrp.convert(model, rules="epsilon")
    left, right = (explainer(**call, target=1, given={side: list(range(6))}).relevance for side in ("left", "right"))
    whole = explainer(**call, target=1).relevance
    model.left.weight.data.zero_(), model.right.weight.data.zero_()
    assert (left + right - whole).abs().max() > 1e-3 * whole.abs().max()
    with pytest.raises(fxlrp.FxlrpError, match="No relevance goes from"):
        explainer(**call, target=1, given={"left": [1], "right": [1]})


def test_samples_are_apart_and_any_number_goes_through_at_once() -> None:
    explainer, call = captured("gpt")
    explainer, place = explainer.by("abslrp"), "transformer.h.1"
    given = [{place: [c]} for c in (3, 1, 4, 5)] + [{"transformer.h.2.mlp": list(range(12))}]
    together = explainer(**call, target=1, given=given)
    for i in range(2):
        alone = explainer(input_ids=call["input_ids"][i : i + 1], target=1, given=given, at_once=2)
        close(alone.relevance[0], together.relevance[i], 1e-9)
    close(together.of(4).relevance, explainer(**call, target=1, given=given[4]).relevance, 1e-9)
    assert together.of(4).given.startswith("transformer.h.2.mlp: channels 0, 1")


def test_masks_patches_and_directions() -> None:
    model, call, place, _ = branches()
    explainer = fxlrp.convert(model)

    def ask(what: object) -> Tensor:
        return explainer(**call, target=1, given={place: what}).relevance

    mask = torch.zeros(5, 4, 4)
    mask[2, 1, 3] = 1
    close(ask(mask), ask({"channels": 2, "patch": (1, 3)}), 1e-10)
    close(ask(mask.expand(2, -1, -1, -1)), ask({"channels": [-3], "tokens": 7}), 1e-10)
    close(ask(torch.tensor([0, 1, 0, 0, 1.0])), ask([1, 4]), 1e-10)
    close(ask({"direction": torch.tensor([0, 2.0, 0, 0, 0])}), ask([1]), 1e-10)
    basis = torch.randn(5, 5).double()
    several = [ask({"direction": (d, e)}) for d, e in zip(basis, basis.inverse().T, strict=True)]
    close(torch.stack(several).sum(0), ask(torch.ones(5)))
    last = explainer(**call, target=1, given={place: {"channels": [1], "axis": 2}})
    assert last.given == f"{place}: channels 1"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "lists no condition"),
        ({"nowhere": [1]}, "names no module"),
        ({"body.1": [5]}, "out of range"),
        ({"body.1": {"chanels": 1}}, "none of channels"),
        ({"body.1": {"patch": (9, 0)}}, "out of range"),
        ({"body.1": torch.ones(4)}, "channels"),
        ({"body.1": torch.ones(3, 3)}, "has shape"),
        ({"body.1": {"heads": [0]}}, "has no heads"),
        ("body.1", "is no condition"),
    ],
)
def test_what_can_not_be_asked_is_said(given: object, words: str) -> None:
    model, call, _, _ = branches()
    with pytest.raises(fxlrp.FxlrpError, match=words):
        fxlrp.convert(model)(**call, target=1, given=given)


def test_with_what_else_can_be_asked() -> None:
    model, call, place, _ = branches()
    explainer = fxlrp.convert(model)
    a = explainer(**call, target=1, given={place: [1]}, at=["stem"])
    assert a.latent["stem"].shape == (2, 6, 9, 9)
    close(a.latent["stem"].sum(), a.relevance.sum(), 0.5)
    for wrong in ({"trace": True}, {"at": ["head"]}, {"target": [0, 1]}):
        with pytest.raises(fxlrp.FxlrpError):
            explainer(**call, **{"target": 1, **wrong}, given={place: [1]})
    one, two = explainer.ask([fxlrp.Question(1), fxlrp.Question(1, given={place: [1]})], **call)
    assert one.given == ""
    close(two.relevance, a.relevance, 1e-10)
    by_score = explainer(**call, target=lambda out: out[:, 1], given={place: [1]})
    close(by_score.relevance, explainer(**call, target=1, contrast=None, given={place: [1]}).relevance, 1e-9)


def test_parts_are_ranked_and_are_the_sums_of_what_stands_at_the_place() -> None:
    model, call, place, count = branches()
    explainer = fxlrp.convert(model)
    parts = explainer.parts(place, **call, target=1)
    latent = explainer(**call, target=1, at=[place]).latent[place]
    torch.testing.assert_close(parts.relevance, latent.sum((2, 3)))
    torch.testing.assert_close(
        explainer.parts(place, **call, target=1, by="tokens").relevance, latent.sum(1).flatten(1)
    )
    best = parts.ranked(1)
    assert [i for i, _ in best] == parts.relevance[1].argsort(descending=True).tolist()
    assert sum(abs(s) for _, s in best) == pytest.approx(1)
    assert f"{count} in all" in str(parts)
    with pytest.raises(fxlrp.FxlrpError, match="by='colours'"):
        explainer.parts(place, **call, by="colours")


class Sorted(nn.Module):
    """Takes its own way for each sample, so that a batch is explained one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.ways = nn.Linear(4, 5), nn.ModuleList([nn.Linear(5, 3), nn.Linear(5, 3)])

    def forward(self, x: Tensor) -> Tensor:
        rows = [self.ways[int(row[0] > 0)](self.body(row[None]).relu()) for row in x]
        return torch.cat(rows)


def test_a_batch_that_is_explained_one_by_one() -> None:
    model, x = Sorted().double().eval(), torch.tensor([[1.0, 2, 3, 4], [-1, 2, -3, 4]]).double()
    explainer = fxlrp.convert(model)
    whole = explainer(x, target=1).relevance
    relu = next(n.name for n in explainer.report().nodes if n.op.startswith("relu"))
    parts = explainer(x, target=1, given=[{relu: [c]} for c in range(5)])
    close(parts.relevance.sum(1), whole)
    assert explainer.parts(relu, x, target=1).relevance.shape == (2, 5)


def test_files_and_pages_name_the_conditions(tmp_path) -> None:
    model, call, place, _ = branches()
    a = fxlrp.convert(model)(**call, target=1, given=[{place: [1]}, {place: [2, 3]}])
    assert f"{place}: channels 2, 3" in a.save(tmp_path / "a.html").read_text()
    assert "through" in str(a)
    assert fxlrp.load(a.save(tmp_path / "a.safetensors")).of(1).given == f"{place}: channels 2, 3"
    assert f"{place}: channels 1" in a.save(tmp_path / "a.csv").read_text()
    a.save(tmp_path / "a.png")
