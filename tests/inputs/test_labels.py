"""Class names: read from files of two kinds, found by name, and refused where a file holds none."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

from fxlrp import FxlrpError
from fxlrp.inputs import find_class, imagenet_labels, load_labels
from fxlrp.inputs.labels import class_names


def test_labels(tmp_path: Path) -> None:
    files = {
        "a.txt": "cat\n\ndog\n",
        "a.json": '["cat", "dog"]',
        "b.json": '{"1": "dog", "0": "cat"}',
        "c.json": '{"0": ["n1", "cat"], "1": ["n2", "dog"]}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert load_labels(tmp_path / name) == ["cat", "dog"]
    (tmp_path / "d.json").write_text("3")
    with pytest.raises(FxlrpError, match="holds no labels"):
        load_labels(tmp_path / "d.json")
    with pytest.raises(FxlrpError, match="There is no file"):
        load_labels(tmp_path / "e.txt")
    with pytest.raises(FxlrpError, match="is a folder; class names are in a file"):
        load_labels(tmp_path)
    (tmp_path / "bom.txt").write_bytes("\ufeffcat\r\ndog".encode())
    assert load_labels(tmp_path / "bom.txt") == ["cat", "dog"]


@pytest.mark.parametrize(
    "found",
    [
        *(3, None, "abc", [], {}, [None], [{}], [[]], [1.5], [["a", {}]], ["a", "\ud800"]),
        *({key: "a"} for key in ("-1", "a", "", "1.0", "1e3", "1000000000", "1000000", "9" * 5000, "１", " 1")),
        *({"1": "a", "01": "b"}, {"0": None}, {"0": {"1": "a"}}),
    ],
)
def test_what_holds_no_labels(found: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(found))
    began = time.perf_counter()
    with pytest.raises(FxlrpError, match=r"a\.json (holds no labels|is not JSON)") as caught:
        load_labels(tmp_path / "a.json")
    with pytest.raises(FxlrpError, match="The record holds no labels"):
        class_names(found, "The record")
    assert time.perf_counter() - began < 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", [b"", b" \n\n", b"\xff\xfe\0a", "caf\u00e9".encode("latin-1"), b"a\n" * 5_000_000])
def test_text_that_holds_no_labels(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(FxlrpError, match=r"a\.txt (holds no labels|is larger than)"):
        load_labels(tmp_path / "a.txt")


def test_an_index_is_refused_before_a_list_is_made_of_it() -> None:
    with pytest.raises(FxlrpError, match="1000000 is over 1,000,000"):
        class_names({"1000000": "a"}, "The record")


def test_gaps_are_numbers() -> None:
    assert class_names({"3": "d", 1: "b"}, "") == ["0", "b", "2", "d"]
    assert class_names((7, "b"), "") == ["7", "b"]


def test_damaged_labels_are_read_or_refused(tmp_path: Path) -> None:
    rng, read, refused = random.Random(0), 0, 0
    content = json.dumps({str(i): ["n0", f"name {i}, été"] for i in range(12)}, ensure_ascii=False).encode()
    for _ in range(300):
        said, at = bytearray(content), rng.randrange(len(content))
        said[at : at + rng.choice((1, 1, 3))] = rng.choice(
            (b"", b"\xff", b'"', b"9", b"[", b"\\ud800", rng.randbytes(2))
        )
        (tmp_path / "a.json").write_bytes(said)
        try:
            names = load_labels(tmp_path / "a.json")
            assert names
            assert all(name.encode() is not None for name in names)
            read += 1
        except FxlrpError:
            refused += 1
    assert min(read, refused) > 30


def test_find_class() -> None:
    labels = imagenet_labels()
    assert labels is not None
    assert len(labels) == 1000
    assert find_class("281", None) == 281
    assert find_class("Tabby", labels) == find_class("tabby, tabby cat", labels) == 281
    with pytest.raises(FxlrpError, match=r"did you mean.*goldfish"):
        find_class("goldfsh", labels)
    with pytest.raises(FxlrpError, match="There is no class qqqq; give a number, or other names with --labels"):
        find_class("qqqq", labels)
    with pytest.raises(FxlrpError, match="There is no class 999"):
        find_class("9" * 5000, labels)
    with pytest.raises(FxlrpError, match="without class names"):
        find_class("cat", None)
