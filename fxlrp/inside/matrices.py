"""Reads a matrix of directions from a file, without running anything that is in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fxlrp.errors import FxlrpError


def read_matrix(path: Path) -> Tensor | tuple[Tensor, Tensor]:
    """The matrix [K, C] in a .npy or a .safetensors; of a .safetensors with a `decoder` and an `encoder`, both.

    Raises FxlrpError for a file that holds none.
    """
    wanted = f"{path} holds no matrix [K, C] of directions: save one as .npy, or as .safetensors."
    try:
        if path.suffix == ".npy":
            return _matrix(torch.from_numpy(np.load(path, allow_pickle=False)), wanted)
        from safetensors.torch import load_file

        tensors = load_file(path)
    except Exception as error:
        raise FxlrpError(wanted) from error
    if {"decoder", "encoder"} <= tensors.keys():
        return _matrix(tensors["decoder"], wanted), _matrix(tensors["encoder"], wanted)
    if len(tensors) != 1:
        raise FxlrpError(wanted)
    return _matrix(next(iter(tensors.values())), wanted)


def _matrix(t: Tensor, wanted: str) -> Tensor:
    if t.ndim != 2 or not t.is_floating_point():
        raise FxlrpError(wanted)
    return t.float()
