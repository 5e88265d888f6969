"""Methods for texts against their formulas, over transformers that show their attention and take embeddings."""

from __future__ import annotations

import copy
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import text_cases
import torch
from text_cases import bag
from torch import Tensor, nn

from fxlrp import FxlrpError, convert
from fxlrp.gae.texts import BASELINES, Case, Sample
from fxlrp.gae.texts.attention import Base
from fxlrp.gae.texts.case import make_case, said
from fxlrp.gae.texts.methods import explain_by, run
from fxlrp.rules.registry import find_rulebook
from fxlrp.text import explain, generate
from tests.text.models import bert, byte_level, decoder_only, encoder_decoder, wordpiece

pytest.importorskip("captum")
Made = tuple[Any, Any, Case, Base]


@pytest.fixture(scope="module", params=["bert", "gpt2"])
def made(request: pytest.FixtureRequest) -> Made:
    """A model, its tokenizer, a case and an explainer."""
    if request.param == "bert":
        tokenizer = wordpiece()
        model = bert("SequenceClassification", tokenizer, num_labels=3)
        sample = Sample("it isn't a gripping film", rationale=(False, True, False, True, False))
    else:
        tokenizer = byte_level()
        model = decoder_only("gpt2", tokenizer)
        sample = Sample("The capital of France is", continuation=" Paris, and")
    made = model.double(), tokenizer, make_case(model, tokenizer, sample, 0), Base(convert(model))
    attended(made)  # which changes a model of transformers', so that it would be captured anew
    return made


EXPLAIN: dict[Any, Any] = {}
ATTENDED: dict[int, Any] = {}


def by(name: Any, made: Made, seed: int = 0) -> Tensor:
    """A method's relevance; what is captured is kept."""
    key = id(made[3]), name if isinstance(name, str) else id(name), seed
    if key not in EXPLAIN:
        EXPLAIN[key] = name, explain_by(name, made[3], seed)
    return run(EXPLAIN[key][1], made[2])


def attended(made: Made) -> list[tuple[Tensor, Tensor]]:
    """Each layer's attention [H, T, T], and the gradient of the score by it."""
    model, _, case, _ = made
    if id(model) not in ATTENDED:
        out = model(**case.inputs, output_attentions=True)
        gradients = torch.autograd.grad(case.score(out.logits).sum(), out.attentions)
        ATTENDED[id(model)] = [(a[0].detach(), g[0]) for a, g in zip(out.attentions, gradients, strict=True)]
    return ATTENDED[id(model)]


def read_where(made: Made) -> list[int]:
    """The tokens that the model's head reads: the first of BERT, those before the continuation's of GPT-2."""
    return [0] if made[2].at is None else made[2].at.tolist()


def rollout(made: Made) -> Tensor:
    layers, eye = attended(made), torch.eye(len(made[2].free), dtype=torch.float64)
    reached = eye
    for a, _ in layers:
        reached = (a.mean(0) + eye) / 2 @ reached
    return reached[read_where(made)].mean(0)


def chefers(made: Made) -> Tensor:
    reached = torch.eye(len(made[2].free), dtype=torch.float64)
    for a, g in attended(made):
        reached = reached + (a * g).clamp(min=0).mean(0) @ reached
    return reached[read_where(made)].mean(0)


def grad_sam(made: Made) -> Tensor:
    layers = attended(made)
    heads, length = layers[0][0].shape[:2]
    return sum((a * g.relu()).sum((0, 1)) for a, g in layers) / (len(layers) * heads * length)


def legrads(made: Made) -> Tensor:
    """GPT-2's."""
    model, _, case, _ = made
    if case.at is None:
        pytest.skip("the norms of BERT's blocks are within them")
    return text_cases.legrads(model, case, model.transformer.ln_f)


def embedded(made: Made) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """The embeddings, those of a text of masks, and the score as a function of embeddings."""
    model, tokenizer, case, _ = made
    ids, table = case.inputs["input_ids"], model.get_input_embeddings()
    rest = {k: v for k, v in case.inputs.items() if k != "input_ids"}
    masked = torch.where(case.free, tokenizer.mask_token_id, ids)

    def score(x: Tensor) -> Tensor:
        return case.score(said(model(inputs_embeds=x, **{k: v.expand(len(x), -1) for k, v in rest.items()})))

    return table(ids).detach(), table(masked).detach(), score


def gradient_of(made: Made, times_input: bool) -> Tensor:
    x, _, score = embedded(made)
    x.requires_grad_()
    (g,) = torch.autograd.grad(score(x).sum(), x)
    return (g * x.detach() if times_input else g)[0].sum(-1)


def integrated(made: Made) -> Tensor:
    """Gauss–Legendre, as captum's."""
    import numpy as np

    x, nothing, score = embedded(made)
    places, weights = np.polynomial.legendre.leggauss(20)
    total = torch.zeros_like(x)
    for place, weight in zip(places, weights, strict=True):
        at = (nothing + (place + 1) / 2 * (x - nothing)).requires_grad_()
        total += weight / 2 * torch.autograd.grad(score(at).sum(), at)[0]
    return ((x - nothing) * total)[0].sum(-1)


