"""DATA of every kind is the same samples: keys, labels, values, whatever order they are asked in."""

from __future__ import annotations

import csv
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import Tensors, picture, pictures
from PIL import Image

from fxlrp import FxlrpError
from fxlrp.data import Columns, open_source
from fxlrp.data.sources import Source, changed_since, listing, take

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

TEXTS = ["a good film", 'he said "no",\nand left', "naïve – ü\u2028 and so on", "short", "the end"]


def values(source: Source) -> list:
    """All samples, read from the back, through pickle."""
    source = pickle.loads(pickle.dumps(source))
    read = [take(source, i) for i in reversed(range(len(source)))][::-1]
    assert [s.index for s in read] == list(range(len(source)))
    assert not [s.error for s in read if s.error]
    return [(s.key, s.label, s.value) for s in read]


def are_pictures(found: list, count: int) -> bool:
    return len(found) == count and all(np.array_equal(np.asarray(v[2]), picture(i)) for i, v in enumerate(found))


def png(i: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture(i)).save(out, "png")
    return out.getvalue()


def test_a_folder_and_a_glob(tmp_path: Path) -> None:
    pictures(tmp_path / "up", 2)
    (tmp_path / "notes.txt").write_text("no picture")
    found = values(open_source(str(tmp_path)))
    assert [f[:2] for f in found] == [("up/000.png", "up"), ("up/001.png", "up")]
    assert are_pictures(found, 2)
    globbed = values(open_source(str(tmp_path / "*" / "*.png")))
    assert [f[:2] for f in globbed] == [("000.png", None), ("001.png", None)]


def test_files_of_texts_and_tensors(tmp_path: Path) -> None:
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text, "utf-8")
        np.save(tmp_path / f"{i}.npy", np.full((2, 3), i, dtype=np.float64))
    assert [v[2] for v in values(open_source(tmp_path, texts=True))] == TEXTS
    tensors = values(open_source(tmp_path))
    assert torch.equal(tensors[4][2], torch.full((2, 3), 4.0))
    np.save(tmp_path / "9.npy", np.array([{}], dtype=object))  # a pickle
    assert "allow_pickle" in str(take(open_source(tmp_path), 5).error)


def test_webdataset(tmp_path: Path) -> None:
    for k in range(2):
        with tarfile.open(tmp_path / f"part-{k}.tar", "w") as tar:
            for i in range(3 * k, 3 * k + 3):
                parts = {"png": png(i), "cls": str(i).encode(), "json": b"{}"}
                if i == 4:
                    parts = {"png": png(i), "json": json.dumps({"label": "x"}).encode()}
                for suffix, content in parts.items():
                    about = tarfile.TarInfo(f"dir/{i:03d}.{suffix}")
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
    found = values(open_source(str(tmp_path / "part-*.tar")))
    assert are_pictures(found, 6)
    assert [f[1] for f in found] == [0, 1, 2, 3, "x", 5]
    assert found[3][0] == "part-1/dir/003"
    assert values(open_source(tmp_path / "part-1.tar"))[0][0] == "dir/003"
    (tmp_path / "bad.tar").write_bytes(b"nothing like it" * 100)
    with pytest.raises(FxlrpError, match=r"bad\.tar is no plain \.tar"):
        open_source(tmp_path / "bad.tar")


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_tables_of_texts(kind: str, tmp_path: Path) -> None:
    file = tmp_path / f"t.{kind}"
    rows = [{"id": f"k{i}", "review": t, "label": i % 2} for i, t in enumerate(TEXTS)]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=2)
    elif kind == "csv":
        with file.open("w", newline="", encoding="utf-8-sig") as opened:
            writer = csv.DictWriter(opened, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        file.write_text("\n\n".join(json.dumps(r, ensure_ascii=False) for r in rows), "utf-8")
    found = values(open_source(file, texts=True))
    assert found == [(r["id"], r["label"], r["review"]) for r in rows]
    named = values(open_source(file, Columns(sample="id", key="review"), texts=True))
    assert [n[2] for n in named] == [r["id"] for r in rows]
    with pytest.raises(FxlrpError, match=r"no column body for the sample; it has id, review, label"):
        open_source(file, Columns(sample="body"), texts=True)
    with pytest.raises(FxlrpError, match=r"Which column of .* holds the pictures"):
        open_source(file)


def test_pictures_in_tables(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    pq.write_table(pa.table({"image": [png(i) for i in range(3)]}), tmp_path / "bytes.parquet")
    assert are_pictures(values(open_source(tmp_path / "bytes.parquet")), 3)
    (tmp_path / "paths.csv").write_text("path,label\n000.png,a\n001.png,b\n002.png,c\n")
    found = values(open_source(tmp_path / "paths.csv"))
    assert are_pictures(found, 3)
    assert [f[1] for f in found] == ["a", "b", "c"]


def test_a_data_set_of_hugging_face(tmp_path: Path) -> None:
    """As `datasets.save_to_disk` writes it: arrow streams, state.json and features."""
    for k in range(2):
        rows = [{"image": {"bytes": png(i), "path": None}, "label": i % 2} for i in range(2 * k, 2 * k + 2)]
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_stream(tmp_path / f"data-{k}.arrow", table.schema) as stream:
            stream.write_table(table, max_chunksize=1)
    state = {"_data_files": [{"filename": f"data-{k}.arrow"} for k in range(2)]}
    (tmp_path / "state.json").write_text(json.dumps(state))
    features = {"image": {"_type": "Image"}, "label": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"features": features}))
    found = values(open_source(tmp_path))
    assert are_pictures(found, 4)
    assert [f[1] for f in found] == ["no", "yes", "no", "yes"]


