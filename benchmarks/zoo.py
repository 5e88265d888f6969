"""Every model of torchvision, timm and transformers, with random weights and inputs for two samples.

Nothing here knows a model by its name: what it takes is read from the signatures of its class and of its `forward`, and
tried.
"""

from __future__ import annotations

import importlib
import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.weights import calibrating, parameters_on_meta, randomize

ZOOS = ("torchvision", "timm", "transformers")
SIDES = (96, 112, 128, 192, 224, 256)  # resolutions to try, smallest first, before a model's own
FRAMES = 16
SPREAD = 9  # models of each transformers head in a sample
SLOW = 3.0  # seconds of a forward on two samples beyond which a shallower variant of a model stands for it

# of each family of torchvision and timm, by parameters
SMALLEST = """
alexnet beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 convnext_tiny cpubone_nano
crossvit_tiny_240 cs3darknet_focus_s csatv2 cspnext_tiny davit_tiny deeplabv3_mobilenet_v3_large deepseek_vit_412m
deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientnet_b0 efficientvim_m1 efficientvit_b0 efficientvit_m0 ese_vovnet19b_slim_dw fasternet_t0
fasterrcnn_mobilenet_v3_large_320_fpn fastvit_t8 fcn_resnet50 fcos_resnet50_fpn focalnet_tiny_srf gcvit_xxtiny
gemma4_vit_167m ghostnet_050 gmlp_ti16_224 googlenet halonet_h1 hardcorenas_b hgnetv2_b0 hiera_tiny_224
hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 inception_v3 inception_v4
keypointrcnn_resnet50_fpn lcnetv2_small legacy_seresnet18 legacy_xception levit_128s lowformer_b0
lraspp_mobilenet_v3_large maskrcnn_resnet50_fpn maxvit_t mc3_18 mnasnet0_5 mobilenet_v2 mobilenet_v3_small
mobilenetv3_small_050 mobilenetv5_base mobilevit_xxs mvit_v2_s mvitv2_tiny naflexvit_base_patch16_parfac_gap
nasnetalarge nest_tiny nextvit_small pit_ti_224 pnasnet5large poolformerv2_s12 pvt_v2_b0 quantized_googlenet
quantized_inception_v3 quantized_mobilenet_v2 quantized_mobilenet_v3_large quantized_resnet18
quantized_shufflenet_v2_x0_5 qwen3_vit_88m raft_small rdnet_tiny regnet_y_400mf regnetx_002 repghostnet_050
repvit_m1 res2next50 resnest14d resnet18 resnetv2_18 retinanet_resnet50_fpn rexnet_100 s3d sam2_hiera_tiny
samvit_base_patch16_224 selecsls42 sequencer2d_s shufflenet_v2_x0_5 shvit_s1 skresnet18 squeezenet1_1 ssd300_vgg16
ssdlite320_mobilenet_v3_large starnet_s050 swiftformer_xs swin3d_t swin_t swin_tiny_patch4_window7_224
swinv2_cr_tiny_224 swinv2_tiny_window16_256 test_byobnet test_coatnet test_convnext test_efficientnet test_mambaout
test_nfnet test_resnet test_vit test_vit_relpos tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small
vgg11 visformer_tiny vit_b_16 vit_tiny_patch16_dinov3_qkvb vit_tiny_r_s16_p8_224 vitamin_small_224 volo_d1_224
xception41p xcit_nano_12_p8_224
"""


class NotTried(Exception):
    """This entry can't be built here, or does not run by itself; the message says why."""


class Built(NamedTuple):
    model: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    note: str  # what was reduced, "; " between


@dataclass(frozen=True)
class Entry:
    zoo: str
    name: str

    @property
    def family(self) -> str:
        if self.zoo == "transformers":
            return _transformers().family(self.name)
        return _maker(self).__module__.removeprefix("timm.models.").removeprefix("torchvision.models.")


def entries(zoo: str) -> list[Entry]:
    """All models of a zoo; none where it is not installed."""
    try:
        if zoo == "transformers":
            names = _transformers().names()
        else:
            names = importlib.import_module(f"{zoo}.models").list_models()
    except ImportError:
        return []
    return [Entry(zoo, name) for name in names]


