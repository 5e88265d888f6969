"""What can be evaluated: rulebooks by name, explainers, callables, baselines (captum's, zennit's, of attention)."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.gae import perturbing
from fxlrp.gae.attention_maps import (
    PLAIN,
    attention_rollout,
    attention_x_gradient,
    chefer,
    has_attention_after_convolutions,
    legrad,
    libragrad,
    token_gradcam,
)
from fxlrp.gae.definitions import FIXED, PUBLISHED
from fxlrp.gae.masking import Scores
from fxlrp.gae.metric import Explain, Views
from fxlrp.gae.peers import COMPOSITES, zennit
from fxlrp.identity import digest
from fxlrp.rules.registry import Rulebook, find_rulebook, rulebooks, user_rules

Method = str | Explainer | Rulebook | Callable[[nn.Module, Tensor, Tensor], Tensor]


def name_methods(methods: Any, baselines: Iterable[str] | None = None) -> dict[str, Any]:
    """Return methods by the names they have in the results: those given, or what each calls itself.

    baselines: the names that are no rulebook's; without them those of `BASELINES`.

    Raises FxlrpError for two of one name, a name that nothing has, and parameters that a rulebook does not.
    """
    named: dict[str, Any] = {}
    others = list(BASELINES if baselines is None else baselines)
    if isinstance(methods, str | Explainer | Rulebook) or callable(methods):
        methods = [methods]
    pairs = methods.items() if isinstance(methods, Mapping) else ((_name(m), m) for m in methods)
    for name, method in pairs:
        if name in named:
            raise FxlrpError(f"Two methods are called {name!r}; give a dict from names to methods.")
        if isinstance(method, str) and method not in others:
            if method.partition(":")[0] not in rulebooks():
                every = ", ".join(dict.fromkeys([*rulebooks(), *others]))
                raise FxlrpError(f"There is no method {method!r}; there are {every}.")
            find_rulebook(method)
        named[name] = method
    return named


def _name(method: Any) -> str:
    if isinstance(method, str):
        return method
    if isinstance(method, Explainer):
        return method.rulebook.name
    return str(getattr(method, "name", None) or getattr(method, "__name__", type(method).__name__))


def identify(method: Any) -> str:
    """Return a digest of what a method computes, which tells it from another of the same name."""
    if isinstance(method, Explainer):
        return digest((method.rulebook, method.settings.output, user_rules()))
    if isinstance(method, str) and method.partition(":")[0] in rulebooks():
        method = find_rulebook(method)
    return digest((method, user_rules()) if isinstance(method, Rulebook) else (method, None))


def explain_by(method: Method, model: nn.Module, seed: int = 0, definition: str = FIXED) -> Explain:
    """Return a method as a function from views to relevance [m, C or 1, H, W].

    In definition 2024-12, `abslrp-2024-12` by name is what the authors' code computes, the leak of its sums included.

    Raises FxlrpError for a baseline that the model or the installation can't have.
    """
    if isinstance(method, str):
        method = "abslrp-2024-12:leak=1" if (method, definition) == ("abslrp-2024-12", PUBLISHED) else method
        return BASELINES[method](model, seed) if method in BASELINES else _explainer(convert(model, rules=method))
    if isinstance(method, Rulebook):
        return _explainer(convert(model, rules=method))
    if isinstance(method, Explainer):
        same = model is method.model
        return _explainer(method if same else convert(model, rules=method.rulebook, output=method.settings.output))
    return lambda views: method(model, views.x.clone(), views.target)


def run(explain: Explain, views: Views, batch_size: int) -> Tensor:
    """Return a method's relevance [m, C or 1, H, W] of all views, computed in batches.

    Raises FxlrpError if the method returns anything else, or relevance that is not finite.
    """
    parts = []
    for batch in views.split(batch_size):
        with torch.enable_grad():
            relevance = explain(batch)
        if not isinstance(relevance, Tensor):
            raise FxlrpError(f"The method returned a {type(relevance).__name__}, not a tensor of relevance.")
        relevance = relevance.detach().to(batch.x)
        relevance = relevance[:, None] if relevance.ndim == batch.x.ndim - 1 else relevance
        m, _, *size = batch.x.shape
        if relevance.shape != batch.x.shape and (not size or relevance.shape != (m, 1, *size)):
            raise FxlrpError(
                f"The method returned relevance of shape {list(relevance.shape)} for inputs {list(batch.x.shape)}; it "
                "should have the same, or one channel."
            )
        if not relevance.isfinite().all():
            bad = next(key for key, r in zip(batch.keys, relevance, strict=True) if not r.isfinite().all())
            raise FxlrpError(f"The method returned relevance that is not finite, for sample {bad}.")
        parts.append(relevance)
    return torch.cat(parts)


def _explainer(explainer: Explainer) -> Explain:
    """Return an explainer as a method."""

    def explain(views: Views) -> Tensor:
        relevance = explainer(views.x, target=views.target).relevance
        if isinstance(relevance, tuple):
            raise FxlrpError("The explainer explains several inputs; GAE masks one image.")
        return relevance

    return explain


def noise(views: Views, seed: int) -> Tensor:
    """Draw standard normal relevance [m, C, H, W], for each view by the seed and its key alone."""
    maps = []
    for key in views.keys:
        digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        maps.append(torch.randn(views.x.shape[1:], generator=generator))
    return torch.stack(maps)


def _random(model: nn.Module, seed: int) -> Explain:
    return lambda views: noise(views, seed)


def _truth(model: nn.Module, seed: int) -> Explain:
    def explain(views: Views) -> Tensor:
        if views.truth is None:
            raise FxlrpError("ground-truth needs a mask for each sample, and definition='fixed'.")
        return views.truth

    return explain


def _captum(name: str, make: Callable[[Any, nn.Module, int], Callable[..., Tensor]]) -> Callable[..., Explain]:
    """Return a baseline of captum's; make(captum.attr, model, seed) returns its attribute(x, target)."""

    def build(model: nn.Module, seed: int) -> Explain:
        if importlib.util.find_spec("captum") is None:
            raise FxlrpError(f"{name} comes from captum, which is not installed: pip install 'fxlrp[eval]'.")
        import captum.attr

        attribute = make(captum.attr, Scores(model), seed)

        def explain(views: Views) -> Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the hooks it sets, in our copy
                return attribute(views.x.clone().requires_grad_(), target=views.target)

        return explain

    return build