def test_data_sets_of_ones_own(tmp_path: Path) -> None:
    found = values(open_source(Tensors(4)))
    assert [f[:2] for f in found] == [("0", 0), ("1", 1), ("2", 2), ("3", 0)]
    assert torch.equal(found[3][2], Tensors(4)[3][0])
    items = [{"x": picture(i), "key": f"p{i}", "label": "up"} for i in range(2)]
    assert are_pictures(values(open_source(items)), 2)
    assert values(open_source(items))[1][:2] == ("p1", "up")
    (tmp_path / "mine.py").write_text("def texts():\n    return [('a b', 1), ('c', 0)]\n")
    assert values(open_source(f"{tmp_path}/mine.py:texts", texts=True)) == [("0", 1, "a b"), ("1", 0, "c")]
    with pytest.raises(FxlrpError, match="a length and items"):
        open_source(iter(items))


def test_what_cannot_be_read_is_an_error_of_its_own(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    (tmp_path / "001.png").write_bytes(b"no picture")
    read = [take(open_source(tmp_path), i) for i in range(3)]
    assert [s.error is None for s in read] == [True, False, True]
    assert read[1].key == "001.png"
    assert "not a picture that can be read" in str(read[1].error)
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": 3}\nno json\n{"text": null}\n')
    rows = [take(open_source(tmp_path / "rows.jsonl", texts=True), i) for i in range(3)]
    assert rows[0].value == "a"
    assert "JSONDecodeError" in str(rows[1].error)
    assert "Row 2 holds nothing, no text" in str(rows[2].error)


@pytest.mark.parametrize(
    ("name", "said"),
    [("nothing", "There is no .*nothing; DATA is"), ("*.tar", "There is no"), ("nowhere:at_all", "Cannot import")],
)
def test_what_is_not_there(name: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(FxlrpError, match=said):
        open_source(name if ":" in name else str(tmp_path / name))


def test_the_other_kind_and_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FxlrpError, match="holds no sample"):
        open_source(tmp_path)
    with pytest.raises(FxlrpError, match="is empty"):
        open_source([])
    with pytest.raises(FxlrpError, match=r"reads pictures or tensors, and .* holds texts"):
        open_source(["a text"])


def test_a_listing_tells_files_apart(tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    before, when = listing(open_source(tmp_path)), (tmp_path / "002.png").stat().st_mtime
    assert changed_since(open_source(tmp_path), when + 1) is None
    assert listing(open_source(tmp_path)) == before
    (tmp_path / "001.png").write_bytes((tmp_path / "001.png").read_bytes() + b"\0")
    assert listing(open_source(tmp_path)) != before
