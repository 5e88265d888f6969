"""Wraps a model as a function of flat tensors, opens its output into tensors and closes it again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.distributions import Distribution
from torch.utils import _pytree as pytree

from fxlrp.capture.calls import call
from fxlrp.capture.confine import only_here, replaced
from fxlrp.capture.derivatives import derivatives_noticed
from fxlrp.capture.flex import flex_attention_spelled
from fxlrp.capture.objects import PLAIN, open_objects
from fxlrp.capture.quantised import in_float
from fxlrp.capture.straight_through import DataDetached
from fxlrp.capture.symbols import SizesStayShort, let_go

aten = torch.ops.aten


@dataclass
class Returned:
    """A model's output as it was traced; kept outside the module, because export undoes attribute assignments."""

    leaves: list[Any]
    spec: pytree.TreeSpec
    names: list[str]
    untouched: list[int]  # outputs that are the unchanged input of the module that returned them


class Flat(nn.Module):
    """The model as a function of flat tensors, whose order numbers the inputs and outputs of the exported graph."""

    def __init__(self, model: nn.Module, rebuild: Callable[[Any], tuple[tuple, dict]], seen: list[Returned]) -> None:
        super().__init__()
        self.model = model
        self.rebuild = rebuild
        self.note = seen.append
        self.quantised = False
        self.known = SimpleNamespace(derives=False)  # derives: trace below autograd.  Export restores attributes

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self.rebuild(tensors)
        passed_on: list[Tensor] = []
        hooks = [
            m.register_forward_hook(_note_identity(passed_on))
            for m in self.model.modules()
            if m is not self.model and not isinstance(m, torch.jit.ScriptModule)  # a ScriptModule takes no hooks
        ]
        try:
            with (
                in_float() if self.quantised else nullcontext(),
                derivatives_noticed(self._notice_below),
                flex_attention_spelled(self._notice_below),
                replaced(Distribution, "__init__", only_here(_unchecked, Distribution.__init__)),
                DataDetached(),
                SizesStayShort(),
            ):
                returned = call(self.model, args, kwargs)
        except Exception as error:
            if (mode := detect_fake_mode(tensors)) and mode.shape_env:
                let_go(mode.shape_env)
            if isinstance(error, RuntimeError):  # torch would print the partial graph for a RuntimeError
                raise OfModel from error
            raise
        finally:
            for hook in hooks:
                hook.remove()
        tensors, noted = returned_as(returned, passed_on)
        self.note(noted)
        return tensors

    def _notice_below(self) -> None:
        if not self.known.derives:
            self.known.derives = True
            raise RuntimeError("this is to be traced below autograd")


_checked = Distribution.__init__
NO_AXES = torch.Size()


def _unchecked(
    self: Distribution, batch_shape: torch.Size = NO_AXES, event_shape: torch.Size = NO_AXES, *_: Any, **__: Any
) -> None:
    """Makes a distribution that checks no values: the model itself does, and a graph would hold for these alone."""
    _checked(self, batch_shape, event_shape, validate_args=False)


def returned_as(returned: Any, passed_on: list[Tensor]) -> tuple[tuple[Tensor, ...], Returned]:
    """The tensors in a model's output, and its structure.

    passed_on: the tensors that a module returned as it got them."""
    paths, spec = pytree.tree_flatten_with_path(open_output(returned))
    tensors = [(path, leaf) for path, leaf in paths if isinstance(leaf, Tensor)]
    leaves = [Tensor if isinstance(leaf, Tensor) else _constant(leaf) for _, leaf in paths]
    untouched = [i for i, (_, leaf) in enumerate(tensors) if any(leaf is t for t in passed_on)]
    names = [pytree.keystr(path) for path, _ in tensors]
    return tuple(leaf for _, leaf in tensors), Returned(leaves, spec, names, untouched)


class OfModel(Exception):
    """The model's forward raised an error while it was traced; that error is the `__cause__`."""


class NotCaptured:
    """Replaces an object in the output that may hold tensors of the model: the graph does not return it."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind.__name__}: not captured, call the model for it>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self!r} has no {name!r}")


def _constant(leaf: Any) -> Any:
    return leaf if isinstance(leaf, PLAIN) else NotCaptured(type(leaf))


class _Opened(dict):
    """The fields of a dataclass that is not registered with pytree, and its class."""

    kind: type


pytree.register_pytree_node(
    _Opened,
    lambda d: (list(d.values()), (d.kind, tuple(d))),
    lambda values, context: _opened(context[0], dict(zip(context[1], values, strict=True))),
    flatten_with_keys_fn=lambda d: ([(pytree.GetAttrKey(k), v) for k, v in d.items()], (d.kind, tuple(d))),
    serialized_type_name="fxlrp.Opened",
)


def _opened(kind: type, fields: dict[str, Any]) -> _Opened:
    out = _Opened(fields)
    out.kind = kind
    return out


def open_output(returned: Any) -> Any:
    """Replaces dataclasses in the output by pytree nodes, and all other objects too if that exposes no tensor."""
    opened = _open_dataclasses(returned)
    return opened if any(isinstance(t, Tensor) for t in pytree.tree_leaves(opened)) else open_objects(returned)


def _open_dataclasses(returned: Any) -> Any:

    def open_leaf(leaf: Any) -> Any:
        if not is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        return _opened(type(leaf), {f.name: _open_dataclasses(getattr(leaf, f.name)) for f in fields(leaf)})

    return pytree.tree_map(open_leaf, returned)


def close_output(opened: Any) -> Any:
    """The inverse of `open_output`."""

    def close_node(thing: Any) -> Any:
        if not isinstance(thing, _Opened):
            return thing
        kind: Any = thing.kind
        out = kind.__new__(kind)
        for name, value in thing.items():
            object.__setattr__(out, name, close_output(value))
        return out

    return pytree.tree_map(close_node, opened, is_leaf=lambda t: isinstance(t, _Opened))


def _note_identity(passed_on: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        if len(args) == 1 and out is args[0]:
            passed_on.append(out)

    return hook
