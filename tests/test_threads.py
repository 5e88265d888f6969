"""Threads and processes: one captures while others explain, run the plain model or fork, and nobody notices.

Numbers are equal but for rounding, which depends on where in memory a tensor lies.
"""

from __future__ import annotations

import builtins
import functools
import io
import logging
import math
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxlrp
from fxlrp import FxlrpError, convert
from fxlrp.capture.confine import LOCK, quiet, without_warnings
from fxlrp.capture.model import CaptureMode
from fxlrp.capture.twin import twin


class Branches(nn.Module):
    """torch.export refuses it, and at length; what it shares and keeps is what a trace could leave changed."""

    def __init__(self, branch: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = self.first  # a module of two names: torch traces it by proxies
        self.branch = branch
        self.latest: Tensor | None = None
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.first(x).relu())
        self.latest = self.cache["y"] = y
        if self.branch and y.sum() > 1e6:
            y = y * 2
        return y * max(self.first.weight.abs().sum(), self.first.bias.sum())


def networks() -> list[tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    convolutions = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )
    attention = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(40, 3))
    made: list[tuple[nn.Module, Tensor]] = [
        (Branches(), torch.randn(1, 4)),
        (Branches(branch=False), torch.randn(3, 4)),
        (convolutions, torch.randn(2, 3, 12, 12)),
        (attention, torch.randn(2, 5, 8)),
    ]
    return [(model.eval(), x) for model, x in made]


def process() -> dict[str, Any]:
    """What of the whole process a capture may not leave, or show another thread, changed."""
    handlers = [h for g in (logging.root, logging.getLogger("torch")) for h in g.handlers]
    return {
        "stdout": sys.stdout,
        "stderr": sys.stderr,
        "logging": logging.root.manager.disable,
        "compiling": bool(torch.compiler.is_compiling() or torch.compiler.is_exporting()),
        "mkldnn": torch.backends.mkldnn.enabled,
        "functions": (max([1, 2]), min([1, 2]), type(math.pow(2, 3))),
        "call": nn.Module.__call__,
        "getattr": nn.Module.__getattr__,
        "builtins": (builtins.max, builtins.min, math.pow),
        "warnings": list(warnings.filters),
        "handlers": [(h, list(h.filters)) for h in handlers],
    }


SHOWN = ("stdout", "stderr", "logging", "compiling", "mkldnn", "functions")
"""What other threads may not even see while a capture goes on."""


def together(tasks: list[Callable[[], Any]]) -> list[Exception]:
    """Run them in a thread each, all started at once, and return what they raised."""
    errors: list[Exception] = []
    start = threading.Barrier(len(tasks))

    def run(task: Callable[[], Any]) -> None:
        start.wait()
        try:
            task()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@contextmanager
def plain_beside(made: list[tuple[nn.Module, Tensor]]) -> Iterator[list[Any]]:
    """Runs the plain models in a thread each meanwhile; what they saw that they should not have is in the list."""
    wrong: list[Any] = []
    done, before = threading.Event(), process()
    with torch.no_grad():
        expected = [model(x).clone() for model, x in made]

    def run(i: int) -> None:
        model, x = made[i]
        while not done.is_set():
            now = process()
            wrong.extend((i, name, now[name]) for name in SHOWN if now[name] != before[name])
            with torch.no_grad():
                y = model(x)
            if type(y) is not Tensor or not torch.allclose(y, expected[i], atol=1e-6):
                wrong.append((i, "output", type(y), (y - expected[i]).abs().max()))
            weights = [w for w in model.parameters() if type(w) is not nn.Parameter]
            wrong.extend((i, "weight", w) for w in weights)
            if any(len(m._forward_hooks) for m in model.modules()):
                wrong.append((i, "hooks"))
            time.sleep(0.02)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(made))]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        done.set()
        for thread in threads:
            thread.join()


def test_first_and_later_calls_beside_plain_models() -> None:
    made = networks()
    expected = [convert(model)(x) for model, x in made]
    shared = [convert(model) for model, _ in made]
    before = process()

    def explain(first: int) -> None:
        for k in range(len(made)):
            i = (first + k) % len(made)
            for explainer in (shared[i], shared[i], convert(made[i][0])):
                a = explainer(made[i][1])
                torch.testing.assert_close(a.relevance, expected[i].relevance)
                torch.testing.assert_close(a.output, expected[i].output)
                torch.testing.assert_close(explainer(made[i][1], trace=True).relevance, expected[i].relevance)

    with plain_beside(made) as wrong:
        errors = together([functools.partial(explain, k) for k in range(2)])
    assert errors == []
    assert wrong == []
    assert process() == before
    model = made[1][0]
    assert type(model.latest) is type(model.cache["y"]) is Tensor
    assert [len(explainer.plans.cache.plans) for explainer in shared] == [1, 1, 1, 1]


