"""inseq attributes by our rulebooks: its library, its command line, and the model as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from fxlrp import Explainer, FxlrpError
from fxlrp.cli import app
from fxlrp.text import generate

from .models import byte_level, decoder_only, encoder_decoder

inseq = pytest.importorskip("inseq", reason="inseq is not installed (extra `inseq`)")
PROMPT, GOES_ON = "The capital of France is", " Paris, and"


@pytest.fixture(scope="module")
def gpt2() -> tuple[Any, Any]:
    tokenizer = byte_level()
    model = decoder_only("gpt2", tokenizer).double()
    model.config.bos_token_id = model.config.eos_token_id = 1
    return model, tokenizer


@pytest.fixture(scope="module")
def explainer(loaded: Any) -> Explainer:
    found = loaded.attribution_method.method.explainer  # which has captured the model
    assert found.rulebook.name == "attnlrp"
    return found


def rows(scores: Tensor) -> Tensor:
    """Relevance [R, N] of inseq's [N, R], 0 where nothing is."""
    return scores.nan_to_num().T.double()


@pytest.fixture(scope="module")
def loaded(gpt2: tuple[Any, Any]) -> Any:
    import fxlrp.adapters.inseq  # noqa: F401, which registers the methods

    return inseq.load_model(gpt2[0], "fxlrp", tokenizer=gpt2[1], rules="attnlrp")


def attributed(loaded: Any, *texts: str, **how: Any) -> list[Tensor]:
    out = loaded.attribute(list(texts), [t + GOES_ON for t in texts], show_progress=False, **how)
    return [rows(s.target_attributions) for s in out.sequence_attributions]


@pytest.mark.parametrize("rules", [None, "epsilon"])
def test_scores_are_those_of_generate(
    rules: str | None, loaded: Any, gpt2: tuple[Any, Any], explainer: Explainer
) -> None:
    ours = explainer.by(rules) if rules else explainer
    expected = generate(ours, gpt2[1], PROMPT, continuation=GOES_ON).matrix.double()
    (found,) = attributed(loaded, PROMPT, **({} if rules is None else {"rules": rules}))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert float(found.abs().max()) > 0.01


def test_other_questions_and_methods(loaded: Any, gpt2: tuple[Any, Any], explainer: Explainer) -> None:
    for contrast, as_ours in ((" dog", "dog"), (None, None), ("others", "others")):
        expected = generate(explainer, gpt2[1], PROMPT, continuation=GOES_ON, contrast=as_ours).matrix.double()
        (found,) = attributed(loaded, PROMPT, contrast=contrast)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert {"fxlrp", "attnlrp", "abslrp", "cp-lrp"} <= set(inseq.list_feature_attribution_methods())
    named = attributed(loaded, PROMPT, method="cp-lrp")[0]
    torch.testing.assert_close(named, attributed(loaded, PROMPT, rules="cp-lrp")[0], rtol=0, atol=0)
    with pytest.raises(FxlrpError, match="say by contrast="):
        attributed(loaded, PROMPT, attributed_fn="entropy")


@pytest.mark.whole
def test_texts_of_a_batch_are_explained_as_each_alone() -> None:
    import fxlrp.adapters.inseq  # noqa: F401

    tokenizer = byte_level(eos="</s>")
    model = encoder_decoder("t5", tokenizer).double()
    one = inseq.load_model(model, "attnlrp", tokenizer=tokenizer)
    texts, said = ["The capital of France is", "once upon"], ["Paris", "a dog"]
    how = {"show_progress": False, "attribute_target": True}
    both = one.attribute(texts, said, **how).sequence_attributions
    for text, goes_on, found in zip(texts, said, both, strict=True):
        expected = generate(model, tokenizer, text, continuation=goes_on, rules="attnlrp")
        source = rows(found.source_attributions)
        length = source.shape[1]
        count = len(expected.matrix)
        torch.testing.assert_close(source[:count], expected.matrix[:, :length].double(), rtol=0, atol=1e-6)
        target = rows(found.target_attributions)[:count, :count]
        torch.testing.assert_close(target, expected.matrix[:, length:][:, :count].double(), rtol=0, atol=1e-6)


def test_nothing_is_left_in_the_model(gpt2: tuple[Any, Any], loaded: Any) -> None:
    model = gpt2[0]
    before = [(n, dict(vars(m))) for n, m in model.named_modules()]
    attributed(loaded, PROMPT)
    assert [(n, dict(vars(m))) for n, m in model.named_modules()] == before
    assert all(p.grad is None for p in model.parameters())


def test_its_command_line(
    gpt2: tuple[Any, Any], explainer: Explainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = gpt2
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    args = ["inseq", "attribute", "--model_name_or_path", tmp_path / "model", "--attribution_method", "attnlrp"]
    args += ["--input_texts", PROMPT, "--generated_texts", PROMPT + GOES_ON, "--hide_attributions"]
    args += ["--device", "cpu", "--save_path", tmp_path / "out.json", "--model_kwargs", '{"dtype": "float64"}']
    result = CliRunner().invoke(app, list(map(str, args)))
    assert result.exit_code == 0, result.output + repr(result.exception)
    out = inseq.FeatureAttributionOutput.load(tmp_path / "out.json")
    expected = generate(explainer, tokenizer, PROMPT, continuation=GOES_ON).matrix.double()
    torch.testing.assert_close(rows(out.sequence_attributions[0].target_attributions), expected, rtol=0, atol=1e-6)
    assert json.loads((tmp_path / "out.json").read_text())
    monkeypatch.setitem(__import__("sys").modules, "fxlrp.adapters.inseq", None)
    missing = CliRunner().invoke(app, ["inseq", "--help"])
    assert missing.exit_code == 2
    assert "pip install 'fxlrp[inseq]'" in missing.output
