"""Ray: shards are given to a pool of actors, each with a model and explainer of its own, which write what they explain.

Ray Data streams the numbers of shards to whoever is free; an actor that dies is started again, and its shard is done
anew.  Rows never go through Ray.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from fxlrp.data.prepare import Job
from fxlrp.data.run import is_done, one_shard
from fxlrp.errors import FxlrpError

MOST_BLOCKS = 10_000
"""Shards are handed out one by one up to so many, several at a time beyond."""


class Actor:
    """Explains shards in a process of its own."""

    def __init__(self, job: Job) -> None:
        self.job = job
        torch.set_num_threads(self.job.settings.threads)
        self.failed = ""
        try:
            self.worker = self.job.worker()
        except Exception as error:  # one that leaves an actor's start would be tried for ever
            self.failed = _said(error)

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Explain the shard of a batch; what stops the run is told, not raised."""
        shard = int(batch["id"][0])
        samples = len(self.job.settings.range_of(shard))
        if self.failed or is_done(self.job, shard):
            return {"samples": [samples], "errors": [0], "failed": [self.failed]}
        try:
            return {"samples": [samples], "errors": [one_shard(self.job, self.worker, shard)], "failed": [""]}
        except Exception as error:
            return {"samples": [samples], "errors": [0], "failed": [_said(error)]}


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, FxlrpError) else f"{type(error).__name__}: {error}"


def run_by_ray(
    job: Job, shards: Sequence[int], workers: int, address: str | None, tell: Callable[[int, int], None]
) -> None:
    """Explain shards by so many actors, of a Ray that is started here or is at an address.

    tell: called with samples and errors after each shard.

    Raises FxlrpError for whatever stops an actor, and an address where no Ray is.
    """
    with _ray(workers * job.settings.threads, address, job.settings.device) as ray:
        gpus = 1 if job.settings.device == "cuda" else 0
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(shards)), max_tasks_in_flight_per_actor=1)
        numbers = [{"id": shard} for shard in shards]
        rows = ray.data.from_items(numbers, override_num_blocks=min(len(numbers), MOST_BLOCKS)).map_batches(
            Actor,
            fn_constructor_args=(job,),
            batch_size=1,
            compute=pool,
            num_cpus=job.settings.threads,
            num_gpus=gpus,
        )
        try:
            for row in rows.iter_rows():
                if row["failed"]:
                    raise FxlrpError(row["failed"])
                tell(int(row["samples"]), int(row["errors"]))
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if "Error: " in line]
            raise FxlrpError(f"Ray stopped ({(lines or [str(error)])[-1]}); what is written is whole.") from error


def _check_address(address: str | None) -> None:
    """Raise FxlrpError if nobody answers at an address, which Ray would wait minutes for."""
    host, colon, port = (address or "").rpartition("/")[2].rpartition(":")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()
        except (OSError, ValueError) as error:
            raise FxlrpError(
                f"Nobody answers at {address} ({error}); give the address that `ray start` said."
            ) from error


@contextmanager
def _ray(cpus: int, address: str | None, device: str) -> Iterator[Any]:
    """Yield Ray, connected to an address or started here, and quiet; one that was there before is left as it is."""
    _check_address(address)
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing is told to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ours = not ray.is_initialized()
    if ours:
        here: dict[str, Any] = {"num_cpus": cpus, "include_dashboard": False}
        here["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(sys.path)}}  # what is imported here, is there
        try:
            with _hushed():
                ray.init(
                    address=address or "local",
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    **({} if address else here),
                )
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise FxlrpError(
                f"There is no Ray at {address or 'this machine'} ({reason}); start one: ray start."
            ) from error
    try:
        yield ray
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _hushed() -> Iterator[None]:
    """Within it nothing comes to standard error, where Ray's C++ says which level of talking it was told."""
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)
