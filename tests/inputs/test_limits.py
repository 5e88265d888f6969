"""JSON: what is no JSON, too large, too deep or of two minds is a sentence."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fxlrp import FxlrpError
from fxlrp.inputs.limits import parse_json, read_json


def test_reads_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes('\ufeff{"a": ["é", 1.5, null, {"a": Infinity}]}'.encode())
    assert read_json(tmp_path / "a.json") == {"a": ["é", 1.5, None, {"a": float("inf")}]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b'{"a": 1', "not JSON"),
        (b'"\xff\xfe"', "not JSON in UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not JSON in UTF-8"),
        (b'{"a": 1, "b": 2, "a": 3}', "'a' stands there twice"),
        (b'["\\ud800"]', "not JSON in UTF-8"),
        (b"9" * 5000, "not JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b" " * 2**20 + b"1", "larger than 1,048,576 bytes"),
    ],
)
def test_what_is_no_json(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FxlrpError, match=rf"a\.json.*{said}"):
        read_json(tmp_path / "a.json", limit=2**20)
    with pytest.raises(FxlrpError, match=f"a record.*{said}"):
        parse_json(content, "a record", limit=2**20)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in (("pipe", "There is no file"), ("none", "There is no file"), ("", "is a folder")):
        with pytest.raises(FxlrpError, match=said):
            read_json(tmp_path / name)