def test_compiled_explainers_beside_captures() -> None:
    (_, (model, x), (other, y), _) = networks()
    compiled, others = convert(model).compile(backend="aot_eager"), convert(model).compile(backend="aot_eager")
    expected = convert(model)(x).relevance

    def explain(explainer: Any) -> None:
        for batch in (3, 2):
            torch.testing.assert_close(explainer(x[:batch]).relevance, expected[:batch])

    before = process()
    tasks = [compiled, compiled, others]
    errors = together([*(functools.partial(explain, e) for e in tasks), lambda: convert(other)(y)])
    assert errors == []
    assert process() == before


class Refused(nn.Module):
    """Can't be captured in any way, and says so by every means."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("of the model", stacklevel=1)
        logging.getLogger("torch.of_the_model").error("of the model")
        return torch.from_numpy(self.layer(x).numpy())  # works without gradients alone


def test_a_capture_that_fails_leaves_nothing() -> None:
    before, model = process(), Refused().eval()
    weights, attributes = list(model.parameters()), dict(vars(model))
    for _ in range(2):
        with pytest.raises(FxlrpError, match="can't be traced"):
            convert(model)(torch.randn(2, 4))
    assert process() == before
    assert all(new is old for new, old in zip(model.parameters(), weights, strict=True))
    assert vars(model) == attributes
    made, x = networks()[2]
    convert(made)(x)  # and tracing still works


def test_nothing_is_printed_and_this_thread_alone_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    model, x = networks()[0]
    convert(model)(x)
    assert capfd.readouterr() == ("", "")
    heard, handler = io.StringIO(), logging.StreamHandler()
    handler.setStream(heard)
    logger = logging.getLogger("somebody's")
    logger.addHandler(handler)
    quietly, said = threading.Event(), threading.Event()

    def elsewhere() -> None:
        quietly.wait()
        logger.error("elsewhere")
        warnings.warn("elsewhere", stacklevel=1)
        said.set()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            with quiet():
                quietly.set()
                said.wait()
                logger.error("here")
                warnings.warn("here", stacklevel=1)
    finally:
        thread.join()
        logger.removeHandler(handler)
    assert heard.getvalue() == "elsewhere\n"
    assert [str(w.message) for w in warned] == ["elsewhere"]


def test_filters_of_warnings_survive_threads_that_overlap() -> None:
    before = list(warnings.filters)
    entered, left = threading.Event(), threading.Event()

    def first() -> None:
        with without_warnings("x"):
            entered.set()
            left.wait()

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait()
    with without_warnings("x"):
        left.set()
        thread.join()
    assert list(warnings.filters) == before


def test_the_same_new_signature_is_captured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = networks()[2]
    explainer, captured = convert(model), []
    make = explainer.plans.make
    monkeypatch.setattr(explainer.plans, "make", lambda *a: captured.append(a) or make(*a))
    assert together([lambda: explainer(x)] * 4) == []
    assert len(captured) == 1


def test_the_latest_call_is_the_thread_s_own() -> None:
    model, x = networks()[2]
    explainer = convert(model)
    explainer(x[:, :, :12, :11])
    mine = explainer.graph
    assert together([lambda: explainer(x)]) == []
    assert explainer.graph is mine
    seen: list[Any] = []
    together([lambda: seen.append(explainer.graph)])  # one that made no call gets the latest of all
    assert seen[0] is not mine


# A twin is equal to its model, and nothing of the model is in it but its tensors.


class Odd(nn.Module):
    """Refers to itself in every way a module does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.tied = self.layer
        self.hidden = [self.layer, {"more": nn.Linear(4, 4)}]
        self.closure = lambda x: self.layer(x)
        self.method = self.inner
        self.partial = functools.partial(self.inner, scale=2.0)
        self.cached = functools.lru_cache(self.table)
        self.helper = types.SimpleNamespace()
        self.pair = (self.hidden[1], 3)
        self.lock = threading.Lock()
        self.layer.register_forward_hook(self.note)
        self.notes: list[Any] = []

    def note(self, module: nn.Module, args: Any, out: Tensor) -> None:
        self.notes.append(out)

    def inner(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return self.hidden[1]["more"](x) * scale

    def table(self, n: int) -> Tensor:
        return torch.ones(n) * 3 + self.layer.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        y = self.closure(x) + self.method(x) + self.partial(x) + self.tied(x)
        return y * self.cached(4) + self.pair[0]["more"](x)


def test_a_twin_is_a_model_of_its_own_over_the_same_tensors() -> None:
    model, x = Odd().eval(), torch.randn(2, 4)
    other = twin(model)
    assert torch.equal(other(x), model(x))
    assert all(a is b for a, b in zip(other.parameters(), model.parameters(), strict=True))
    assert not set(other.modules()) & set(model.modules())
    assert other.layer is other.tied is other.hidden[0]
    assert other.method.__self__ is other
    assert other.partial.func.__self__ is other
    assert other.closure.__closure__[0].cell_contents is other
    assert other.pair[0] is other.hidden[1]
    assert other.lock is model.lock
    assert len(other.notes) == len(model.notes) == 2  # each its own
    a = convert(model)(x)
    assert torch.equal(a.output, model(x))
    assert all(type(t) is Tensor for t in (*model.notes, model.cached(4)))
    assert all(type(w) is nn.Parameter for w in model.hidden[1]["more"].parameters())
    graph = convert(model, x).graph
    assert {id(p) for p in model.parameters()} <= {id(p) for p in graph.parameters()}


class NoTwin(nn.Linear):
    """Refuses to run in a copy."""

    def __init__(self) -> None:
        super().__init__(4, 4)
        self.me = id(self)

    def forward(self, x: Tensor) -> Tensor:
        if id(self) != self.me and type(self).__name__ == "NoTwin":
            raise ValueError("a copy")
        return super().forward(x)


def test_a_model_whose_twin_does_not_run_is_traced_itself() -> None:
    model, x = nn.Sequential(NoTwin(), nn.ReLU()).eval(), torch.randn(2, 4)
    assert torch.equal(convert(model)(x).output, model(x))


def test_a_model_that_refers_to_itself_too_deeply_is_traced_itself() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4)).eval(), torch.randn(2, 4)
    chain: Any = model[0]
    for _ in range(3 * sys.getrecursionlimit()):
        chain = types.MethodType(len, chain)
    model.chain = chain
    with pytest.raises(RecursionError):
        twin(model)
    assert torch.equal(convert(model)(x).output, model(x))


