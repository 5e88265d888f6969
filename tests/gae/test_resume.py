"""A run goes on with its own results alone: anything else, damage and full disks are the same bytes or a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gae_cases import input_x_gradient, pictures, tiny
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import fxlrp
from fxlrp import FxlrpError
from fxlrp.cli import app
from fxlrp.gae import evaluate

pytest.importorskip("pyarrow")
METHODS: dict[str, Any] = {"mine": input_x_gradient, "random": "random"}


def run(out: Path, **changes: Any) -> Any:
    options = {
        "model": tiny(),
        "methods": METHODS,
        "dataset": pictures(8),
        "batch_size": 4,
        "steps": 3,
        "quantus": False,
    }
    return evaluate(**{**options, **changes}, out=out)


def results(out: Path) -> bytes:
    return b"".join((out / name).read_bytes() for name in ("results.parquet", "report.json", "report.html"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy of a finished run whose report is gone, as if it had been killed at the end."""
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "results.parquet").unlink()
    return tmp_path / "out"


def smooth() -> nn.Module:
    model = tiny()
    model.act1 = nn.GELU()
    return model


def double(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    return 2 * input_x_gradient(model, x, target)


def changed(where: int, **parts: Any) -> list[Any]:
    """The pictures with one part of one of them changed."""
    data: list[Any] = [dict(zip(("x", "label", "mask"), p, strict=True)) for p in pictures(8)]
    data[where] |= parts
    return data


def heavier() -> nn.Module:
    model = tiny()
    with torch.no_grad():
        model.head.bias[0] += 1e-9
    return model


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"model": heavier()}, "another model"),
    "an activation": ({"model": smooth()}, "another model"),
    "the type of numbers": ({"model": tiny().float()}, "dtype torch.float64 there, torch.float32 here"),
    "steps": ({"steps": 4}, "steps 3 there, 4 here"),
    "mosaics": ({"mosaics": 2}, "mosaics 1 there, 2 here"),
    "a limit": ({"limit": 7}, "samples 8 there, 7 here"),
    "a batch": ({"batch_size": 8}, "batch_size 4 there, 8 here"),
    "the definition": ({"definition": "2024-12"}, "definition fixed there, 2024-12 here"),
    "a function of the same name": ({"methods": {**METHODS, "mine": double}}, "another method called 'mine'"),
    "a rulebook of the same name": ({"methods": {**METHODS, "mine": "abslrp"}}, "another method called 'mine'"),
    "a picture": ({"dataset": changed(5, x=pictures(9)[8][0])}, "other pictures, labels or masks"),
    "a pixel": ({"dataset": changed(0, x=pictures(1)[0][0] + 1e-12)}, "other pictures, labels or masks"),
    "a label": ({"dataset": changed(3, label=4)}, "other pictures, labels or masks"),
    "a mask": ({"dataset": changed(7, mask=torch.ones(16, 16))}, "other pictures, labels or masks"),
    "all masks": ({"masks": [None] * 8}, "other pictures, labels or masks"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_another_run_is_refused(what: str, out: Path) -> None:
    change, said = CHANGES[what]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(FxlrpError, match=said):
        run(out, **change)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.parametrize("package", ["torch.__version__", "fxlrp.gae.plan.sources", "fxlrp.gae.plan.version_of"])
def test_other_versions_are_refused(package: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "2.99" if package.endswith("__") else lambda *_: "2.99")
    with pytest.raises(FxlrpError, match="holds another evaluation"):
        run(out)


def test_a_rule_registered_since_is_another_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, methods="abslrp")
    key, rule = (torch.ops.aten.relu.default, None), fxlrp.rules.registry.Rule(lambda g, z, x: 2 * g)
    monkeypatch.setitem(fxlrp.rules.registry._USER, key, rule)
    with pytest.raises(FxlrpError, match="another method called 'abslrp'"):
        run(tmp_path, methods="abslrp")


