"""Lets one thread trace at a time, and confines torch's process-wide changes to that thread.

While torch traces, it replaces `nn.Module.__call__`, `builtins.max` and others, turns off faster kernels and reports
that a compilation is running.  All of this is process-wide: another thread that runs a plain model meanwhile would run
through the tracer, and two tracing threads would restore each other's replacements, for good.
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
"""Held by the thread that captures, rewrites, traces or compiles.  Calls of a captured model do not take it."""

# A fork waits for the tracing thread: the child would lack that thread, and nobody would undo its replacements.
if hasattr(os, "register_at_fork"):  # Windows has no forks
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


@contextmanager
def alone(*, below_backends: bool = False) -> Iterator[None]:
    """Within it, only this thread may trace: others that want to trace wait, and others that run models are unaffected.

    below_backends: whether the trace contains ops whose backend torch chooses by their sizes, such as derivatives of
      convolutions.  Then torch.export turns off mkldnn, cuDNN and NNPACK in all threads, so that the graph does not
      hold only for small batches; other threads compute the same with other kernels meanwhile.
    """
    with LOCK, ExitStack() as stack:
        from torch._dynamo.convert_frame import compile_lock  # imported here because these take seconds
        from torch._export import non_strict_utils
        from torch.export import _trace

        stack.enter_context(compile_lock)  # torch.compile traces too
        replacements = [
            (_symbolic_trace, "_Patcher", _Patcher),
            (non_strict_utils, "builtins", _Namespace(builtins)),
            (non_strict_utils, "math", _Namespace(math)),
            (_trace, "_compiling_state_context", _compiling_here),
            (torch.compiler, "_compile_session_context", _compiling_here),
            (transformer, "_detect_is_causal_mask", _only_is_causal_flag),
            *([] if below_backends else [(_trace, "_ignore_backend_decomps", nullcontext)]),
        ]
        for owner, name, replacement in replacements:
            stack.enter_context(replaced(owner, name, replacement))
        stack.enter_context(tidy())
        yield


def _only_is_causal_flag(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    """Decides by the `is_causal` flag alone whether a faster kernel may drop the mask: its values would fix the graph
    to this mask.  A mask that is kept gives the same result."""
    return bool(is_causal)


SOURCES = 2000
"""The number of generated functions whose source is kept for tracebacks to quote."""
_sources: deque[str] = deque()


@contextmanager
def tidy() -> Iterator[None]:
    """Frees what torch would cache forever for the graphs made within: results of ops on fake tensors, with their shape
    symbols, and the sources of all but the latest functions."""
    eval_cache = getattr(fx.graph_module._loader, "eval_cache", {})
    size_before = len(eval_cache)
    try:
        yield
    finally:
        _sources.extend(islice(list(eval_cache), size_before, None))
        while len(_sources) > SOURCES:
            key = _sources.popleft()
            eval_cache.pop(key, None)
            linecache.cache.pop(key, None)
        FakeTensorMode.cache_clear()
        getattr(proxy_tensor, "_FAKE_TENSOR_ID_TO_PROXY_MAP_FOR_EXPORT", {}).clear()
        for method in vars(ShapeEnv).values():
            if hasattr(method, "cache_clear"):
                method.cache_clear()


@contextmanager
def replaced(owner: Any, name: str, new: Any) -> Iterator[None]:
    """Within it, replaces a private attribute of torch; does nothing if this version of torch lacks it."""
    if (old := getattr(owner, name, None)) is None:
        yield
        return
    setattr(owner, name, new)
    try:
        yield
    finally:
        setattr(owner, name, old)


def only_here(changed: Callable, original: Callable) -> Callable:
    """A function that runs `changed` in the thread that calls `only_here`, and `original` in all others."""
    here = threading.get_ident()

    @wraps(original)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        return (changed if threading.get_ident() == here else original)(*args, **kwargs)

    return chosen


class _Patcher(_symbolic_trace._Patcher):
    """Replaces methods of classes (those of `nn.Module`) for the tracing thread only."""

    def patch_method(self, cls: type, name: str, new_fn: Callable, deduplicate: bool = True) -> None:
        super().patch_method(cls, name, only_here(new_fn, getattr(cls, name)), deduplicate)


class _Namespace:
    """Wraps a Python module whose functions torch replaces (by max and min of tensors), so that they are replaced only
    for this thread and restored exactly."""

    def __init__(self, module: Any) -> None:
        self.__dict__["module"] = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __setattr__(self, name: str, new: Any) -> None:
        old = getattr(self.module, name)
        setattr(self.module, name, new if getattr(old, "__wrapped__", None) is new else only_here(new, old))


class _Here:
    """True in the thread that made it, False in all others."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def __bool__(self) -> bool:
        return threading.get_ident() == self.thread


class Flag(_Here):
    """Replaces a flag of torch that models read through `torch.compiler.is_compiling` and may use as a number."""


def _as_bool(name: str) -> Callable:
    return lambda *flags: getattr(bool, name)(*(bool(f) if isinstance(f, Flag) else f for f in flags))


for _name in ("and", "or", "xor", "rand", "ror", "rxor", "eq", "ne", "hash", "int", "index", "float", "repr"):
    setattr(Flag, f"__{_name}__", _as_bool(f"__{_name}__"))


@contextmanager
def _compiling_here() -> Iterator[None]:
    """Within it, `torch.compiler.is_compiling` and `is_exporting` return True in this thread only."""
    with ExitStack() as stack:
        for flag in ("_is_compiling_flag", "_is_exporting_flag"):
            stack.enter_context(replaced(torch.compiler, flag, Flag()))
        yield


@contextmanager
def quiet() -> Iterator[None]:
    """Silences this thread's warnings and logs: torch logs at length what it then raises, and its warnings do not
    concern the user."""
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


class _ThisThreadsWarnings(_Here):
    """A pattern for a warnings filter that matches only warnings of this thread."""

    def __init__(self, begins: str) -> None:
        super().__init__()
        self.begins = re.compile(begins)

    def match(self, text: str) -> bool:
        return bool(self) and self.begins.match(text) is not None


@contextmanager
def without_warnings(begins: str = "") -> Iterator[None]:
    """Within it, drops this thread's warnings whose text begins with `begins`.

    `warnings.catch_warnings` is process-wide: two threads inside it at once can leave one's filters in place for good.
    """
    entry = ("ignore", _ThisThreadsWarnings(begins), Warning, None, 0)
    filters: Any = warnings.filters
    filters.insert(0, entry)
    try:
        yield
    finally:
        current: Any = warnings.filters
        for each in (filters, current):  # another thread's catch_warnings may have replaced the list
            with suppress(ValueError):
                each.remove(entry)
