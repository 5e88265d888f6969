"""Says why a model can't be captured, and what to do."""

from __future__ import annotations

import itertools
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from torch import Tensor, nn

from fxlrp.capture.calls import call_without_gradients, refused
from fxlrp.capture.derivatives import raised_in, transforming
from fxlrp.errors import OWN_GENERATOR, PAD, FxlrpError, InputsRefused, first_line

Arguments = Callable[[], tuple[tuple, dict]]
"""Makes the (args, kwargs) of a call."""


def refuse_shared_out(model: nn.Module, tensors: list[Tensor]) -> None:
    """Raises FxlrpError for tensors of which each process holds a part, by tensor parallelism or FSDP."""
    parts = sys.modules.get("torch.distributed.tensor")  # takes long to import, and nobody has one without it
    if parts is None:
        return
    named = itertools.chain(model.named_parameters(), model.named_buffers(), (("an input", t) for t in tensors))
    shared = next((name for name, t in named if isinstance(t, parts.DTensor)), None)
    if shared is not None:
        raise FxlrpError(
            f"Each process holds a part of {shared} (a DTensor), and torch.export traces no such model. Explain a "
            "whole copy of it, with the weights that torch.distributed.checkpoint.state_dict.get_model_state_dict("
            "model, options=StateDictOptions(full_state_dict=True)) gathers, and share the data out: fxlrp map "
            "--workers N."
        )


def refuse(model: nn.Module, whole: Arguments, alone: Arguments, untraced: Exception) -> NoReturn:
    """Raises FxlrpError for a call that could not be traced, and says whether it is the model that refuses it.

    whole, alone: the call, and that of its first sample.  untraced: the exception that the first attempt raised.
    """
    if error := raised_by(model, *whole()):
        raise refused(error) from error
    if error := raised_by(model, *alone()):
        raise InputsRefused(
            f"The model takes no sample of this call alone ({first_line(error)}): leave batch=… out, or give None."
        ) from error
    raise FxlrpError(why_untraced(untraced)) from untraced


def raised_by(model: nn.Module, args: tuple, kwargs: dict) -> Exception | None:
    """The exception that this call of the model raises, if any."""
    try:
        call_without_gradients(model, args, kwargs)
    except Exception as error:
        return error
    return None


def why_untraced(error: Exception) -> str:
    """One sentence on why a model could not be traced, with the user's line and a way out."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    user_frames = [f for f in traceback.extract_tb(error.__traceback__) if not _not_of_user(f.filename)]
    quoted_lines = [ln.strip() for ln in text.splitlines() if ln.strip().startswith("File ") and not _not_of_user(ln)]
    lines = [f'File "{f.filename}", line {f.lineno}, in {f.name}: {f.line}' for f in user_frames] or quoted_lines
    where = f" at {lines[-1]}" if lines else ""
    if transforming(error):
        return (
            f"This model takes derivatives inside forward, or maps over samples, by torch.func{where}: write them out "
            "in torch operations, or convert the module they are taken of (the energy, not the force)."
        )
    if raised_in(error, ("torch/nested/",)) or "nested tensor" in first.lower():
        return f"This model makes a nested tensor{where}, which torch can't trace: {PAD}."
    if "torch._C.Generator" in first:  # torch 2.11 can't trace one
        return f"This model{where} {OWN_GENERATOR}"
    return (
        f"This model can't be traced ({type(error).__name__}: {first}){where}; write that line in torch operations "
        "(torch.where for a branch on values), or convert the submodule without it."
    )


def _not_of_user(file: str) -> bool:
    generated = re.search(r"<(string|eval_with_key|frozen)\b", file)  # functions that torch.fx makes
    return bool(generated) or any(part in file for part in ("/torch/", "/sympy/", f"{Path(__file__).parents[1]}/"))
