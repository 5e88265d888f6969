"""Models whose weights accelerate keeps elsewhere are explained as they would be in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import fxlrp

accelerate = pytest.importorskip("accelerate")
transformers = pytest.importorskip("transformers")

IDS = torch.arange(12).reshape(2, 6)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()


@pytest.mark.parametrize("place", ["cpu", "disk", "both"])
def test_offloaded_modules(place: str, tmp_path: Path) -> None:
    x = torch.randn(3, 4).double()
    wanted = fxlrp.convert(net())(x)
    offload = {
        "cpu": lambda m: accelerate.cpu_offload(m, execution_device="cpu"),
        "disk": lambda m: accelerate.disk_offload(m, tmp_path, execution_device="cpu"),
        "both": lambda m: accelerate.dispatch_model(
            m, {"0": "cpu", "1": "cpu", "2": "disk"}, main_device="cpu", offload_dir=tmp_path, force_hooks=True
        ),
    }
    model = offload[place](net())
    a = fxlrp.convert(model)(x)
    torch.testing.assert_close(a.relevance, wanted.relevance)
    torch.testing.assert_close(a.logits, wanted.logits)
    assert "meta" in {p.device.type for p in model.parameters()}  # they are where they were


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder as Hugging Face saves it, in several files."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 50}
    folder = tmp_path_factory.mktemp("model")
    config = transformers.LlamaConfig(num_hidden_layers=2, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")
    return folder


EVERY = pytest.param({"": "disk"}, marks=pytest.mark.whole)


@pytest.mark.parametrize("device_map", [EVERY, {"model": "cpu", "lm_head": "disk"}], ids=["all", "head"])
def test_weights_read_from_files_at_each_call(device_map: dict[str, str], saved: Path, tmp_path: Path) -> None:
    load = transformers.AutoModelForCausalLM.from_pretrained
    wanted = fxlrp.convert(load(saved, attn_implementation="eager").eval())(input_ids=IDS)
    how = {"offload_folder": tmp_path, "attn_implementation": "eager"}
    model = load(saved, device_map=device_map, **how).eval()
    explainer = fxlrp.convert(model)
    for _ in range(2):
        torch.testing.assert_close(explainer(input_ids=IDS).relevance, wanted.relevance)
    import safetensors

    assert accelerate.utils.offload.safe_open is safetensors.safe_open
