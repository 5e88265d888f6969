"""Rows are what the explainer says of each sample, to the bit; what fails is a row with its error, and nothing more."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import LABELS, Tensors, files, load, loaded, maps_by_hand, network, picture, pictures
from PIL import Image
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError
from fxlrp.data import Columns, explain, read

pytest.importorskip("pyarrow")
import pyarrow.parquet as pq


def same(rows: Any, maps: Tensor, dtype: str = "float32") -> bool:
    numpy = maps.numpy().astype(dtype)
    return len(rows) == len(maps) and all(np.array_equal(r["relevance"], m) for r, m in zip(rows, numpy, strict=True))


def without_map(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "relevance"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return pictures(tmp_path / "pictures", 10)


def test_rows_are_what_the_explainer_says(data: Path, tmp_path: Path) -> None:
    maps = explain(load, data, tmp_path / "out", batch=4, shard=8, dtype="float32")
    assert same(maps, maps_by_hand(10, 4).sum(1))
    model = loaded()
    x = torch.stack([model.preprocess(Image.fromarray(picture(i)))[0] for i in range(10)])
    with torch.no_grad():
        chances = model.module(x).softmax(1)
    for i, row in enumerate(maps):
        assert (row["index"], row["key"], row["label"], row["error"]) == (i, f"{i:03d}.png", None, None)
        assert row["target"] == row["classes"][0] == int(chances[i].argmax())
        assert row["name"] == LABELS[row["target"]]
        assert row["scores"] == pytest.approx(sorted(chances[i].tolist(), reverse=True), rel=1e-5)
        r = row["relevance"].astype(np.float64)
        assert row["positive"] == pytest.approx(r[r > 0].sum() / np.abs(r).sum(), rel=1e-5)
        with Image.open(io.BytesIO(row["picture"])) as seen:
            assert seen.size == (12, 12)
    assert maps[0]["contrast"] == fxlrp.convert(network()).rulebook.default_contrast
    assert maps.complete
    assert maps.errors == 0


def test_the_question_is_put_as_asked(data: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"batch": 4, "dtype": "float32", "keep": "full"}
    maps = explain(load, data, tmp_path / "out", target="left", contrast="up", **how)
    assert same(maps, maps_by_hand(10, 4, target=2, contrast=0))
    assert {(r["target"], r["name"], r["contrast"]) for r in maps} == {(2, "left", "up")}
    without = explain(network(), data, tmp_path / "none", preprocess=loaded().preprocess, contrast=None, **how)
    assert same(without, maps_by_hand(10, 4, contrast=None))
    assert {r["contrast"] for r in without} == {None}


def test_what_is_kept(data: Path, tmp_path: Path) -> None:
    def made(keep: str, name: str = "", **how: Any) -> Any:
        return explain(load, data, tmp_path / (name or keep.replace(":", "-")), keep=keep, batch=4, **how)

    heat = made("heat")
    assert heat.table().schema.field("relevance").type.shape == [12, 12]
    assert same(heat, maps_by_hand(10, 4).sum(1), "float16")
    assert same(made("full"), maps_by_hand(10, 4), "float16")
    explainer, model = fxlrp.convert(network()), loaded()
    x = torch.stack([model.preprocess(Image.fromarray(picture(i)))[0] for i in range(4)])
    latent = made("latent:1", limit=4)
    assert same(latent, explainer(x, at=["1"]).latent["1"], "float16")
    top = made("top:5")
    for row, whole in zip(top, heat, strict=True):
        strongest = np.sort(np.abs(whole["relevance"].astype(np.float32)).ravel())[-5:]
        assert np.allclose(np.sort(np.abs(row["relevance"])), strongest, rtol=1e-3)
        assert np.array_equal(top.map(row).ravel()[row["places"]], row["relevance"])
        assert np.count_nonzero(top.map(row)) <= 5


def test_a_zarr_holds_the_same_maps(data: Path, tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    (data / "003.png").write_bytes(b"broken")
    plain = explain(load, data, tmp_path / "out", batch=4, shard=4)
    maps = explain(load, data, tmp_path / "out.zarr", batch=4, shard=4)
    array = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")["relevance"]
    assert array.shape == (10, 12, 12)
    assert array.chunks == (4, 12, 12)
    assert array.attrs["fxlrp"]["rules"] == fxlrp.DEFAULT
    assert np.isnan(array[3]).all()
    for row, other, dense in zip(maps, plain, array[:], strict=True):
        if row["error"] is None:
            assert np.array_equal(row["relevance"], other["relevance"])
            assert np.array_equal(dense, other["relevance"])
        assert {k: v for k, v in row.items() if k != "relevance"} == {
            k: v for k, v in other.items() if k != "relevance"
        }
    with pytest.raises(FxlrpError, match="keeps whole maps"):
        explain(load, data, tmp_path / "top.zarr", keep="top")


def test_broken_samples_are_error_rows_and_all_others_are_equal(data: Path, tmp_path: Path) -> None:
    whole = explain(load, data, tmp_path / "whole", batch=4, shard=8)
    (data / "001.png").write_bytes(b"no picture")
    (data / "008.png").write_bytes((data / "008.png").read_bytes()[:60])
    (data / "009.png").unlink()
    (data / "009.png").mkdir()  # what is no file is no sample
    for i in (4, 5, 6, 7):
        (data / f"{i:03d}.png").write_bytes(b"")  # a batch of nothing else
    part = explain(load, data, tmp_path / "part", batch=4, shard=8)
    assert (len(part), part.errors) == (9, 6)
    for row, before in zip(part, whole, strict=False):
        if row["index"] in (0, 2, 3):
            assert np.array_equal(row.pop("relevance"), before["relevance"])
            assert row == without_map(before)
        else:
            assert "not a picture that can be read" in row["error"]
            assert (row["relevance"], row["target"], row["classes"]) == (None, None, None)
    with pytest.raises(FxlrpError, match=r"Sample 1 \(001\.png\) failed"):
        explain(load, data, tmp_path / "fast", batch=4, shard=8, fail_fast=True)


def refusing(monkeypatch: pytest.MonkeyPatch, refuse: Callable[[Tensor], Exception | None]) -> list[int]:
    """Make explainers raise for some inputs; returns the sizes of the batches that they were asked."""
    sizes: list[int] = []
    forward = fxlrp.Explainer.forward

    def picky(self: Any, x: Tensor, **question: Any) -> Any:
        sizes.append(len(x))
        if (error := refuse(x)) is not None:
            raise error
        return forward(self, x, **question)

    monkeypatch.setattr(fxlrp.Explainer, "forward", picky)
    return sizes


def test_a_sample_that_the_model_fails_for_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = explain(load, Tensors(10), tmp_path / "whole", batch=4)
    bad = Tensors(10)[5][0]
    refusing(monkeypatch, lambda x: ValueError("of all\nnumbers this") if (x == bad).flatten(1).all(1).any() else None)
    part = explain(load, Tensors(10), tmp_path / "part", batch=4)
    assert [r["index"] for r in part if r["error"]] == [5]
    assert part[5]["error"] == "ValueError: of all numbers this"
    assert all(
        np.array_equal(p["relevance"], w["relevance"]) for p, w in zip(part, whole, strict=True) if not p["error"]
    )


def test_out_of_memory_halves_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = refusing(monkeypatch, lambda x: torch.OutOfMemoryError("none left") if len(x) > 2 else None)
    maps = explain(load, Tensors(7), tmp_path / "out", batch=7, dtype="float32")
    assert max(sizes[2:]) == 7
    assert maps.errors == 0
    x = torch.stack([Tensors(7)[i][0] for i in range(7)])
    monkeypatch.undo()
    assert np.allclose([r["relevance"] for r in maps], fxlrp.convert(network())(x).heatmap(), rtol=1e-4, atol=1e-6)
    refusing(monkeypatch, lambda x: torch.OutOfMemoryError("none left") if len(x) > 1 else None)
    assert explain(load, Tensors(3), tmp_path / "one", batch=3).errors == 0


class Odd(Tensors):
    """One of another size, one that is NaN, one that is far too large, one that is no tensor."""

    def __getitem__(self, i: int) -> tuple[Any, int]:
        x, y = super().__getitem__(i)
        odd = {2: x[:, :6], 3: x * torch.nan, 5: x * 1e9, 6: "text"}
        return odd.get(i, x), y


def test_odd_tensors_are_error_rows(tmp_path: Path) -> None:
    maps = explain(load, Odd(8), tmp_path / "out", batch=4, labels=LABELS)
    said = {r["index"]: r["error"] for r in maps if r["error"]}
    assert said[2] == "It has shape [3, 6, 12], and the first sample [3, 12, 12]."
    assert said[3] == "Its relevance is not finite."
    assert "too large for float16; keep float32" in said[5]
    assert "too many dimensions 'str'" in said[6] or "str" in said[6]
    assert list(said) == [2, 3, 5, 6]
    assert [r["label"] for r in maps] == [LABELS[i % 3] for i in range(8)]
    whole = explain(load, Tensors(8), tmp_path / "whole", batch=4)
    assert all(np.array_equal(maps[i]["relevance"], whole[i]["relevance"]) for i in (0, 1, 4, 7))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 3), nn.Linear(2, 3)

    def forward(self, wave: Tensor, about: Tensor) -> Tensor:
        return self.first(wave.relu()) + self.second(about)


def test_samples_of_several_tensors_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TwoInputs().eval()
    items = [{"x": {"wave": torch.rand(5), "about": torch.rand(2)}, "key": f"s{i}"} for i in range(5)]
    maps = explain(model, items, tmp_path / "out", batch=5, dtype="float32")
    call = {name: torch.stack([item["x"][name] for item in items]) for name in ("wave", "about")}
    assert same(maps, fxlrp.convert(model)(**call).named["wave"])
    assert maps[3]["key"] == "s3"


def test_texts_have_tokens_and_scores(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from fxlrp.text.command import load_tokenizer

    folder = Path(fxlrp.__file__).parent / "examples" / "text"
    texts = ["the plot is dull but the music was truly wonderful.", "", "a dull film", "not funny " * 300, "never good"]
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"t{i}", "body": t}) for i, t in enumerate(texts)))
    columns = Columns("body", key="id")
    maps = explain(folder, file, tmp_path / "out", columns=columns, dtype="float32", target="positive")
    said = {r["key"]: r["error"] for r in maps if r["error"]}
    assert list(said) == ["t1", "t3"]
    assert "empty" in said["t1"]
    assert "tokens, the model takes" in said["t3"]
    from fxlrp.inputs import load_model

    for row in (maps[0], maps[2], maps[4]):
        alone = fxlrp.text.explain(
            load_model(str(folder)).module, load_tokenizer(str(folder)), row["text"], target="positive"
        )
        assert row["tokens"] == alone.tokens
        assert [row["text"][s:e] for s, e in zip(row["start"], row["end"], strict=True)][1] == alone.words[0][0]
        assert np.allclose(row["relevance"], alone.scores, rtol=1e-3, atol=1e-5)
        assert row["name"] == "positive"
    cut = explain(folder, file, tmp_path / "cut", columns=columns, truncate=True)
    assert [r["key"] for r in cut if r["error"]] == ["t1"]
    with pytest.raises(FxlrpError, match="Of texts the relevance of each token is kept"):
        explain(folder, file, tmp_path / "full", columns=columns, keep="full")


@pytest.mark.parametrize("together", [True, False])
def test_a_regression_of_texts_has_a_score(together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    from fxlrp.text.command import load_tokenizer

    folder = Path(fxlrp.__file__).parent / "examples" / "text"
    tokenizer, file = load_tokenizer(str(folder)), tmp_path / "t.csv"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=1, ignore_mismatched_sizes=True
    ).eval()
    texts = ["a dull film", "never good"]
    file.write_text("\n".join(["text", *texts]))
    monkeypatch.setattr("fxlrp.data.prepare.padding_is_ignored", lambda *_: together)
    maps = explain(model, file, tmp_path / "out", tokenizer=tokenizer)
    expected = [model(**tokenizer(text, return_tensors="pt")).logits.item() for text in texts]
    assert [row["scores"] for row in maps] == [pytest.approx([score], rel=1e-4) for score in expected]


def test_schema_and_settings_are_in_every_shard(data: Path, tmp_path: Path) -> None:
    maps = explain(load, data, tmp_path / "out", batch=4, shard=4, rules="epsilon")
    from fxlrp.data.reading import metadata

    for file in sorted((tmp_path / "out").glob("*.parquet")):
        about = metadata(file)
        assert (about["rules"], about["keep"], about["samples"]) == ("epsilon", "heat", 10)
        assert about["weights"] == maps.settings.weights
        assert about["versions"]["torch"]
    assert len(list((tmp_path / "out").iterdir())) == 4
    assert pq.read_table(tmp_path / "out" / "part-00000002.parquet").num_rows == 2


def test_maps_are_read_as_rows_tables_and_tensors(data: Path, tmp_path: Path) -> None:
    (data / "004.png").write_bytes(b"")
    explain(load, data, tmp_path / "out", batch=4, shard=4)
    maps = read(tmp_path / "out")
    assert maps[-1]["key"] == "009.png"
    assert [r["index"] for r in maps[3:6]] == [3, 4, 5]
    with pytest.raises(IndexError):
        maps[10]
    assert maps.table(["key", "error"])["key"].to_pylist() == [f"{i:03d}.png" for i in range(10)]
    relevance, classes = next(iter(torch.utils.data.DataLoader(maps.torch(), batch_size=9)))
    assert relevance.shape == (9, 12, 12)
    assert np.array_equal(relevance[8], maps[9]["relevance"])
    assert classes.tolist() == [r["target"] for r in maps if not r["error"]]
    with pytest.raises(FxlrpError, match="fxlrp map MODEL DATA -o"):
        read(tmp_path / "nothing")


def test_nothing_is_written_into_the_model_or_the_data(data: Path, tmp_path: Path) -> None:
    model, before = network(), files(data)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    threads = torch.get_num_threads()
    explain(model, data, tmp_path / "out", preprocess=loaded().preprocess, threads=2)
    assert files(data) == before
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("head", [nn.Identity(), nn.Sigmoid()])
def test_a_single_score_is_kept_as_it_is(head: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 144, 1), head).eval()
    maps = explain(model, Tensors(4), tmp_path / "out")
    x = torch.stack([Tensors(4)[i][0] for i in range(4)])
    assert [r["scores"][0] for r in maps] == pytest.approx(model(x)[:, 0].tolist(), rel=1e-5)
    assert {(r["name"], r["contrast"]) for r in maps} == {("the score", None)}


@pytest.mark.parametrize("target", [[0, 1], torch.tensor([0, 1]), lambda out: out[:, 0], True])
def test_a_target_is_one_class_for_all(target: Any, tmp_path: Path) -> None:
    with pytest.raises(FxlrpError, match="target is one class for all samples"):
        explain(load, Tensors(2), tmp_path / "out", target=target)