def test_its_own_results_are_not_computed_again(out: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(evaluate.__globals__, "_rows", lambda *_: pytest.fail("computed again"))
    run(out)
    assert results(out) == results(whole)
    assert run(out, methods={"mine": input_x_gradient}).methods == ["mine"]


def lines(out: Path) -> list[bytes]:
    return (out / "pieces.jsonl").read_bytes().splitlines(keepends=True)


def a_digit(line: bytes) -> bytes:
    at = line.index(b'"gae":') + 8
    return line[:at] + (b"1" if line[at : at + 1] != b"1" else b"2") + line[at + 1 :]


DAMAGE: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "a digit": lambda said: [said[0], a_digit(said[1]), *said[2:]],
    "a chunk's number": lambda said: [said[0].replace(b'"chunk":0', b'"chunk":3'), *said[1:]],
    "a method's name": lambda said: [said[0].replace(b'"mine"', b'"random"'), *said[1:]],
    "cut off in its middle": lambda said: [said[0][: len(said[0]) // 2] + b"\n", *said[1:]],
    "two lines in one": lambda said: [said[0][:-1], *said[1:]],
    "an empty line": lambda said: [said[0], b"\n", *said[1:]],
    "no JSON": lambda said: [*said, b"hello\n"],
    "bytes": lambda said: [said[0], b"\xff\x00\x80\n", *said[1:]],
    "no checksum": lambda said: [said[0].rpartition(b',"sum"')[0] + b"}\n", *said[1:]],
    "nulls": lambda said: [*said[:-1], b"\0" * len(said[-1][:-1]) + b"\n"],
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damaged_lines_are_refused_and_can_be_deleted(what: str, out: Path, whole: Path) -> None:
    good = lines(out)
    bad = DAMAGE[what](good)
    assert bad != good
    (out / "pieces.jsonl").write_bytes(b"".join(bad))
    with pytest.raises(FxlrpError, match=r"A line of .*pieces.jsonl was changed since it was written"):
        run(out)
    (out / "pieces.jsonl").write_bytes(b"".join(line for line in bad if line in good))  # as the sentence says
    run(out)
    assert results(out) == results(whole)


def test_lines_of_another_run_are_refused(out: Path, tmp_path: Path) -> None:
    run(tmp_path / "other", steps=4)
    (out / "pieces.jsonl").write_bytes(b"".join([*lines(out), *lines(tmp_path / "other")]))
    with pytest.raises(FxlrpError, match=r"pieces.jsonl was changed .* or is of another run"):
        run(out)


@pytest.mark.parametrize("what", ["twice", "turned round", "cut short", "none"])
def test_what_is_whole_goes_on_to_the_same_bytes(what: str, out: Path, whole: Path) -> None:
    said = lines(out)
    said = {"twice": said + said, "turned round": said[::-1], "none": []}.get(what, said)
    (out / "pieces.jsonl").write_bytes(b"".join(said)[: -40 if what == "cut short" else None])
    run(out)
    assert results(out) == results(whole)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_damaged_manifest(content: bytes, out: Path) -> None:
    (out / "manifest.json").write_bytes(content)
    with pytest.raises(FxlrpError, match=r"manifest.json is damaged, .*; delete the folder, or give another"):
        run(out)


def test_a_manifest_that_was_edited_or_lost(out: Path, whole: Path) -> None:
    said = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**said, "steps": 4, "more": 1}))
    with pytest.raises(FxlrpError, match=r"steps 4 there, 3 here, more 1 there, None here"):
        run(out)
    with pytest.raises(FxlrpError, match="holds another evaluation"):
        run(out, steps=4)
    (out / "manifest.json").unlink()
    run(out)
    assert results(out) == results(whole)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files that can't grow over a size: what is written is cut off there, and the next write raises."""
    resource = pytest.importorskip("resource", reason="Windows has no limit for the size of files")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_sentence_and_the_run_goes_on(tmp_path: Path, whole: Path) -> None:
    part, page = len((whole / "pieces.jsonl").read_bytes()), len((whole / "report.html").read_bytes())
    assert part < page
    for size in (0, 100, part // 3, part // 2, part - 10, part, page - 1):  # nothing is longer than it
        with room_for(size), pytest.raises(FxlrpError, match="Results cannot be kept in"):
            run(tmp_path / "out")
        left = {path.name for path in (tmp_path / "out").iterdir()}
        assert left <= {"manifest.json", "pieces.jsonl", "results.parquet", "report.json"}
        kept = lines(tmp_path / "out") if "pieces.jsonl" in left else []
        assert kept == lines(whole)[: len(kept)]  # whole lines, and no part of one
        assert all((tmp_path / "out" / n).read_bytes() == (whole / n).read_bytes() for n in left - {"pieces.jsonl"})
    assert len(kept) == 8
    run(tmp_path / "out")
    assert results(tmp_path / "out") == results(whole)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FxlrpError, match=r"file is a file; results are kept in a folder"):
        run(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(FxlrpError, match=r"Results cannot be kept in .*Not a directory"):
        run(tmp_path / "file" / "out")
    (tmp_path / "out" / "pieces.jsonl").mkdir(parents=True)
    with pytest.raises(FxlrpError, match=r"Results cannot be kept in .*Is a directory"):
        run(tmp_path / "out")
    (tmp_path / "report" / "report.json").mkdir(parents=True)
    with pytest.raises(FxlrpError, match=r"Results cannot be kept in .*Is a directory"):
        run(tmp_path / "report")

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FxlrpError, match=r"Results cannot be kept in .*Read-only file system.* make it writable"):
        run(tmp_path / "new")


