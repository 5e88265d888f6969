"""AttnLRP by LXT itself, beside which ours is put.  LXT patches torch and transformers; here for one call at a time."""

from __future__ import annotations

import copy
import importlib.util
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from fxlrp.capture.confine import LOCK
from fxlrp.errors import FxlrpError
from fxlrp.gae.texts.attention import Base, Explain
from fxlrp.gae.texts.case import Case, said
from fxlrp.gae.texts.stability import embedding_of


def lxt(base: Base, seed: int) -> Explain:
    """Embedding ⊙ gradient, channels summed, of the model rebuilt from the classes that LXT (Achtibat et al. 2024,
    2402.05602) has patched, over the same weights.

    Raises FxlrpError where LXT is not installed, or can't patch this model.
    """
    if importlib.util.find_spec("lxt") is None:
        raise FxlrpError("lxt is not installed: pip install lxt, which patches the transformers of its own time.")
    model: Any = base.model
    module = sys.modules[type(model).__module__]
    with _patched(module):
        rebuilt = getattr(module, type(model).__name__)(copy.deepcopy(model.config)).eval()
    rebuilt.load_state_dict(model.state_dict(), assign=True, strict=False)
    rebuilt.requires_grad_(False)
    given: list[Tensor] = []
    table: Any = None

    def explain(case: Case) -> Tensor:
        nonlocal table
        with _patched(module):
            if table is None:
                table = embedding_of(rebuilt, case.inputs)
                table.register_forward_hook(lambda _, ids, out: given.pop() if given else out)
            x = table(case.inputs["input_ids"]).detach().requires_grad_()
            given.append(x)
            (gradient,) = torch.autograd.grad(case.score(said(rebuilt(**case.inputs))).sum(), x)
        return (x.detach() * gradient)[0].sum(-1)

    return explain


@contextmanager
def _patched(module: ModuleType) -> Iterator[None]:
    """Let LXT patch a module of transformers' and what it uses of torch, and put all back.

    Raises FxlrpError for one that it can't patch.
    """
    with LOCK:
        try:
            from lxt.efficient import models, monkey_patch

            targets = list(models.get_default_map(module))
        except Exception as error:  # of its imports, where transformers is another than it was written for
            raise FxlrpError(f"lxt can't patch {module.__name__}: {str(error).strip().splitlines()[0]}") from error
        classes = [c for c in vars(module).values() if isinstance(c, type) and c.__module__ == module.__name__]
        before = [(owner, dict(vars(owner))) for owner in dict.fromkeys([module, *classes, *targets])]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                monkey_patch(module)
            yield
        finally:
            for owner, attributes in before:
                for name in [n for n in vars(owner) if n not in attributes]:
                    delattr(owner, name)
                for name, value in attributes.items():
                    if vars(owner).get(name) is not value:
                        setattr(owner, name, value)