# Processes.


def _explained(explainer: Any, x: Tensor, answers: Any) -> None:
    torch.set_num_threads(1)  # as torch's own workers do: else autograd's threads may race for a pool the fork broke
    answers.put(explainer(x).relevance.tolist())


def _converted(model: nn.Module, x: Tensor, answers: Any) -> None:
    torch.set_num_threads(1)
    answers.put(convert(model)(x).relevance.tolist())


def _refused(explainer: Any, x: Tensor, answers: Any) -> None:
    with pytest.raises(FxlrpError, match="spawn"):
        explainer(x)
    answers.put("refused")


def answer_of(how: str, task: Callable[..., None], *args: Any) -> Any:
    context = multiprocessing.get_context(how)
    answers = context.SimpleQueue()
    child = context.Process(target=task, args=(*args, answers))
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
        pytest.fail("the child hangs")
    assert child.exitcode == 0
    return answers.get()


FORKS = """
import threading
import torch
from test_threads import _converted, _explained, _refused, answer_of, networks
from fxlrp import convert

torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
model, x = networks()[2]
explainer = convert(model, x)
tracing, done = threading.Event(), threading.Event()

def capture():
    while not done.is_set():
        convert(model, x)
        tracing.set()

thread = threading.Thread(target=capture)
thread.start()
tracing.wait()
try:
    found = [answer_of("fork", task, of, x) for task, of in ((_explained, explainer), (_converted, model)) * 2]
finally:
    done.set()
    thread.join()
expected = explainer(x).relevance.tolist()
assert all(f == expected for f in found), (found, expected)
answer_of("fork", _refused, explainer, x)
"""


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
def test_forks_while_another_thread_captures() -> None:
    """In a process of its own, since torch's autograd runs in a fork only where it has not run before."""
    folder = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_fork_finds_no_lock_of_cached_property() -> None:
    """Before Python 3.12 it has one for all instances, which is held while a value is computed."""
    root = Path(fxlrp.__file__).parent
    users = {str(path.relative_to(root)) for path in root.rglob("*.py") if "@cached_property" in path.read_text()}
    assert users == {"graph/facts.py"}  # used by the thread that captures, for which a fork waits


def test_a_spawned_process_converts() -> None:
    model, x = networks()[2]
    found = answer_of("spawn", _converted, model, x)
    torch.testing.assert_close(torch.tensor(found), convert(model)(x).relevance)


def test_the_lock_is_free_after_all_that() -> None:
    assert LOCK.acquire(timeout=1)
    LOCK.release()


class Reckons(nn.Module):
    """Takes what torch says of compiling for the bool it ought to be, as transformers does."""

    def forward(self, x: Tensor) -> Tensor:
        tracing = False
        tracing |= torch.compiler.is_exporting()
        both = torch.compiler.is_compiling() & torch.compiler.is_exporting() | tracing
        assert {both: repr(both)}[tracing] in ("True", "False")
        return x * [1, 1][torch.compiler.is_exporting()] + int(both) - float(tracing)


def test_flags_of_compiling_are_reckoned_with():
    """While a model is traced, what `torch.compiler.is_exporting` returns is used as the bool it stands for."""
    model = nn.Sequential(nn.Linear(3, 3), Reckons()).eval()
    explainer = convert(model, torch.randn(2, 3))
    assert explainer.latest.capture.mode is CaptureMode.ANY_BATCH
    x = torch.randn(5, 3)
    torch.testing.assert_close(explainer(x).logits, model(x).detach())
