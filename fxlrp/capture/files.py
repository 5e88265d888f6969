"""Lets a model read its weights from files while it is traced, as accelerate's offloading to the disk does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes


class _Outside:
    """An open safetensors file that hands out tensors as they are, whatever is being traced around it."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def __enter__(self) -> _Outside:
        self.file.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self.file.__exit__(*error)

    def get_tensor(self, name: str) -> Tensor:
        """Reads a tensor; made under a tracer's modes, its storage would have no shape."""
        with _disable_current_modes():
            return self.file.get_tensor(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@contextmanager
def files_outside() -> Iterator[None]:
    """Within it, whoever imported safetensors' `safe_open` opens files outside of the trace."""
    safetensors = sys.modules.get("safetensors")
    real = getattr(safetensors, "safe_open", None)
    users = [m for m in list(sys.modules.values()) if real is not None and vars(m).get("safe_open") is real]

    def safe_open(*args: Any, **kwargs: Any) -> _Outside:
        return _Outside(real(*args, **kwargs))  # type: ignore[misc]

    for module in users:
        module.safe_open = safe_open  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module in users:
            module.safe_open = real  # type: ignore[attr-defined]