def left_out(made: Made) -> Tensor:
    x, nothing, score = embedded(made)
    lost = []
    for i in range(x.shape[1]):
        at = x.clone()
        at[:, i] = nothing[:, i]
        lost.append(float((score(x) - score(at)).detach()))
    return torch.tensor(lost)


def words_left_out(made: Made) -> Tensor:
    x, nothing, score = embedded(made)
    words, lost = made[2].words, torch.zeros(x.shape[1])
    for word in set(words.tolist()) - {-1}:
        at = x.clone()
        at[:, words == word] = nothing[:, words == word]
        lost[words == word] = float((score(x) - score(at)).detach()) / int((words == word).sum())
    return lost


def asked(made: Made) -> Tensor:
    _, tokenizer, case, base = made
    explainer = base.by("attnlrp")
    if case.at is None:
        return explain(explainer, tokenizer, case.text.segments[0]).scores
    return generate(explainer, tokenizer, "The capital of France is", continuation=" Paris, and").matrix.sum(0)


def libragrads(made: Made) -> Tensor:
    """x ⊙ gradient, summed over channels and over the inputs of all norms, attention, deviations and gates constant."""
    model, _, case, _ = made
    frozen, norms = copy.deepcopy(model), [n for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)]
    if case.at is not None:
        pytest.skip("GELU by tanh has no module to hook")
    attention = iter([a[None] for a, _ in attended(made)])
    seen: list[Tensor] = []

    def norm(module: nn.LayerNorm, args: tuple, out: Tensor) -> Tensor:
        x = args[0]
        x.retain_grad()
        seen.append(x)
        spread = (x.var(-1, unbiased=False, keepdim=True) + module.eps).sqrt().detach()
        return (x - x.mean(-1, keepdim=True)) / spread * module.weight + module.bias

    def gate(module: nn.Module, args: tuple, out: Tensor) -> Tensor:
        return args[0] * (out / args[0]).detach()

    def attend(module: Any, args: tuple, out: tuple) -> tuple:
        x, heads = args[0], module.num_attention_heads
        value = module.value(x).unflatten(2, (heads, -1)).transpose(1, 2)
        return (next(attention) @ value).transpose(1, 2).flatten(2), *out[1:]

    for m in frozen.modules():
        kind = type(m).__name__
        if isinstance(m, nn.LayerNorm):
            m.register_forward_hook(norm)
        elif kind == "GELUActivation":
            m.register_forward_hook(gate)
        elif kind == "BertSelfAttention":
            m.register_forward_hook(attend)
        elif isinstance(m, nn.Tanh):
            m.register_forward_hook(gate)
    case.score(frozen(**case.inputs).logits).sum().backward()
    assert len(seen) == len(norms)
    return sum((x * x.grad)[0].sum(-1).detach() for x in seen)


FORMULAS: dict[str, Callable[[Made], Tensor]] = {
    "attnlrp": asked,
    "attention-rollout": rollout,
    "chefer": chefers,
    "gradient-x-attention": grad_sam,
    "legrad": legrads,
    "libragrad": libragrads,
    "gradient": lambda made: gradient_of(made, False),
    "guided-backprop": lambda made: gradient_of(made, False),  # there is no ReLU
    "input-x-gradient": lambda made: gradient_of(made, True),
    "integrated-gradients": integrated,
    "occlusion": left_out,
    "feature-ablation": words_left_out,
}


OF_CONTINUATIONS = ("attnlrp", "chefer", "legrad", "input-x-gradient", "occlusion")


