"""Small models as their users write them, with random weights, and how each is called."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

KINDS = {
    "recurrent": "Recurrent networks",
    "packed": "Padded and packed sequences",
    "attention": "Attention, with the batch first and second",
    "bags": "Words, bags and categories",
    "tables": "Tables",
    "graphs": "Graphs and point clouds",
    "physics": "Physics, derivatives and solvers",
    "spectral": "Complex numbers and spectra",
    "quantised": "Quantised layers",
    "steps": "Straight-through estimators and backward passes of one's own",
    "autocast": "Autocast and half precision",
    "weights": "LoRA, parametrised and tied weights",
    "compiled": "TorchScript, compiled and exported modules",
    "vision": "Convolutional networks, segmentation and detection heads",
    "loops": "Loops, early exits and experts",
    "random": "Random models",
    "state": "Buffers, caches and values written in place",
    "objects": "Structures and objects as arguments",
    "outputs": "Several outputs",
    "scores": "Scores without a class",
    "axes": "Batch axes and shared inputs",
}
FORMS = re.compile(r"\w+")


@dataclass
class Case:
    """A model and a call of it.

    target, convert: as for the explainer and `fxlrp.convert`.  asked: what else is asked of the explainer.
    score: of the model's output, the score that is explained; by default the target's, or the top class's.
    axis: of the samples in every input, or by an input's name; None for a call that is one sample; "list" if samples
    are the entries of lists.
    conserves: without biases and with nothing but piecewise linear functions, so that `epsilon` keeps the sum.
    derivable: whether x · gradient is the model's own derivative.
    quiet: inputs that may have no relevance, such as states of zeros.
    """

    model: nn.Module
    args: tuple = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    target: Any = None
    score: Callable[[Any], Tensor] | None = None
    axis: Any = 0
    conserves: bool = False
    derivable: bool = True
    quiet: tuple[str, ...] = ()
    convert: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, Any] = field(default_factory=dict)
    double: bool = True
    evaluate: bool = True
    tolerance: float = 1e-8

    def count(self) -> int | None:
        """How many samples there are, None if the call is one."""
        if self.axis is None:
            return None
        if self.axis == "list":
            return next(len(v) for v in (*self.args, *self.kwargs.values()) if isinstance(v, list))
        named = [(name, t) for name, t in self._named().items() if self._axis(name) is not None]
        return next(t.shape[self._axis(name)] for name, t in named)

    def alone(self, i: int) -> tuple[tuple, dict[str, Any], Callable[[str], tuple[str, Any]]]:
        """The call with sample i alone, and for an input of it the name in the batch and the axis of the samples."""
        if self.axis == "list":

            def pick(v: Any) -> Any:
                return [v[i]] if isinstance(v, list) else v

            args, kwargs = tuple(map(pick, self.args)), {k: pick(v) for k, v in self.kwargs.items()}
            return args, kwargs, lambda name: (re.sub(r"\.0(?=\.|$)", f".{i}", name, count=1), "whole")

        def one(path: Any, leaf: Any) -> Any:
            axis = self._axis(_name(path)) if isinstance(leaf, Tensor) and leaf.ndim else None
            return leaf if axis is None else leaf.narrow(axis, i, 1)

        from fxlrp.capture.objects import close_objects, open_objects

        args, kwargs = close_objects(pytree.tree_map_with_path(one, open_objects((self.args, self.kwargs))))
        return args, kwargs, lambda name: (name, self._axis(name))

    def _axis(self, name: str) -> int | None:
        axis = self.axis.get(name) if isinstance(self.axis, dict) else self.axis
        t = self._named().get(name)
        return axis if t is not None and t.ndim else None

    def _named(self) -> dict[str, Tensor]:
        from fxlrp.capture.objects import open_objects

        leaves = pytree.tree_leaves_with_path(open_objects((self.args, self.kwargs)))
        return {_name(path): t for path, t in leaves if isinstance(t, Tensor)}


def _name(path: Any) -> str:
    return ".".join(FORMS.findall(pytree.keystr(path))[1:])


@dataclass(frozen=True)
class Listed:
    """A case in the list of all: its kind, what it is in a line, and a function that builds it."""

    kind: str
    what: str
    make: Callable[[], Case]


CASES: dict[str, Listed] = {}


def case(kind: str) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Register a function that builds a case of this kind; its docstring says in a line what the model is."""
    assert kind in KINDS

    def register(make: Callable[[], Case]) -> Callable[[], Case]:
        assert make.__name__ not in CASES
        assert make.__doc__
        CASES[make.__name__] = Listed(kind, make.__doc__.strip().rstrip("."), make)
        return make

    return register


class Net(nn.Module):
    """A module of the given parts: layers, parameters, buffers (plain tensors) and plain values."""

    def __init__(self, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape)


def ids(most: int, *shape: int) -> Tensor:
    """Whole numbers from 1 to `most` - 1."""
    return torch.randint(1, most, shape)


def param(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / 2)


def mlp(*sizes: int, act: type[nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    """Linear layers of these sizes with a function between."""
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b, bias=bias), act())]
    return nn.Sequential(*layers[:-1])


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