def sample(entries: list[Entry]) -> list[Entry]:
    """A fixed sample: the smallest model of each family of torchvision and timm, and SPREAD transformers, evenly."""
    families: dict[str, list[Entry]] = {}
    for e in entries:
        families.setdefault(f"{e.zoo} {e.family}", []).append(e)
    found = []
    for group in families.values():
        if group[0].zoo == "transformers":
            share = min(SPREAD, len(group))
            found += [group[i * len(group) // share] for i in range(share)]
        else:
            found.append(next((e for e in group if e.name in SMALLEST.split()), group[0]))
    return found


def build(entry: Entry, *, full_size: bool = False) -> Built:
    """The model in eval mode and its inputs; unless `full_size`, at the smallest resolution that runs.

    Raises NotTried.
    """
    torch.manual_seed(crc32(entry.name.encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if entry.zoo != "transformers":
            return _build_vision(entry, full_size)
        zoo = _transformers()
        try:
            model, kwargs, note = zoo.build(entry.name)
        except zoo.NotTried as reason:
            raise NotTried(str(reason)) from None
        return Built(model.eval(), (), kwargs, note)


def _transformers() -> Any:
    return importlib.import_module("benchmarks.zoo_transformers")


def _maker(entry: Entry) -> Callable[..., nn.Module]:
    models = importlib.import_module(f"{entry.zoo}.models")
    return (models.model_entrypoint if entry.zoo == "timm" else models.get_model_builder)(entry.name)


# ------------------------------------------------------------------------------------------- vision models


def _build_vision(entry: Entry, full_size: bool) -> Built:
    own, cls = _own_size(entry), type(_make(entry))
    error: Exception | None = None
    for size in [own] if full_size else _smaller(entry, own):
        for changes in _size_arguments(cls, size):
            notes = [f"{_px(size)} of {_px(own)}"] * (size != own)
            try:
                return Built(*_ready(entry, changes, size, math.inf if full_size else SLOW), {}, "; ".join(notes))
            except TooSlow:
                for shallow in _depth_arguments(cls):
                    with suppress(Exception):
                        found = _ready(entry, changes | shallow, size)
                        notes += [f"{k}={v}" for k, v in shallow.items()]
                        return Built(*found, {}, "; ".join(notes))
                try:
                    return Built(*_ready(entry, changes, size), {}, "; ".join(notes))
                except Exception as problem:
                    error = problem
            except Exception as problem:
                error = problem
    raise NotTried(f"does not run by itself ({one_line(error)})" if error else "no size to try")


def _make(entry: Entry, **changes: Any) -> nn.Module:
    """The model with its large parameters on meta, or whole where it can't be built so."""
    if entry.zoo == "timm":
        make = importlib.import_module("timm").create_model
        given = {"model_name": entry.name, "pretrained": False}
    else:
        make = _maker(entry)
        given = {k: None for k in inspect.signature(make).parameters if k.startswith("weights")}
    try:
        with parameters_on_meta():
            model = make(**given, **changes)
        if not any(b.is_meta for b in model.buffers()):
            return model.eval()
    except Exception:
        if changes:
            raise
    return make(**given, **changes).eval()


def _ready(
    entry: Entry, changes: dict[str, Any], size: tuple[int, int], patience: float = math.inf
) -> tuple[nn.Module, tuple]:
    """The model with weights, and its inputs.  Raises TooSlow or what the model raises."""
    model = _make(entry, **changes)
    randomize(model)
    args = _images(model, size)
    with calibrating(model), _within(model, patience):
        check(model, args, {})
    return model, args


class TooSlow(Exception):
    """A forward takes longer than it may."""


@contextmanager
def _within(model: nn.Module, seconds: float) -> Iterator[None]:
    """A forward in here is given up after so many seconds of the processor."""
    end = time.process_time() + seconds

    def look(module: nn.Module, args: tuple) -> None:
        if time.process_time() > end:
            raise TooSlow

    hooks = [m.register_forward_pre_hook(look) for m in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _images(model: nn.Module, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Two random samples for each input that `forward` requires; clips where the first convolution is over time."""
    first = next((m.weight for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd)), None)
    clip = (FRAMES,) if first is not None and first.ndim == 5 else ()
    required = [p for p in inspect.signature(model.forward).parameters.values() if p.default is p.empty]
    required = [p for p in required if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(torch.randn(2, 3, *clip, *size) for _ in required)


def _own_size(entry: Entry) -> tuple[int, int]:
    """The resolution a model is made for: of its configuration, or of the transforms of its published weights."""
    models = importlib.import_module(f"{entry.zoo}.models")
    if entry.zoo == "timm":
        return tuple(models.get_pretrained_cfg(entry.name).input_size[-2:])
    weights = models.get_model_weights(entry.name)
    crop = getattr(next(iter(weights)).transforms(), "crop_size", None) if len(weights) else None
    return (max(crop),) * 2 if crop else (224, 224)


def _smaller(entry: Entry, own: tuple[int, int]) -> list[tuple[int, int]]:
    """Resolutions to try, smallest first, in the model's own proportions."""
    short = min(own)
    floor = 0
    if entry.zoo == "timm":
        config = importlib.import_module("timm.models").get_pretrained_cfg(entry.name)
        floor = min((config.min_input_size or (0,))[-2:])
    sides = [s for s in SIDES if floor <= s < short]
    return [*((own[0] * s // short, own[1] * s // short) for s in sides), own]


def _px(size: tuple[int, int]) -> str:
    return f"{size[0]} px" if size[0] == size[1] else f"{size[0]}×{size[1]} px"


def _parameters(cls: type) -> dict[str, Any]:
    """The arguments of a class, those it hands on to its bases included, with their defaults."""
    signatures = [inspect.signature(c.__init__).parameters for c in reversed(cls.__mro__) if "__init__" in vars(c)]
    return {k: p.default for found in signatures for k, p in found.items()}


def _size_arguments(cls: type, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """How to ask a class for another resolution, and not at all."""
    for key in _parameters(cls).keys() & {"img_size", "image_size", "input_size", "spatial_size", "min_size"}:
        yield {key: size}
        if size[0] == size[1]:
            yield {key: size[0]}
    yield {}


def _depth_arguments(cls: type) -> Iterator[dict[str, Any]]:
    """How to ask a class for two layers, or two a stage."""
    for key, default in _parameters(cls).items():
        if key in ("depth", "depths", "layers", "num_layers", "num_blocks", "block_config"):
            if isinstance(default, tuple | list) and all(isinstance(d, int) for d in default):
                yield {key: tuple(min(d, 2) for d in default)}
            else:
                yield {key: 2}
                yield {key: (2, 2, 2, 2)}


@torch.no_grad()
def check(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    """Raises ValueError unless the model tells the samples apart by finite outputs."""
    found = [t for t in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(t, Tensor) and t.is_floating_point()]
    if not found:
        raise ValueError("no float output")
    out = found[0]
    if not out.isfinite().all():
        raise ValueError("outputs are not finite")
    if len(out) == 2 and (out[0] - out[1]).abs().max() < 1e-4 * out.abs().max():
        raise ValueError("outputs of two samples are equal")


def one_line(error: BaseException) -> str:
    """Type and message of an error, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
