"""Models that read pictures and text, or sound: relevance of each input they read, and of each caption's words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fxlrp
from fxlrp.text import of_tokens

from .models import SMALL, T, build, wordpiece

TEXTS = ["A dull mess", "Ada lives in Paris"]
VISION = {"image_size": 16, "patch_size": 8, **SMALL}
LABELS = ["no", "yes", "so so", "who knows"]


@pytest.fixture(scope="module")
def words():
    return wordpiece()


def pixels(count: int) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()


def close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= 1e-8 * b.abs().max())


def two_towers(kind: str, words):
    """CLIP or SigLIP: how well each text fits each picture."""
    text = {"vocab_size": len(words), "max_position_embeddings": 32, **SMALL}
    if kind == "clip":
        config = T.CLIPConfig(text_config={**text, "eos_token_id": words.sep_token_id}, vision_config=VISION)
        return build(T.CLIPModel, config).double()
    return build(T.SiglipModel, T.SiglipConfig(text_config=text, vision_config=VISION)).double()


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_picture_and_captions(kind: str, words) -> None:
    """Why this caption and not that one: where in the picture, and which words."""
    explainer = fxlrp.convert(two_towers(kind, words), rules="abslrp-hybrid", output="logits_per_image")
    texts = words(TEXTS, padding=True, return_tensors="pt")
    ids = {"input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"]}
    a = explainer(pixel_values=pixels(1), **ids, target=1, contrast=0)
    assert a.heatmap().shape == (1, 16, 16)
    assert a.named.keys() == {"pixel_values", "input_ids"}
    assert all(r.isfinite().all() and r.any() for r in a.named.values())
    one, other = of_tokens(a, words, TEXTS)
    assert [w for w, _ in one.words] == ["a", "dull", "mess"]
    assert [w for w, _ in other.words] == ["ada", "lives", "in", "paris"]
    assert (one.tokens[0], one.asked[0].target) == ("[CLS]", TEXTS[1])
    assert close(other.scores, a.named["input_ids"][1, : len(other.tokens)].float())
    with pytest.raises(fxlrp.FxlrpError, match="Class 1 was explained, and labels has 1 names"):
        of_tokens(a, words, TEXTS[:1])
    swapped = explainer(pixel_values=pixels(1), **ids, target=0, contrast=1)
    assert close(swapped.heatmap(), -a.heatmap())
    alone = explainer(pixel_values=pixels(1), **{n: t[1:] for n, t in ids.items()}, target=0, contrast=None)
    both = explainer(pixel_values=pixels(1), **ids, target=1, contrast=None)
    assert close(both.heatmap(), alone.heatmap())  # another caption beside it changes nothing


def test_a_question_about_a_picture(words) -> None:
    """Each sample a picture and a question: rows are those of each alone, padding carries nothing."""
    config = T.BlipConfig(text_config={"vocab_size": len(words), **SMALL}, vision_config=VISION)
    model = build(T.BlipForImageTextRetrieval, config).double()
    explainer = fxlrp.convert(model, output="itm_score")
    texts = words(TEXTS, padding=True, return_tensors="pt")
    call = {"pixel_values": pixels(2), "input_ids": texts["input_ids"], "attention_mask": texts["attention_mask"]}
    a = explainer(**call, target=[0, 1])
    assert not a.named["input_ids"][texts["attention_mask"][:, None].expand(-1, 2, -1) == 0].any()
    found = of_tokens(a, words, LABELS)
    assert [[q.target for q in f.asked] for f in found] == [["no", "yes"]] * 2
    assert len(found[0].tokens) < len(found[1].tokens)
    for i in range(2):
        alone = explainer(**{n: t[i : i + 1] for n, t in call.items()}, target=[0, 1])
        for name, r in a.named.items():
            assert close(r[i], alone.named[name][0])


def speech(kind: str):
    small = {**SMALL, "num_labels": 4}
    if kind == "spectrogram transformer":
        config = T.ASTConfig(max_length=48, num_mel_bins=32, **small)
        return build(T.ASTForAudioClassification, config), (48, 32), "input_values"
    if kind == "whisper":
        sides = {
            f"{side}_{what}": n
            for side in ("encoder", "decoder")
            for what, n in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
        }
        config = T.WhisperConfig(
            vocab_size=50, d_model=32, num_mel_bins=20, max_source_positions=40, num_labels=4, **sides
        )
        return build(T.WhisperForAudioClassification, config, decoder_start_token_id=1), (20, 80), "input_features"
    convolutions = {"conv_dim": (16, 16), "conv_kernel": (10, 4), "conv_stride": (5, 4), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4}
    config = T.Wav2Vec2Config(classifier_proj_size=16, **convolutions, **positions, **small)
    return build(T.Wav2Vec2ForSequenceClassification, config), (800,), "input_values"


@pytest.mark.parametrize("kind", ["waveform", "spectrogram transformer", "whisper"])
def test_sound(kind: str) -> None:
    """Relevance of each entry of a waveform or spectrogram: rows apart; by gradients, what autograd says."""
    model, shape, name = speech(kind)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)).double()
    model = model.double()
    explainer = fxlrp.convert(model, rules="abslrp-hybrid", strict=True)
    a = explainer(**{name: x})
    assert a.named[name].shape == x.shape
    assert a.named[name].isfinite().all()
    assert a.named[name].any()
    assert close(explainer(**{name: x[1:]}).named[name][0], a.named[name][1])
    leaf = x.clone().requires_grad_()
    model(**{name: leaf}).logits[:, 2].sum().backward()
    plain = fxlrp.convert(model, rules="gradient-input")(**{name: x}, target=2, contrast=None)
    assert close(plain.named[name], x * leaf.grad)


def test_no_text_to_read(words) -> None:
    a = fxlrp.convert(torch.nn.Linear(4, 3).eval())(torch.randn(1, 4))
    assert a.named.keys() == {"0"}
    with pytest.raises(fxlrp.FxlrpError, match=r"No explained input is token ids \[B, T\]; relevance is of 0"):
        of_tokens(a, words)
