"""What can be evaluated: rulebooks by name, explainers, callables, baselines (captum's and two of our own)."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.gae.definitions import FIXED, PUBLISHED
from fxlrp.gae.identity import digest
from fxlrp.gae.masking import logits_of
from fxlrp.gae.metric import Explain, Views
from fxlrp.rules.registry import Rulebook, find_rulebook, rulebooks, user_rules

Method = str | Explainer | Rulebook | Callable[[nn.Module, Tensor, Tensor], Tensor]


def name_methods(methods: Mapping[str, Method] | Iterable[Method] | Method) -> dict[str, Method]:
    """Methods by the names they have in the results: those given, or what each calls itself.

    Raises FxlrpError for two of one name, and for a name that nothing has.
    """
    named: dict[str, Method] = {}
    if isinstance(methods, str | Explainer | Rulebook) or callable(methods):
        methods = [methods]
    pairs = methods.items() if isinstance(methods, Mapping) else ((_name(m), m) for m in methods)
    for name, method in pairs:
        if name in named:
            raise FxlrpError(f"Two methods are called {name!r}; give a dict from names to methods.")
        if isinstance(method, str) and method.partition(":")[0] not in rulebooks() and method not in BASELINES:
            known = ", ".join([*rulebooks(), *BASELINES])
            raise FxlrpError(f"There is no method {method!r}; there are {known}.")
        named[name] = method
    return named


def _name(method: Method) -> str:
    if isinstance(method, str):
        return method
    if isinstance(method, Explainer):
        return method.rulebook.name
    return str(getattr(method, "name", None) or getattr(method, "__name__", type(method).__name__))


def identify(method: Method) -> str:
    """A digest of what a method computes; its name does not tell it from another of that name."""
    if isinstance(method, Explainer):
        return digest((method.rulebook, method.output, user_rules()))
    if isinstance(method, str) and method not in BASELINES:
        method = find_rulebook(method)
    return digest((method, user_rules()) if isinstance(method, Rulebook) else (method, None))


def explain_by(method: Method, model: nn.Module, seed: int = 0, definition: str = FIXED) -> Explain:
    """A method as a function from views to relevance [m, C or 1, H, W].

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
        return _explainer(method if same else convert(model, rules=method.rulebook, output=method.output))
    return lambda views: method(model, views.x.clone(), views.target)


def run(explain: Explain, views: Views, batch_size: int) -> Tensor:
    """A method's relevance of all views [m, C or 1, H, W], in batches.

    Raises FxlrpError if it isn't that, or not finite.
    """
    parts = []
    for some in views.split(batch_size):
        with torch.enable_grad():
            found = explain(some)
        if not isinstance(found, Tensor):
            raise FxlrpError(f"The method returned a {type(found).__name__}, not a tensor of relevance.")
        found = found.detach().to(some.x)
        found = found[:, None] if found.ndim == 3 else found
        m, channels, *size = some.x.shape
        if found.shape not in ((m, channels, *size), (m, 1, *size)):
            raise FxlrpError(
                f"The method returned relevance of shape {list(found.shape)} for inputs {list(some.x.shape)}; it "
                "should have the same, or one channel."
            )
        if not found.isfinite().all():
            bad = next(key for key, r in zip(some.keys, found, strict=True) if not r.isfinite().all())
            raise FxlrpError(f"The method returned relevance that is not finite, for sample {bad}.")
        parts.append(found)
    return torch.cat(parts)


def _explainer(explainer: Explainer) -> Explain:
    def explain(views: Views) -> Tensor:
        found = explainer(views.x, target=views.target).relevance
        if isinstance(found, tuple):
            raise FxlrpError("The explainer explains several inputs; GAE masks one image.")
        return found

    return explain


def noise(views: Views, seed: int) -> Tensor:
    """Standard normal relevance, its own for every view: a function of seed and key alone."""
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


class _Logits(nn.Module):
    """A copy of a model that returns class scores and nothing else; captum's hooks stay in the copy."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(True)

    def forward(self, x: Tensor) -> Tensor:
        return logits_of(self.model, x)


def _captum(name: str, make: Callable[[Any, nn.Module, int], Callable[..., Tensor]]) -> Callable[..., Explain]:
    def build(model: nn.Module, seed: int) -> Explain:
        if importlib.util.find_spec("captum") is None:
            raise FxlrpError(f"{name} comes from captum, which is not installed: pip install 'fxlrp[eval]'.")
        import captum.attr

        attribute = make(captum.attr, _Logits(model), seed)

        def explain(views: Views) -> Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the hooks it sets, in our copy
                return attribute(views.x.clone().requires_grad_(), target=views.target)

        return explain

    return build


def _smoothgrad(captum: Any, model: nn.Module, seed: int) -> Callable[..., Tensor]:
    """Mean gradient at 16 inputs with normal noise of 0.15 of the input's range (Smilkov et al. 2017, 1706.03825), the
    same noise for every sample, one sample at a time: captum would draw it for a batch as a whole."""
    tunnel = captum.NoiseTunnel(captum.Saliency(model))

    def one(x: Tensor, target: Tensor) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            sigma = 0.15 * float(x.detach().max() - x.detach().min())
            return tunnel.attribute(x, nt_samples=16, stdevs=sigma, target=target, abs=False)

    return lambda x, target: torch.cat([one(x[i : i + 1], target[i : i + 1]) for i in range(len(x))])


def _gradcam(captum: Any, model: nn.Module, seed: int) -> Callable[..., Tensor]:
    """Grad-CAM (Selvaraju et al. 2017, 1610.02391) at the last convolution to run whose map is larger than a pixel."""
    cam: Any = None

    def attribute(x: Tensor, target: Tensor) -> Tensor:
        nonlocal cam
        cam = cam or captum.LayerGradCam(model, _last_convolution(model, x[:1].detach()))
        found = cam.attribute(x, target=target)
        return captum.LayerAttribution.interpolate(found, tuple(x.shape[-2:]), "bilinear")

    if not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        raise FxlrpError("gradcam needs a convolution, and the model has none.")
    return attribute


def _last_convolution(model: nn.Module, x: Tensor) -> nn.Module:
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
    "gradcam": _captum("gradcam", _gradcam),
    "guided-backprop": _captum("guided-backprop", lambda c, m, s: c.GuidedBackprop(m).attribute),
    "deeplift": _captum("deeplift", lambda c, m, s: c.DeepLift(m).attribute),
    "captum-lrp": _captum("captum-lrp", lambda c, m, s: c.LRP(m).attribute),
}
