"""Confine: one thread traces at a time, and what torch changes for that in the whole process changes for it alone.

While torch traces, it replaces `nn.Module.__call__`, `builtins.max` and others, turns off faster kernels and says
that a compilation is going on.  All of this is process-wide: another thread that runs a plain model in the meantime
would run through the tracer, and two threads that trace would put back each other's replacements, for good.
"""

from __future__ import annotations

import builtins
import linecache
import logging
import math
import os
import re
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import wraps
from itertools import islice
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import _symbolic_trace
from torch.fx.experimental import proxy_tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.modules import transformer

LOCK = threading.RLock()
"""Held by the thread that captures, rewrites, traces or compiles.  Calls of what is captured do not take it."""

# A fork waits for the thread that traces: its child has no such thread, and so nobody to put back what was replaced.
if hasattr(os, "register_at_fork"):  # Windows knows no forks
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


@contextmanager
def alone(*, below_backends: bool = False) -> Iterator[None]:
    """Within it, this thread may trace: others that want to wait, and others that run models do not notice.

    below_backends: whether ops are traced that torch chooses a backend for by their sizes, as derivatives of
      convolutions.  Then torch.export turns off mkldnn, cuDNN and NNPACK for all threads meanwhile, lest the graph hold
      for small batches alone; others compute the same, by other kernels.
    """
    with LOCK, ExitStack() as stack:
        from torch._dynamo.convert_frame import compile_lock  # here, since these take seconds to import
        from torch._export import non_strict_utils
        from torch.export import _trace

        stack.enter_context(compile_lock)  # torch.compile traces too
        instead = [
            (_symbolic_trace, "_Patcher", _Patcher),
            (non_strict_utils, "builtins", _Namespace(builtins)),
            (non_strict_utils, "math", _Namespace(math)),
            (_trace, "_compiling_state_context", _compiling_here),
            (torch.compiler, "_compile_session_context", _compiling_here),
            (transformer, "_detect_is_causal_mask", _as_said),
            *([] if below_backends else [(_trace, "_ignore_backend_decomps", nullcontext)]),
        ]
        for owner, name, new in instead:
            stack.enter_context(replaced(owner, name, new))
        stack.enter_context(tidy())
        yield


def _as_said(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Whether a mask may be left out for a faster kernel: if so said, without a look at its values, which no graph for
    other values could do.  A mask that is not left out gives the same."""
    return bool(is_causal)


SOURCES = 2000
"""Of how many generated functions the source is kept, which tracebacks quote."""
_sources: deque[str] = deque()


@contextmanager
def tidy() -> Iterator[None]:
    """Drop what torch would keep for good of the graphs made within: what ops do to fake tensors, with the symbols of
    their shapes, and the sources of all but the latest functions."""
    known = getattr(fx.graph_module._loader, "eval_cache", {})
    before = len(known)
    try:
        yield
    finally:
        _sources.extend(islice(list(known), before, None))
        while len(_sources) > SOURCES:
            key = _sources.popleft()
            known.pop(key, None)
            linecache.cache.pop(key, None)
        FakeTensorMode.cache_clear()
        getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", {}).clear()
        for method in vars(ShapeEnv).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()


@contextmanager
def replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    """Within it, a private name of torch stands for something else; one this version of torch lacks is left alone."""
    if (old := getattr(owner, name, None)) is None:
        yield
        return
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old)


def only_here(changed: Callable, original: Callable) -> Callable:
    """A function that is `changed` for the thread that calls this, and `original` for all others."""
    here = threading.get_ident()

    @wraps(original)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (changed if threading.get_ident() == here else original)(*args, **kwargs)

    return chosen


class _Patcher(_symbolic_trace._Patcher):
    """Replaces methods of classes (those of `nn.Module`) for the thread that traces alone."""

    def patch_method(self, cls: type, name: str, new_fn: Callable, deduplicate: bool = True) -> None:
        super().patch_method(cls, name, only_here(new_fn, getattr(cls, name)), deduplicate)


class _Namespace:
    """Stands for a module of Python's in the code of torch that replaces functions of it (by max and min of tensors):
    it replaces them for this thread alone, and puts them back as they were."""

    def __init__(self, module: Any) -> None:
        self.__dict__["module"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __setattr__(self, name: str, new: Any) -> None:
        old = getattr(self.module, name)
        setattr(self.module, name, new if getattr(old, "__wrapped__", None) is new else only_here(new, old))


class _Here:
    """True for the thread that made it, and False for all others."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def __bool__(self) -> bool:
        return threading.get_ident() == self.thread


class Flag(_Here):
    """Stands for a flag of torch's that models read by `torch.compiler.is_compiling`, and may reckon with."""


def _as_bool(name: str) -> Callable:
    return lambda *flags: getattr(bool, name)(*(bool(f) if isinstance(f, Flag) else f for f in flags))


for _name in ("and", "or", "xor", "rand", "ror", "rxor", "eq", "ne", "hash", "int", "index", "float", "repr"):
    setattr(Flag, f"__{_name}__", _as_bool(f"__{_name}__"))


@contextmanager
def _compiling_here() -> Iterator[None]:
    """Within it, `torch.compiler.is_compiling` and `is_exporting` say yes to this thread alone."""
    with ExitStack() as stack:
        for flag in ("_is_compiling_flag", "_is_exporting_flag"):
            stack.enter_context(replaced(torch.compiler, flag, Flag()))
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Keep this thread's warnings and what it logs to itself: torch says at length what it then raises, and warns of
    what is none of a user's."""
    here = _Here()

    def elsewhere(record: logging.LogRecord) -> bool:
        return not here

    loggers = [logging.root, *logging.root.manager.loggerDict.copy().values()]
    handlers = {h for g in loggers for h in getattr(g, "handlers", ())}
    handlers.update([logging.lastResort] if logging.lastResort else [])
    for handler in handlers:
        handler.addFilter(elsewhere)
    try:
        with without_warnings():
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(elsewhere)


class _Heard(_Here):
    """Stands for the pattern of a filter of warnings: it matches what this thread is warned of, and no other."""

    def __init__(self, begins: str) -> None:
        super().__init__()
        self.begins = re.compile(begins)

    def match(self, text: str) -> bool:
        return bool(self) and self.begins.match(text) is not None


@contextmanager
def without_warnings(begins: str = "") -> Iterator[None]:
    """Within it, this thread is not warned of what begins so.

    `warnings.catch_warnings` is for the whole process: two threads in it leave the filters of one of them for good.
    """
    entry = ("ignore", _Heard(begins), Warning, None, 0)
    filters: Any = warnings.filters
    filters.insert(0, entry)
    try:
        yield
    finally:
        current: Any = warnings.filters
        for each in (filters, current):  # catch_warnings elsewhere may have replaced the list meanwhile
            with suppress(ValueError):
                each.remove(entry)
