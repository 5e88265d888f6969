"""The published rulebooks against relevance maps made with the authors' own code (absent from a plain checkout)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import fxlrp

ORACLES = Path(__file__).parents[2] / "shared" / "oracles"
pytestmark = pytest.mark.skipif(not ORACLES.exists(), reason="the oracle tensors are not part of the repository")
pytest.importorskip("timm")


def oracle(file: str) -> dict[str, torch.Tensor]:
    with np.load(ORACLES / file) as data:
        return {k: torch.from_numpy(data[k]) for k in data.files if data[k].dtype.kind in "fiu"}


def build(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("oracle_build", ORACLES / "oracle_build.py")
    ob = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ob)
    if name.startswith("micro"):
        x = ob.micro_input(name)
    else:
        x = oracle("x224_vit.npz" if "vit" in name else "x224_imagenet.npz")["x"]
    return ob.build(name).double(), x.double()


def compare(mine: torch.Tensor, theirs: torch.Tensor) -> tuple[float, float]:
    """Largest difference over largest |R|, and correlation."""
    a, b = mine.double().flatten(), theirs.double().flatten()
    return ((a - b).abs().max() / b.abs().max()).item(), torch.corrcoef(torch.stack([a, b]))[0, 1].item()


CASES = [
    ("2024-04", "micro_vgg", "single"),
    ("2024-04", "micro_vgg", "ksigned"),
    ("2024-04", "micro_resnet_basic", "single"),
    ("2024-04", "micro_resnet_basic", "ksigned"),
    ("2024-04", "micro_vit", "single"),
    ("2024-04", "micro_vit", "neg"),
    ("2024-04", "vgg11", "single"),
    ("2024-04", "resnet18", "single"),
    ("2024-04", "vit_tiny_patch16_224", "single"),
    ("2024-12", "micro_vgg", "pos"),
    ("2024-12", "micro_vgg", "neg"),
    ("2024-12", "micro_resnet_basic", "pos"),
    ("2024-12", "micro_resnet_basic", "neg"),
    ("2024-12", "micro_vit", "pos"),
    ("2024-12", "micro_vit", "neg"),
    ("2024-12:leak=1", "micro_resnet_basic", "pos"),
    ("2024-12:leak=1", "micro_resnet_basic", "neg"),
    ("2024-12:leak=1", "micro_vit", "pos"),
    ("2024-12:leak=1", "micro_vit", "neg"),
    ("2024-12", "vgg11", "pos"),
    ("2024-12", "resnet18", "pos"),
    ("2024-12", "resnet18", "neg"),
    ("2024-12", "vit_tiny_patch16_224", "pos"),
    ("2024-12", "vit_tiny_patch16_224", "neg"),
]


@pytest.mark.parametrize(("version", "name", "seed"), CASES, ids=str)
def test_published(version: str, name: str, seed: str) -> None:
    model, x = build(name)
    noleak = version == "2024-12" and "vgg" not in name
    maps = oracle(f"{version.partition(':')[0]}/{name}{'_noleak' if noleak else ''}.npz")
    stem = seed + ("_noleak" if noleak else "_b1" if version == "2024-04" and "vit" in name else "")
    key = next(k for k in (f"{stem}_f64", f"{stem}_f64_chsum", f"{stem}_chsum") if k in maps)
    explainer = fxlrp.convert(model, rules=f"abslrp-{version}")
    for i in range(len(x)):
        with torch.no_grad():
            logits = model(x[i : i + 1])
        k = logits.shape[1]
        onehot = torch.nn.functional.one_hot(logits.argmax(1), k).double()
        seeds = {
            "single": onehot,
            "pos": onehot,
            "neg": (1 - onehot) / (1 if version == "2024-04" else k - 1),
            "ksigned": (1 + 1 / k) * onehot - 1 / k,
        }
        if version == "2024-12" and name.endswith("vgg11") and i == 0:
            continue  # 494 exact ties between max-pool winners
        a = explainer(x[i : i + 1], target=seeds[seed], contrast=None)
        torch.testing.assert_close(a.logits, logits, rtol=1e-9, atol=1e-9)
        mine = a.relevance[0].sum(0) if "chsum" in key else a.relevance[0]
        difference, correlation = compare(mine, maps[key][i])
        print(f"{version} {name} {seed} image {i}: difference {difference:.1e}, 1 - correlation {1 - correlation:.1e}")
        assert difference <= 1e-3
        assert correlation >= 0.9999


def test_default_is_the_april_method_where_side_effects_play_no_part() -> None:
    model, x = build("micro_vgg")
    maps = oracle("2024-04/micro_vgg.npz")["single_f64"]
    relevance = fxlrp.convert(model, rules="abslrp")(x, contrast=None).relevance
    for mine, theirs in zip(relevance, maps, strict=True):
        difference, correlation = compare(mine, theirs)
        assert difference <= 1e-6
        assert correlation >= 1 - 1e-9