def _smoothgrad(captum: Any, model: nn.Module, seed: int) -> Callable[..., Tensor]:
    """Make SmoothGrad (Smilkov et al. 2017, 1706.03825): the mean gradient at 16 inputs with normal noise.

    The noise has a deviation of 0.15 of the input's range, and is the same for every sample; samples go one at a time,
    since captum would draw it for a batch as a whole.
    """
    tunnel = captum.NoiseTunnel(captum.Saliency(model))

    def one(x: Tensor, target: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sigma = 0.15 * float(x.detach().max() - x.detach().min())
            return tunnel.attribute(x, nt_samples=16, stdevs=sigma, target=target, abs=False)

    return lambda x, target: torch.cat([one(x[i : i + 1], target[i : i + 1]) for i in range(len(x))])


def _gradcam(captum: Any, model: nn.Module, seed: int) -> Callable[..., Tensor]:
    """Make Grad-CAM (Selvaraju et al. 2017, 1610.02391) at the last convolution to run with a map over one pixel."""
    cam: Any = None

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        nonlocal cam
        cam = cam or captum.LayerGradCam(model, _last_convolution(model, x[:1].detach()))
        small = cam.attribute(x, target=target)
        return captum.LayerAttribution.interpolate(small, tuple(x.shape[-2:]), "bilinear")

    if not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        raise FxlrpError("gradcam needs a convolution, and the model has none.")
    return attribute


def _gradcam_of_any(model: nn.Module, seed: int) -> Explain:
    """Make Grad-CAM by convolutions with captum or, where attention follows the last of them, by tokens."""
    made: list[Explain] = []

    def explain(views: Views) -> Tensor:
        if not made:
            plain = convert(model, rules=PLAIN)
            by_tokens = has_attention_after_convolutions(plain, views.x[:2])
            made.append(token_gradcam(plain) if by_tokens else _captum("gradcam", _gradcam)(model, seed))
        return made[0](views)

    return explain


def _last_convolution(model: nn.Module, x: Tensor) -> nn.Module:
    """Return the last convolution to run on x whose map is larger than a pixel.  Raises FxlrpError if none is."""
    seen: list[nn.Module] = []

    def note(module: nn.Module, args: Any, out: Tensor) -> None:
        if out.ndim == 4 and min(out.shape[-2:]) > 1:
            seen.append(module)

    hooks = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d)]
    try:
        with torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not seen:
        raise FxlrpError("gradcam needs a convolution whose map is larger than one pixel, and the model has none.")
    return seen[-1]


BASELINES: dict[str, Callable[[nn.Module, int], Explain]] = {
    "random": _random,
    "ground-truth": _truth,
    "gradient": _captum("gradient", lambda c, m, s: lambda x, target: c.Saliency(m).attribute(x, target, abs=False)),
    "input-x-gradient": _captum("input-x-gradient", lambda c, m, s: c.InputXGradient(m).attribute),
    "integrated-gradients": _captum(
        "integrated-gradients",
        lambda c, m, s: (
            lambda x, target: (
                c.IntegratedGradients(m).attribute(x, target=target, n_steps=20, internal_batch_size=len(x)).to(x)
            )
        ),
    ),
    "smoothgrad": _captum("smoothgrad", _smoothgrad),
    "gradcam": _gradcam_of_any,
    "attention-rollout": attention_rollout,
    "attention-x-gradient": attention_x_gradient,
    "chefer": chefer,
    "legrad": legrad,
    "libragrad": libragrad,
    "occlusion": _captum("occlusion", perturbing.occlusion),
    "feature-ablation": _captum("feature-ablation", perturbing.feature_ablation),
    "kernel-shap": _captum("kernel-shap", perturbing.kernel_shap),
    "lime": _captum("lime", perturbing.lime),
    "guided-backprop": _captum("guided-backprop", lambda c, m, s: c.GuidedBackprop(m).attribute),
    "deeplift": _captum("deeplift", lambda c, m, s: c.DeepLift(m).attribute),
    "captum-lrp": _captum("captum-lrp", lambda c, m, s: c.LRP(m).attribute),
    **{name: zennit(name) for name in COMPOSITES},
}