@pytest.mark.parametrize("name", FORMULAS)
def test_equals_its_formula(name: str, made: Made) -> None:
    if made[2].at is not None and name not in OF_CONTINUATIONS:
        pytest.skip("tried on BERT")
    expected = FORMULAS[name](made).float()
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(by(name, made), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["random", "smoothgrad", "kernel-shap", "lime"])
def test_what_is_drawn_is_drawn_by_the_seed_and_the_sample(name: str, made: Made) -> None:
    if made[2].at is not None and name != "random":
        pytest.skip("tried on BERT")
    if name == "lime":
        pytest.importorskip("sklearn", reason="captum's LIME needs scikit-learn")
    before = torch.random.get_rng_state()
    once, again, other = by(name, made), by(name, made), by(name, made, seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    if name in ("kernel-shap", "lime"):
        assert not once[~made[2].free].any()


@pytest.fixture(scope="module")
def known() -> Made:
    """A bag of words, whose worth is known."""
    model, tokenizer = bag()
    sample = Sample("a gripping mess", rationale=(False, True, False))
    return model, tokenizer, make_case(model, tokenizer, sample, 0), Base(convert(model))


@pytest.mark.parametrize("name", ["kernel-shap", "lime", "occlusion", "feature-ablation", "deeplift", "epsilon"])
def test_the_worth_of_words_is_found(name: str, known: Made) -> None:
    if name == "lime":
        pytest.importorskip("sklearn", reason="captum's LIME needs scikit-learn")
    both = 2 if name == "epsilon" else 1  # a rulebook explains why this class and not the other
    expected = {"gripping": 1.0 * both, "mess": -0.5 * both}
    found = by(name, known).tolist()
    assert found == pytest.approx([expected.get(p.token, 0.0) for p in known[2].text.pieces], abs=1e-3)


def test_nothing_is_left_in_the_model(made: Made) -> None:
    model = made[0]
    before = {id(m): {k: dict(v) if isinstance(v, dict) else v for k, v in vars(m).items()} for m in model.modules()}
    for name in ("deeplift", "guided-backprop", "occlusion", "attnlrp"):
        by(name, made)
    after = {id(m): {k: dict(v) if isinstance(v, dict) else v for k, v in vars(m).items()} for m in model.modules()}
    assert after == before
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_other_kinds_of_methods(known: Made) -> None:
    model, _, case, base = known
    mine = by(lambda net, case: torch.ones(len(case.free)) * (net is model), known)
    assert mine.tolist() == [1.0] * len(case.free)
    assert torch.equal(by(convert(model, rules="epsilon"), known), by("epsilon", known))
    assert torch.equal(by(base.by("epsilon"), known), by("epsilon", known))
    assert torch.equal(by(find_rulebook("epsilon"), known), by("epsilon", known))
    for wrong, told in (
        (lambda net, case: [1.0], "returned a list"),
        (lambda net, case: torch.ones(2), r"shape \[2\] for"),
        (lambda net, case: torch.full((len(case.free),), torch.nan), "not finite, for sample 0"),
    ):
        with pytest.raises(FxlrpError, match=told):
            by(wrong, known)
    assert by("ground-truth", known).tolist() == [0.0, 0.0, 1.0, 0.0, 0.0]
    with pytest.raises(FxlrpError, match="ground-truth needs a human rationale"):
        by("ground-truth", (*known[:2], make_case(model, known[1], Sample("a"), 0), base))
    with pytest.raises(TypeError, match="no rule defined"):
        by("captum-lrp", known)


@pytest.mark.parametrize("name", ["attention-rollout", "chefer", "gradient-x-attention", "legrad", "libragrad"])
def test_what_attention_can_not_say(name: str, known: Made) -> None:
    with pytest.raises(FxlrpError, match=f"{name} needs"):
        by(name, known)
    if name == "chefer":
        tokenizer = byte_level(eos="</s>")
        model = encoder_decoder("t5", tokenizer)
        case = make_case(model, tokenizer, Sample("once upon", continuation=" a"), 0)
        with pytest.raises(FxlrpError, match="this model has a decoder, too"):
            by(name, (model, tokenizer, case, Base(convert(model))))


def twice(x: Tensor) -> Tensor:
    """The same values, whose gradient counts twice."""
    return 2 * x - x.detach()


def test_lxt_patches_for_the_time_of_a_call(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an LXT of our own, by which gradients count twice at each norm."""
    if importlib.util.find_spec("lxt") is None:
        with pytest.raises(FxlrpError, match="lxt is not installed: pip install lxt"):
            by("lxt", made)
    model, _, case, _ = made
    module, plain = sys.modules[type(model).__module__], nn.LayerNorm.forward
    names = ("lxt", "lxt.efficient", "lxt.efficient.models")
    fake: list[Any] = [types.ModuleType(name) for name in names]

    def patch(target: Any) -> None:
        target.patched, nn.LayerNorm.forward = True, lambda norm, x: plain(norm, twice(x))

    fake[1].models, fake[1].monkey_patch = fake[2], patch
    fake[2].get_default_map = lambda target: {target: None, nn.LayerNorm: None}
    for name, there in zip(names, fake, strict=True):
        there.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        monkeypatch.setitem(sys.modules, name, there)
    before = dict(vars(module))
    found = run(explain_by("lxt", made[3]), case)
    assert nn.LayerNorm.forward is plain
    assert dict(vars(module)) == before
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    hooks = [m.register_forward_pre_hook(lambda _, x: (twice(x[0]),)) for m in norms]
    expected = gradient_of(made, True)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)
    fake[2].get_default_map = lambda target: {}["vit"]
    with pytest.raises(FxlrpError, match="lxt can't patch transformers"):
        explain_by("lxt", made[3])


def test_every_baseline_is_tried() -> None:
    drawn = {"random", "ground-truth", "smoothgrad", "kernel-shap", "lime", "deeplift", "captum-lrp", "lxt"}
    assert set(BASELINES) == {*FORMULAS} - {"attnlrp"} | drawn
