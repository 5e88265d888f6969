"""Files changed at random: nothing of them is run, what is wrong with them is one sentence.  `make fuzz` goes on."""

import random
import shutil
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.inputs.fuzzing import KINDS, attempt, one, originals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are tried in forked processes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("kind", KINDS)
def test_real_files_are_fine(kind: str, folder: Path) -> None:
    assert attempt(kind, originals(folder / "originals")[kind], folder / "marker") == "fine"


@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_run_nothing_and_say_one_sentence(kind: str, folder: Path) -> None:
    heavy = kind.startswith(("pt2", "folder"))

    @settings(
        max_examples=6 if heavy else 15,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**32))
    def tried(seed: int) -> None:
        said, place = one(kind, random.Random(seed), folder)
        shutil.rmtree(place)
        assert said in ("fine", "refused"), f"python -m tests.inputs.fuzzing, {kind}, seed {seed}: {said}"

    tried()


def test_the_harness_notices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that runs, an error of Python's own, a process that is ended, and much memory."""
    marker, path = folder / "noticed", folder / "x"
    for use, expected in (
        (lambda path: marker.touch(), "RAN CODE"),
        (lambda path: __import__("os").system("true"), "os.system"),
        (lambda path: [][1], "IndexError"),
        (lambda path: __import__("os").kill(__import__("os").getpid(), 6), "SIGABRT"),
        (lambda path: torch.ones(2**29), "MiB"),
    ):
        monkeypatch.setitem(KINDS, "labels", type(KINDS["labels"])(KINDS["labels"].make, use))
        assert expected in attempt("labels", path, marker)
        marker.unlink(missing_ok=True)
