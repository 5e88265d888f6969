"""Files changed at random: nothing of them is run, what is wrong with them is one sentence.  `make fuzz` goes on."""

import os
import random
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.inputs.fuzzing import KINDS, SECONDS, attempt, one, originals, use

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="files are tried in forked processes")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("kind", KINDS)
def test_real_files_are_fine(kind: str, folder: Path) -> None:
    path = originals(folder / "originals")[kind]
    assert attempt(use, kind, path, marker=folder / "marker").endswith("fine")  # however long it took


@pytest.mark.every(2)
@pytest.mark.parametrize("kind", KINDS)
def test_changed_files_run_nothing_and_say_one_sentence(kind: str, folder: Path) -> None:
    heavy = kind.startswith(("pt2", "folder"))

    @settings(
        max_examples=4 if heavy else 8,
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


def _marks(marker: Path) -> None:
    marker.touch()


def _fails(marker: Path) -> None:
    [][1]


def _aborts(marker: Path) -> None:
    os.abort()


def _calls(marker: Path) -> None:
    os.system("true")


def _fills(marker: Path) -> None:
    torch.ones(2**29)


def _works(marker: Path) -> None:
    end = time.process_time() + SECONDS + 0.5
    while time.process_time() < end:
        pass


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (_marks, "RAN CODE"),
        (_fails, "IndexError"),
        (_aborts, "SIGABRT"),
        (_calls, "os.system"),
        (_fills, "MiB"),
        (_works, "took 5"),
    ],
)
def test_the_harness_notices(task: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    """Code that runs, an error of Python's own, a process that is ended, a shell, much memory, much time."""
    assert said in attempt(task, tmp_path / "marker", marker=tmp_path / "marker")
