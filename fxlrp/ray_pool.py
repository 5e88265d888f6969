"""A pool of Ray's actors that share out numbered pieces of work.

Ray Data streams the numbers to whoever is free; an actor that dies is started again, and what it had is done anew.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from fxlrp.errors import FxlrpError, with_kind

MOST_BLOCKS = 10_000
"""Pieces are handed out one by one up to so many, several at a time beyond."""

ALIGNED = 64
"""At multiples of so many bytes torch lets a tensor on the CPU begin."""
Work = Callable[[int], Any]


@contextmanager
def aligned(model: nn.Module) -> Iterator[None]:
    """Lend a model on the CPU weights that begin where torch lets them begin, as those of a copy in another process do.

    From a file that is mapped into memory they begin anywhere, and products of them are rounded otherwise.
    """
    weights = [t for t in (*model.parameters(), *model.buffers()) if t.device.type == "cpu" and not t.is_inference()]
    plain = (t for t in weights if type(t.data) is Tensor and t.layout == torch.strided)
    moved = [(t, t.data) for t in plain if t.data_ptr() % ALIGNED]
    for t, data in moved:
        t.data = data.clone()
    try:
        yield
    finally:
        for t, data in moved:
            t.data = data


class Actor:
    """Does pieces of work in a process of its own, with what `make` makes there once."""

    def __init__(self, make: Callable[[], Work], threads: int) -> None:
        torch.set_num_threads(threads)
        self.failed = ""
        try:
            self.work = make()
        except Exception as error:  # one that leaves an actor's start would be tried for ever
            self.failed = with_kind(error)
        gc.collect()
        gc.freeze()  # half a million objects of models and packages, which stay: each look at them takes 0.3 s

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Do the piece of a batch; what stops the run is told, not raised."""
        if self.failed:
            return {"done": [""], "failed": [self.failed]}
        try:
            return {"done": [json.dumps(self.work(int(batch["id"][0])))], "failed": [""]}
        except Exception as error:
            return {"done": [""], "failed": [with_kind(error)]}


def check_ray(workers: int) -> None:
    """Raise FxlrpError for a number of workers that can't be, and where Ray is not installed."""
    if workers < 0:
        raise FxlrpError(f"--workers is a number from 0, not {workers}.")
    if find_spec("ray") is None:
        raise FxlrpError("ray must be installed for this: pip install 'fxlrp[data]'.")


def done_by_ray(
    make: Callable[[], Work], pieces: Sequence[int], workers: int, address: str | None, threads: int, device: str
) -> Iterator[Any]:
    """Yield what make()(piece) returns for each piece, in the order in which they are done; it has to fit into JSON.

    make: goes to each actor by pickle, and runs there once.
    workers: how many actors, of a Ray that is started here or is at an address.
    threads: of each actor.  device: cuda gives each a GPU.

    Raises FxlrpError for whatever stops an actor, and an address where no Ray is.
    """
    with _ray(workers * threads, address, device) as ray:
        pool = ray.data.ActorPoolStrategy(size=min(workers, len(pieces)), max_tasks_in_flight_per_actor=1)
        numbers = [{"id": piece} for piece in pieces]
        rows = ray.data.from_items(numbers, override_num_blocks=min(len(numbers), MOST_BLOCKS)).map_batches(
            Actor,
            fn_constructor_args=(make, threads),
            batch_size=1,
            compute=pool,
            num_cpus=threads,
            num_gpus=1 if device == "cuda" else 0,
        )
        try:
            for row in rows.iter_rows():
                if row["failed"]:
                    raise FxlrpError(row["failed"])
                yield json.loads(row["done"])
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
