"""Methods for texts: rulebooks by name, explainers, functions, and baselines by name."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.engine.seeds import Question
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.gae.texts.attention import (
    Base,
    Explain,
    attention_rollout,
    chefer,
    gradient_x_attention,
    legrad,
    libragrad,
)
from fxlrp.gae.texts.case import Case, said
from fxlrp.gae.texts.patched import lxt
from fxlrp.gae.texts.stability import embedding_of
from fxlrp.rules.registry import Rulebook

Method = str | Explainer | Rulebook | Callable[[nn.Module, Case], Tensor]
SAMPLES = 200
"""How often KernelSHAP and LIME ask the model."""


def explain_by(method: Method, base: Base, seed: int = 0) -> Explain:
    """Return a method as a function from a case to the relevance of its tokens [T].

    base: the model's explainers.

    Raises FxlrpError for a baseline that the model or the installation can't have.
    """
    if isinstance(method, str):
        return BASELINES[method](base, seed) if method in BASELINES else _explainer(base.by(method))
    if isinstance(method, Rulebook):
        return _explainer(base.by(method))
    if isinstance(method, Explainer):
        return _explainer(method if method.model is base.model else convert(base.model, rules=method.rulebook))
    return lambda case: method(base.model, case)


def run(explain: Explain, case: Case) -> Tensor:
    """Return a method's relevance of all tokens [T].

    Raises FxlrpError if the method returns anything else, or relevance that is not finite.
    """
    with torch.enable_grad():
        relevance = explain(case)
    if not isinstance(relevance, Tensor):
        raise FxlrpError(f"The method returned a {type(relevance).__name__}, not a tensor of relevance.")
    relevance = relevance.detach().float().to(case.free.device)
    if relevance.shape != case.free.shape:
        raise FxlrpError(
            f"The method returned relevance of shape {list(relevance.shape)} for {len(case.free)} tokens; it should "
            "be one number each."
        )
    if not relevance.isfinite().all():
        raise FxlrpError(f"The method returned relevance that is not finite, for sample {case.key}.")
    return relevance


def _explainer(explainer: Explainer) -> Explain:
    """Return an explainer as a method; of a continuation, the sum of the maps of its tokens."""

    def explain(case: Case) -> Tensor:
        questions = [Question(target, position=at) for target, at in case.questions()]
        attributions = explainer.ask(questions, **case.inputs)
        return torch.stack([a.named["input_ids"][0] for a in attributions]).sum(0)

    return explain


def _random(base: Base, seed: int) -> Explain:
    """Standard normal relevance, by the seed and the case's key alone."""

    def explain(case: Case) -> Tensor:
        digest = hashlib.sha256(f"{seed}:{case.key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        return torch.randn(len(case.free), generator=generator)

    return explain


def _truth(base: Base, seed: int) -> Explain:
    def explain(case: Case) -> Tensor:
        if case.truth is None:
            raise FxlrpError(f"ground-truth needs a human rationale for each text, and sample {case.key} has none.")
        return case.truth

    return explain


class Embedded(nn.Module):
    """A copy of a model as a function of its word embeddings [B, T, D], returning what is explained of a case [B].

    captum's hooks, and ours in the table of embeddings, stay in the copy; weights are shared.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        shared = {id(t): t for t in (*model.parameters(), *model.buffers())}
        self.model = copy.deepcopy(model, shared)
        self.given: list[Tensor] = []
        self.case: Case | None = None
        self.table: nn.Embedding | None = None

    def forward(self, x: Tensor) -> Tensor:
        case = self.case
        assert case is not None
        self.given = [x]  # for the first look-up: a decoder may share the table
        inputs = {n: t.expand(len(x), *t.shape[1:]) for n, t in case.inputs.items()}
        return case.score(said(self.model(**inputs)))

    def look_up(self, case: Case) -> tuple[Tensor, Tensor]:
        """Return the embeddings of a case, and the same with its free tokens masked or blank; both [1, T, D]."""
        self.case = case
        if self.table is None:
            self.table = embedding_of(self.model, case.inputs)
            self.table.register_forward_hook(lambda _, ids, out: self.given.pop() if self.given else out)
        ids = case.inputs["input_ids"]
        nothing = ids.masked_fill(case.free, case.blank if case.mask is None else case.mask)
        with torch.no_grad():
            return self.table(ids), self.table(nothing)


Attribute = Callable[[Tensor, Tensor, Case], Tensor]


def _captum(name: str, make: Callable[[Any, Embedded, int], Attribute]) -> Callable[[Base, int], Explain]:
    """Return a baseline of captum's, on word embeddings.

    make(captum.attr, model, seed) returns its attribute(x, baseline, case) → [1, T, D], or [T].
    """

    def build(base: Base, seed: int) -> Explain:
        if importlib.util.find_spec("captum") is None:
            raise FxlrpError(f"{name} comes from captum, which is not installed: pip install 'fxlrp[eval]'.")
        import captum.attr

        embedded = Embedded(base.model)
        attribute = make(captum.attr, embedded, seed)

        def explain(case: Case) -> Tensor:
            x, nothing = embedded.look_up(case)
            with warnings.catch_warnings(), torch.random.fork_rng():
                warnings.simplefilter("ignore")  # about the hooks it sets, in our copy
                torch.manual_seed(seed)
                relevance = attribute(x.clone().requires_grad_(), nothing, case)
            return relevance[0].sum(-1) if relevance.ndim == 3 else relevance

        return explain

    return build


def _smoothgrad(c: Any, model: Embedded, seed: int) -> Attribute:
    """SmoothGrad (Smilkov et al. 2017, 1706.03825) of 16 draws, noise of 0.15 of the embeddings' range."""
    tunnel = c.NoiseTunnel(c.Saliency(model))

    def attribute(x: Tensor, nothing: Tensor, case: Case) -> Tensor:
        sigma = 0.15 * float(x.detach().max() - x.detach().min())
        return tunnel.attribute(x, nt_samples=16, stdevs=sigma, abs=False)

    return attribute


def _integrated(c: Any, model: Embedded, seed: int) -> Attribute:
    """Integrated gradients (Sundararajan et al. 2017, 1703.01365) in 20 steps from a text of masks or blanks."""
    method = c.IntegratedGradients(model)
    return lambda x, nothing, case: method.attribute(x, nothing, n_steps=20, internal_batch_size=20).to(x)


def _occlusion(c: Any, model: Embedded, seed: int) -> Attribute:
    """What the score loses when a token is masked or blank (Zeiler and Fergus 2014, 1311.2901)."""
    method = c.Occlusion(model)
    return lambda x, nothing, case: method.attribute(
        x.detach(), (1, x.shape[2]), baselines=nothing, perturbations_per_eval=16
    ).mean(2)[0]


def _features(case: Case, by: Tensor) -> tuple[Tensor, Tensor]:
    """Return a number for each feature's tokens [1, T, 1], from 0 on, all other tokens being one; and how many tokens
    each one's feature has [T]."""
    place = torch.where(case.free, by, -1).unique(return_inverse=True)[1]
    counts = torch.bincount(place)[place]
    return place[None, :, None], counts


def _least_squares() -> Any:
    """The linear model of LIME (Ribeiro et al. 2016, 1602.04938), whose weights grow with the score: a lasso, captum's
    default, takes small ones for none."""
    if importlib.util.find_spec("sklearn") is None:
        raise FxlrpError("lime needs scikit-learn, which is not installed: pip install scikit-learn.")
    from captum._utils.models.linear_model import SkLearnLinearRegression

    return SkLearnLinearRegression()


def _by_features(name: str, by_words: bool = False, **options: Any) -> Callable[[Any, Embedded, int], Attribute]:
    """Return captum's method of this name on features: tokens, or words, whose tokens share what they get."""

    def make(c: Any, model: Embedded, seed: int) -> Attribute:
        linear = {"interpretable_model": _least_squares()} if name == "Lime" else {}
        method = getattr(c, name)(model, **linear)

        def attribute(x: Tensor, nothing: Tensor, case: Case) -> Tensor:
            each = torch.arange(len(case.free), device=x.device)
            mask, counts = _features(case, torch.where(case.words >= 0, case.words, -2 - each) if by_words else each)
            mask = mask.expand_as(x)
            relevance = method.attribute(x.detach(), baselines=nothing, feature_mask=mask, **options)
            return relevance.mean(2)[0] / counts * case.free

        return attribute

    return make


BASELINES: dict[str, Callable[[Base, int], Explain]] = {
    "random": _random,
    "ground-truth": _truth,
    "gradient": _captum("gradient", lambda c, m, s: lambda x, b, case: c.Saliency(m).attribute(x, abs=False)),
    "input-x-gradient": _captum(
        "input-x-gradient", lambda c, m, s: lambda x, b, case: c.InputXGradient(m).attribute(x)
    ),
    "integrated-gradients": _captum("integrated-gradients", _integrated),
    "smoothgrad": _captum("smoothgrad", _smoothgrad),
    "deeplift": _captum("deeplift", lambda c, m, s: lambda x, b, case: c.DeepLift(m).attribute(x, b)),
    "guided-backprop": _captum("guided-backprop", lambda c, m, s: lambda x, b, case: c.GuidedBackprop(m).attribute(x)),
    "captum-lrp": _captum("captum-lrp", lambda c, m, s: lambda x, b, case: c.LRP(m).attribute(x)),
    "occlusion": _captum("occlusion", _occlusion),
    "feature-ablation": _captum("feature-ablation", _by_features("FeatureAblation", by_words=True)),
    "kernel-shap": _captum("kernel-shap", _by_features("KernelShap", n_samples=SAMPLES, perturbations_per_eval=50)),
    "lime": _captum("lime", _by_features("Lime", n_samples=SAMPLES, perturbations_per_eval=50)),
    "attention-rollout": attention_rollout,
    "chefer": chefer,
    "gradient-x-attention": gradient_x_attention,
    "legrad": legrad,
    "libragrad": libragrad,
    "lxt": lxt,
}