def test_a_method_out_of_memory_leaves_what_is_finished(tmp_path: Path, whole: Path) -> None:
    def large(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no more")

    with pytest.raises(FxlrpError, match="There is no memory left for large"):
        run(tmp_path, methods={**METHODS, "large": large})
    assert [json.loads(line)["method"] for line in lines(tmp_path)] == ["mine", "random"]
    run(tmp_path)
    assert results(tmp_path) == results(whole)


def test_the_command_refuses_other_arguments_and_files(tmp_path: Path) -> None:
    examples = Path(fxlrp.__file__).parent / "examples"
    for name in ("pictures", "masks"):
        shutil.copytree(examples / name, tmp_path / name)
    shutil.copy(examples / "model.pt", tmp_path / "model.pt")

    def command(*more: Any, code: int = 2) -> str:
        args = [tmp_path / "model.pt", tmp_path / "pictures", "--masks", tmp_path / "masks", "--methods", "random"]
        args += ["--steps", "2", "--device", "cpu", "-o", tmp_path / "out", *more]
        result = CliRunner().invoke(app, ["evaluate", *map(str, args)], env={"COLUMNS": "200"})
        assert result.exit_code == code, result.output + repr(result.exception)
        return result.output

    command(code=0)
    kept = (tmp_path / "out" / "pieces.jsonl").read_bytes()
    assert "another evaluation (preprocess.size [64, 64] there, [48, 48] here)" in command("--size", "48")
    assert "preprocess.mean" in command("--mean", "0,0,0")
    assert "preprocess.std" in command("--std", "1,1,0.5")
    assert "samples" in command("--limit", "4")
    picture, mask = (sorted((tmp_path / name).glob("*.png"))[0] for name in ("pictures", "masks"))
    for file in (picture, mask):
        before = file.read_bytes()
        Image.fromarray(255 - np.asarray(Image.open(file))).save(file)
        assert "other pictures, labels or masks" in command()
        file.write_bytes(before)
    picture.rename(picture.with_name("another.png"))
    mask.rename(mask.with_name("another.png"))
    assert "another files" in command()
    (tmp_path / "a").write_text("")
    assert "a is a file; results are kept in a folder" in command("-o", tmp_path / "a")
    assert (tmp_path / "out" / "pieces.jsonl").read_bytes() == kept
