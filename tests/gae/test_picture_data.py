"""Pictures to evaluate on: data sets of every kind, functions that make one, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from fxlrp.cli import app
from fxlrp.gae.data import Folder, open_data
from fxlrp.inputs.pictures import Preprocess

pytest.importorskip("pyarrow")
EXAMPLES = Path(__file__).parents[2] / "examples"


def command(*args: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, ["evaluate", *map(str, args)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


@pytest.mark.parametrize("kind", ["saved by datasets", "parquet", "csv"])
def test_data_sets_of_pictures(kind: str, tmp_path: Path) -> None:
    """Their samples are those of a folder, and their labels are known."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = sorted((EXAMPLES / "pictures").glob("*.png"))[:5]
    rows = [{"image": {"bytes": f.read_bytes(), "path": f.name}, "label": i} for i, f in enumerate(files)]
    table, data = pa.Table.from_pylist(rows), tmp_path / f"data.{kind}"
    if kind == "parquet":
        pq.write_table(table, data)
    elif kind == "csv":
        data.write_text("image,label\n" + "".join(f"{f},{i}\n" for i, f in enumerate(files)))
    else:
        data.mkdir()
        with pa.ipc.new_stream(str(data / "data.arrow"), table.schema) as stream:
            stream.write_table(table)
        (data / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    preprocess = Preprocess((64, 64), (0.5,) * 3, (0.5,) * 3)
    (tmp_path / "pictures").mkdir()
    for f in files:
        shutil.copy(f, tmp_path / "pictures")
    stored, folder = open_data(str(data), preprocess), Folder(tmp_path / "pictures", preprocess)
    for i in range(5):
        torch.testing.assert_close(stored[i][0], folder[i][0], rtol=0, atol=0)
        assert stored[i][1] == i
    how = ("--methods", "random", "--steps", 2, "--device", "cpu")
    command(EXAMPLES / "model.pt", data, *how, "-o", tmp_path / "out")
    labels = [row["label"] for line in (tmp_path / "out/pieces.jsonl").open() for row in json.loads(line)["rows"]]
    assert sorted(labels) == [0, 1, 2, 3, 4]
    assert "has its own" in command(EXAMPLES / "model.pt", data, "--masks", tmp_path, code=2)
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "dataset_dict.json").write_text('{"splits": ["test"]}')
    assert "has splits test" in command(EXAMPLES / "model.pt", tmp_path / "many", "--methods", "random", code=2)


def test_the_command_takes_a_factory_and_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import torch\ndef data():\n    return torch.randn(5, 3, 64, 64)\n")
    said = command(EXAMPLES / "model.pt", f"{tmp_path}/mine.py:data", "--methods", "random", "--steps", 2, "--limit", 4)
    assert "random" in said
    assert "no function other" in command(EXAMPLES / "model.pt", f"{tmp_path}/mine.py:other", code=2)
    assert "There is no nowhere" in command(EXAMPLES / "model.pt", "nowhere", code=2)
    masks = ("--masks", tmp_path)
    assert "There is no mask for" in command(EXAMPLES / "model.pt", EXAMPLES / "pictures", *masks, code=2)
    assert "has its own" in command(EXAMPLES / "model.pt", f"{tmp_path}/mine.py:data", *masks, code=2)
