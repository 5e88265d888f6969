"""`fxlrp map` as it is typed: what it writes and says, with which exit code, and what it refuses before any model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import files, pictures
from typer.testing import CliRunner, Result

import fxlrp
from fxlrp.cli import app
from fxlrp.data import read

pytest.importorskip("pyarrow")
pytest.importorskip("timm")
EXAMPLES = Path(fxlrp.__file__).parent / "examples"
MODEL = str(EXAMPLES / "model.pt")


def run(*args: object) -> Result:
    return CliRunner().invoke(app, ["map", *map(str, args)])


def said(result: Result) -> str:
    return re.sub(r"\s+", " ", result.output)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    data = pictures(tmp_path / "data", 5)
    (data / "002.png").write_bytes(b"broken")
    return data


def test_a_broken_file_is_a_row_and_the_exit_code_is_0(data: Path, tmp_path: Path) -> None:
    result = run(MODEL, data, "-o", tmp_path / "out", "--target", "star", "--contrast", "ring", "--batch", 2)
    assert result.exit_code == 0, result.output
    assert "5 rows, 1 of them without a map" in said(result)
    assert "the first: 002.png: " in said(result)
    maps = read(tmp_path / "out")
    assert [(r["name"], r["contrast"]) for r in maps if not r["error"]] == [("star", "ring")] * 4
    before = files(tmp_path / "out")
    again = run(MODEL, data, "-o", tmp_path / "out", "--target", "star", "--contrast", "ring", "--batch", 2)
    assert (again.exit_code, files(tmp_path / "out")) == (0, before)
    other = run(MODEL, data, "-o", tmp_path / "out", "--target", "disc", "--contrast", "ring", "--batch", 2)
    assert other.exit_code == 2
    assert "was made otherwise: target 4 there, 0 here" in said(other)


def test_rows_are_those_of_explain(data: Path, tmp_path: Path) -> None:
    run(MODEL, data, "-o", tmp_path / "out", "--dtype", "float32", "--keep", "full", "--rules", "epsilon", "--batch", 1)
    done = CliRunner().invoke(
        app, ["explain", MODEL, str(data / "003.png"), "-o", str(tmp_path / "one.npz"), "--rules", "epsilon"]
    )
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "one.npz") as one:
        assert np.array_equal(read(tmp_path / "out")[3]["relevance"], one["relevance.0"][0])


def test_fail_fast_and_quiet(data: Path, tmp_path: Path) -> None:
    stopped = run(MODEL, data, "-o", tmp_path / "out", "--fail-fast")
    assert stopped.exit_code == 2
    assert "Sample 2 (002.png) failed" in said(stopped)
    assert len(read(tmp_path / "out")) == 0
    quiet = run(MODEL, data, "-o", tmp_path / "out", "--quiet")
    assert quiet.exit_code == 0
    assert len(read(tmp_path / "out")) == 5


def test_texts_in_a_table_by_columns(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(json.dumps({"n": i, "said": "a good film", "is": 1}) for i in range(3)))
    columns = ("--column", "said", "--label", "is", "--key", "n")
    result = run(EXAMPLES / "text", file, "-o", tmp_path / "out", *columns)
    assert result.exit_code == 0, result.output
    assert [(r["key"], r["label"], r["name"]) for r in read(tmp_path / "out")][2] == ("2", "positive", "positive")
    pictures_only = run(EXAMPLES / "text", file, "-o", tmp_path / "other", *columns, "--size", 32)
    assert pictures_only.exit_code == 2
    assert "--size goes with models that read pictures" in said(pictures_only)


WRONG = {
    "keep": (("--keep", "all"), "--keep is heat, full, top, top:N or latent:NAME, not all"),
    "latent": (("--keep", "latent"), "--keep is heat"),
    "dtype": (("--dtype", "int8"), "--dtype is float16 or float32, not int8"),
    "rules": (("--rules", "nothing"), "nothing"),
    "data": ((), "There is no .*nowhere; DATA is a folder, a glob"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_before_a_model_is_loaded(
    what: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxlrp.cli.loading.load_model", lambda *a, **k: pytest.fail("it was loaded"))
    options, sentence = WRONG[what]
    result = run(MODEL, tmp_path / "nowhere" if what == "data" else data, "-o", tmp_path / "out", *options)
    assert result.exit_code == 2, result.output
    assert re.search(sentence, said(result))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("package", "module"), [("ray", "fxlrp.ray_pool"), ("zarr", "fxlrp.data.run")])
def test_a_package_that_is_missing_is_named(
    package: str, module: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{module}.find_spec", lambda name: None if name == package else name)
    result = run(MODEL, data, "-o", tmp_path / "out.zarr", "--workers", 2 if package == "ray" else 0)
    assert result.exit_code == 2
    assert f"{package} must be installed for this: pip install 'fxlrp[data]'" in said(result)


def test_a_class_or_module_that_is_not_there(data: Path, tmp_path: Path) -> None:
    result = run(MODEL, data, "-o", tmp_path / "out", "--target", "moon")
    assert result.exit_code == 2
    assert "There is no class moon" in said(result)
    latent = run(MODEL, data, "-o", tmp_path / "out", "--keep", "latent:nowhere")
    assert latent.exit_code == 2
    assert "nowhere" in said(latent)
    assert not (tmp_path / "out").exists()
    assert torch.is_grad_enabled()


def test_python_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "datasets.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(compile(code, "docs/datasets.md", "exec"), {})
    assert (tmp_path / "out" / "maps" / "_settings.json").exists()
