"""Ray's actors write the same bytes as the one process, also when one of them is killed."""

from __future__ import annotations

import os
import pickle
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers
from data_cases import Tensors, files, load
from torch import Tensor

import fxlrp
from fxlrp import FxlrpError
from fxlrp.data import explain
from fxlrp.data.prepare import Asked, Job, prepare
from fxlrp.data.run import _shards_of
from fxlrp.inputs.models import loaded_from
from fxlrp.ray_pool import Actor

pytest.importorskip("pyarrow")
pytest.importorskip("ray", reason="Ray is not installed (pip install 'fxlrp[data]')")


class Deadly(Tensors):
    """Kills whoever reads its tenth sample, the first time."""

    def __init__(self, count: int, mark: Path) -> None:
        super().__init__(count)
        self.mark = mark

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i == 9 and not self.mark.exists():
            self.mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


@pytest.mark.whole
def test_actors_write_the_same_bytes_whoever_is_killed(tmp_path: Path) -> None:
    alone, mark = tmp_path / "alone", tmp_path / "mark"
    mark.write_text("nobody")
    explain(load, Deadly(14, mark), alone, batch=4, shard=4)
    assert mark.read_text() == "nobody"
    mark.unlink()
    told: list[tuple[int, int, int]] = []
    explain(
        load, Deadly(14, mark), tmp_path / "out", batch=4, shard=4, workers=2, progress=lambda *now: told.append(now)
    )
    assert mark.read_text() not in ("nobody", str(os.getpid()))
    assert files(tmp_path / "out") == files(alone)
    assert told[-1] == (14, 14, 0)
    (tmp_path / "out" / "part-00000002.parquet").unlink()  # and one process goes on with it
    explain(load, Deadly(14, mark), tmp_path / "out", batch=4, shard=4)
    assert files(tmp_path / "out") == files(alone)


def test_a_module_gives_elsewhere_what_it_gives_here(tmp_path: Path) -> None:
    """Of a text model, whose weights are mapped into memory: names of classes, and relevance to the bit."""
    folder = Path(fxlrp.__file__).parent / "examples" / "text"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    for p in model.parameters():
        p.data = torch.frombuffer(bytearray(4 * p.numel() + 12), dtype=p.dtype, offset=12).view(p.shape).copy_(p.data)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    (tmp_path / "a.csv").write_text("text\nthe plot is dull but the music was truly wonderful and the ending not bad\n")
    loading = partial(loaded_with, model, tokenizer)
    job, _ = prepare(
        loading, tmp_path / "a.csv", Asked(rules="gradient-input"), tmp_path / "here", None, fail_fast=True
    )
    elsewhere = replace(
        job, load=partial(loaded_with, pickle.loads(pickle.dumps(model)), tokenizer), out=tmp_path / "there"
    )
    for made in (job, elsewhere):
        made.out.mkdir()
        _shards_of(made)(0)
    here, there = (pq.read_table(made.out / "part-00000000.parquet").to_pylist() for made in (job, elsewhere))
    assert here[0]["name"] in ("negative", "positive")
    assert here == there


def loaded_with(model: Any, tokenizer: Any) -> tuple[Any, Any]:
    return loaded_from(model), tokenizer


class Broken(Tensors):
    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if i == 5:
            raise OSError("no such thing")
        return super().__getitem__(i)


def test_what_stops_an_actor_is_told(tmp_path: Path) -> None:
    asked = Asked(batch=4, shard=4)
    job, _ = prepare(load, Broken(8), asked, tmp_path, None, fail_fast=True)

    def told(job: Job, shard: int) -> dict[str, list[str]]:
        return Actor(partial(_shards_of, job), 1)({"id": [shard]})

    assert told(job, 1)["failed"] == ["Sample 5 (5) failed: OSError: no such thing"]
    other = replace(job, settings=replace(job.settings, weights="others"))
    assert told(other, 0)["failed"] == ["small is another model here than where the run began."]
    whole = replace(job, fail_fast=False)
    assert told(whole, 1) == {"done": ["[4, 1]"], "failed": [""]}
    assert told(whole, 1) == {"done": ["[4, 0]"], "failed": [""]}  # it is there


def test_an_address_where_no_ray_is(tmp_path: Path) -> None:
    with pytest.raises(FxlrpError, match=r"Nobody answers at 127\.0\.0\.1:1 "):
        explain(load, Tensors(8), tmp_path / "out", batch=4, ray="127.0.0.1:1")
