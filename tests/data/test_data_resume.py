"""A run goes on with its own shards alone, whenever it was killed; anything else is a sentence, and no byte is lost."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import files, load, loaded, network, picture, pictures
from PIL import Image

import fxlrp
from fxlrp import FxlrpError
from fxlrp.data import explain, read
from fxlrp.data.settings import NAME

pytest.importorskip("pyarrow")
import pyarrow.parquet as pq

HERE = Path(__file__).parent


def run(out: Path, data: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"batch": 4, "shard": 4, **changes}
    return explain(options.pop("model", load), options.pop("other", data), out, **options)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "pictures", 14)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run(out, data)
    return out


@pytest.fixture
def half(whole: Path, tmp_path: Path) -> Path:
    """A copy of a run of which two of four shards are missing, with the draft of one."""
    shutil.copytree(whole, tmp_path / "out")
    (tmp_path / "out" / "part-00000001.parquet").unlink()
    (tmp_path / "out" / "part-00000003.parquet").rename(tmp_path / "out" / ".part-00000003.parquet.123")
    return tmp_path / "out"


def test_it_goes_on_with_what_is_missing(half: Path, whole: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    shard = fxlrp.data.run.one_shard
    monkeypatch.setattr("fxlrp.data.run.one_shard", lambda j, w, k, t: asked.append(k) or shard(j, w, k, t))
    told: list[tuple[int, int, int]] = []
    assert read(half).complete is False
    assert len(read(half)) == 8
    maps = run(half, data, progress=lambda *now: told.append(now))
    assert asked == [1, 3]
    assert told[0] == (8, 14, 0)
    assert told[-1] == (14, 14, 0)
    assert files(half) == files(whole)
    assert len(maps) == 14
    run(half, data)
    assert asked == [1, 3]


def test_a_batch_that_was_chosen_is_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = explain(load, data, tmp_path / "out", shard=7)
    monkeypatch.setattr("fxlrp.data.prepare._free_memory", lambda: 2**16)
    (tmp_path / "out" / "part-00000001.parquet").unlink()
    assert explain(load, data, tmp_path / "out", shard=7).settings == first.settings
    assert explain(load, data, tmp_path / "other").settings.batch < first.settings.batch


def heavier() -> Any:
    model = loaded()
    with torch.no_grad():
        model.module[0].bias[0] += 1e-6
    return model, None


def smooth() -> Any:
    model = loaded()
    model.module[1] = torch.nn.GELU()
    return model, None


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "a weight": ({"model": heavier}, "the model .its weights or code. changed"),
    "an activation": ({"model": smooth}, "the model .its weights or code. changed"),
    "the rulebook": ({"rules": "epsilon"}, "rules abslrp-hybrid there, epsilon here"),
    "the target": ({"target": "down"}, "target none there, 1 here"),
    "the contrast": ({"contrast": None}, "contrast softmax there, none here"),
    "what is kept": ({"keep": "full"}, "keep heat there, full here"),
    "the type": ({"dtype": "float32"}, "dtype float16 there, float32 here"),
    "the batch": ({"batch": 2}, "batch 4 there, 2 here"),
    "the shard": ({"shard": 8}, "shard 4 there, 8 here"),
    "threads": ({"threads": 2}, "threads 1 there, 2 here"),
    "a limit": ({"limit": 9}, "the number of samples 14 there, 9 here"),
    "thumbnails": ({"thumbnails": False}, "thumbnails True there, False here"),
    "the preparation": ({"model": network(), "preprocess": fxlrp.inputs.Preprocess((12, 12))}, "crop_pct 1.0 there"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_other_settings_are_refused(what: str, half: Path, data: Path) -> None:
    before = files(half)
    change, said = CHANGES[what]
    with pytest.raises(FxlrpError, match=f"was made otherwise: .*{said}.* Give another folder"):
        run(half, data, **change)
    assert files(half) == before


def test_changed_files_are_refused_and_named(half: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "pictures"
    shutil.copytree(data, other, copy_function=shutil.copy2)
    run(half, other)  # the same files elsewhere are the same
    (half / "part-00000002.parquet").unlink()
    Image.fromarray(picture(99)).save(other / "005.png")
    os.utime(other / "005.png", (time.time() + 9, time.time() + 9))
    with pytest.raises(FxlrpError, match=r"the files of the data set changed, as .*/005\.png"):
        run(half, other)


def test_other_versions_are_refused(half: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxlrp.data.prepare.versions", lambda: {"torch": "9"})
    with pytest.raises(FxlrpError, match=r"versions .*torch .* there, 9 here"):
        run(half, data)
    monkeypatch.undo()
    monkeypatch.setattr("fxlrp.data.prepare.sources", lambda: "other")
    with pytest.raises(FxlrpError, match="fxlrp's code changed"):
        run(half, data)


def test_damage_is_named(half: Path, data: Path) -> None:
    (half / "part-00000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(FxlrpError, match=r"part-00000002\.parquet is damaged; delete it"):
        run(half, data)
    shutil.copy(half / "part-00000000.parquet", half / "part-00000003.parquet")
    (half / "part-00000002.parquet").unlink()
    with pytest.raises(FxlrpError, match=r"part-00000003\.parquet has 4 rows, not its own"):
        run(half, data)
    (half / NAME).write_text("{}")
    with pytest.raises(FxlrpError, match="of another version of fxlrp"):
        run(half, data)


def test_two_runs_at_once_are_refused(half: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard, said = fxlrp.data.run.one_shard, []

    def meanwhile(*args: Any) -> int:
        if not said:
            said.append("")
            with pytest.raises(FxlrpError, match="Another process is writing") as error:
                run(half, data)
            said[0] = str(error.value)
        return shard(*args)

    monkeypatch.setattr("fxlrp.data.run.one_shard", meanwhile)
    assert run(half, data).complete
    assert said[0].endswith("wait for it, or give another folder.")


def test_folders_that_cannot_be(data: Path, tmp_path: Path) -> None:
    with pytest.raises(FxlrpError, match="holds other things"):
        run(data.parent, data)
    (tmp_path / "file").write_text("")
    with pytest.raises(FxlrpError, match="is a file"):
        run(tmp_path / "file", data)
    with pytest.raises(FxlrpError, match="no folder that can be written to"):
        run(tmp_path / "file" / "out", data)
    with pytest.raises(FxlrpError, match="the data set itself"):
        run(data, data)


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fxlrp.whole_files.os.fsync", fsync)


def test_a_full_disk_is_a_sentence_and_what_is_there_stays_whole(
    half: Path, whole: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_disk(monkeypatch)
    with pytest.raises(FxlrpError, match=r"No space left on device.*make room .* run again: what is finished is kept"):
        run(half, data)
    assert sorted(p.name for p in half.iterdir()) == [NAME, "part-00000000.parquet", "part-00000002.parquet"]
    assert len(read(half)) == 8
    monkeypatch.undo()
    run(half, data)
    assert files(half) == files(whole)


def test_a_shard_comes_to_be_by_one_rename(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(self: Path, to: Path) -> None:
        assert pq.read_table(self).num_rows == 4  # it is whole, and on the disk, before it has its name
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "replace", stopped)
    with pytest.raises(FxlrpError, match="Input/output error"):
        run(tmp_path / "out", data)
    assert [p.name for p in (tmp_path / "out").iterdir()] == [NAME]


SCRIPT = """
import resource, sys
sys.path.insert(0, {here!r})
from data_cases import load
from fxlrp.data import explain
{before}
explain(load, {data!r}, {out!r}, batch=4, shard=4)
"""


def started(data: Path, out: Path, before: str = "") -> subprocess.Popen:
    """A run in a process of its own."""
    code = SCRIPT.format(here=str(HERE), data=str(data), out=str(out), before=before)
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stderr=subprocess.PIPE, text=True)


def test_a_file_size_limit_is_a_sentence(data: Path, whole: Path, tmp_path: Path) -> None:
    """What the system refuses to write for real: a shard is larger than the process may write."""
    size = (whole / "part-00000000.parquet").stat().st_size
    before = f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size // 2}, {size // 2}))"
    said = started(data, tmp_path / "out", before).communicate()[1]
    assert "FxlrpError: Maps cannot be kept in" in said
    assert "File too large" in said
    assert [p.name for p in (tmp_path / "out").iterdir()] == [NAME]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != size // 2


def test_a_tmpfs_that_fills_is_a_sentence(data: Path, whole: Path, tmp_path: Path) -> None:
    mounted = ["mount", "-t", "tmpfs", "-o", "size=24k", "none", str(tmp_path)]
    if os.geteuid() or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("only root mounts a small file system")
    try:
        with pytest.raises(FxlrpError, match="No space left on device"):
            run(tmp_path / "out", data)
        assert 0 < len(read(tmp_path / "out")) < 14
        assert not list((tmp_path / "out").glob(".*"))
        subprocess.run(["mount", "-o", "remount,size=1m", str(tmp_path)], check=True)
        run(tmp_path / "out", data)
        assert files(tmp_path / "out") == files(whole)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_killed_it_goes_on_and_ends_with_the_same_bytes(shards: int, data: Path, whole: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as so many shards are there; benchmarks/data_sets.py does it at ten random moments."""
    out = tmp_path / "out"
    process = started(data, out)
    while process.poll() is None and (len(list(out.glob("part-*"))) < shards or not (out / NAME).exists()):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(read(out)) >= min(14, 4 * shards)
    kept = {name: content for name, content in files(out).items() if name.startswith("part-")}
    run(out, data)
    assert files(out) == files(whole)
    assert kept.items() <= files(whole).items()
