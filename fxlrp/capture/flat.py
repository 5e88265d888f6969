"""The model as a function of flat tensors, and what it returns opened into these and closed again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields, is_dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.utils import _pytree as pytree

from fxlrp.capture.calls import call
from fxlrp.capture.derivatives import derivatives_noticed
from fxlrp.capture.flex import flex_attention_spelled
from fxlrp.capture.objects import PLAIN, open_objects
from fxlrp.capture.quantised import in_float
from fxlrp.capture.symbols import let_go

aten = torch.ops.aten


@dataclass
class Returned:
    """What a model returned when it was traced.  Kept outside the module: export undoes assignments to attributes."""

    leaves: list[Any]
    spec: pytree.TreeSpec
    names: list[str]
    untouched: list[int]  # outputs that the module they come from returned just as it got them


class Flat(nn.Module):
    """The model as a function of flat tensors, which is what export numbers its inputs and outputs by."""

    def __init__(self, model: nn.Module, rebuild: Callable[[Any], tuple[tuple, dict]], seen: list[Returned]) -> None:
        super().__init__()
        self.model = model
        self.rebuild = rebuild
        self.note = seen.append
        self.quantised = False
        self.known = SimpleNamespace(derives=False)  # whether it is traced below autograd; export puts back attributes

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        args, kwargs = self.rebuild(tensors)
        passed_on: list[Tensor] = []
        hooks = [
            m.register_forward_hook(_note_identity(passed_on))
            for m in self.model.modules()
            if m is not self.model and not isinstance(m, torch.jit.ScriptModule)  # which takes no hooks
        ]
        try:
            with (
                in_float() if self.quantised else nullcontext(),
                derivatives_noticed(self._notice_below),
                flex_attention_spelled(self._notice_below),
            ):
                returned = call(self.model, args, kwargs)
        except Exception as error:
            if (mode := detect_fake_mode(tensors)) and mode.shape_env:
                let_go(mode.shape_env)
            if isinstance(error, RuntimeError):  # as it is, torch would print the graph so far
                raise OfModel from error
            raise
        finally:
            for hook in hooks:
                hook.remove()
        paths, spec = pytree.tree_flatten_with_path(open_output(returned))
        found = [(path, leaf) for path, leaf in paths if isinstance(leaf, Tensor)]
        leaves = [Tensor if isinstance(leaf, Tensor) else _constant(leaf) for _, leaf in paths]
        untouched = [i for i, (_, leaf) in enumerate(found) if any(leaf is t for t in passed_on)]
        self.note(Returned(leaves, spec, [pytree.keystr(path) for path, _ in found], untouched))
        return tuple(leaf for _, leaf in found)

    def _notice_below(self) -> None:
        if not self.known.derives:
            self.known.derives = True
            raise RuntimeError("this is to be traced below autograd")


class OfModel(Exception):
    """What the model's forward raised while it was traced is the cause of this."""


class NotCaptured:
    """Stands in the output for an object that may hold tensors of the model, which the graph does not return."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return f"<{self.kind.__name__}: not captured, call the model for it>"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self!r} has no {name!r}")


def _constant(leaf: Any) -> Any:
    return leaf if isinstance(leaf, PLAIN) else NotCaptured(type(leaf))


class _Opened(dict):
    """The fields of a dataclass that pytree does not know, and the class."""

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
    """The same with its dataclasses as something that pytree knows; where there is no tensor then, any object."""
    known = _open_dataclasses(returned)
    return known if any(isinstance(t, Tensor) for t in pytree.tree_leaves(known)) else open_objects(returned)


def _open_dataclasses(returned: Any) -> Any:

    def known(leaf: Any) -> Any:
        if not is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        return _opened(type(leaf), {f.name: _open_dataclasses(getattr(leaf, f.name)) for f in fields(leaf)})

    return pytree.tree_map(known, returned)


def close_output(opened: Any) -> Any:
    """The inverse of `open_output`."""

    def made(thing: Any) -> Any:
        if not isinstance(thing, _Opened):
            return thing
        kind: Any = thing.kind
        out = kind.__new__(kind)
        for name, value in thing.items():
            object.__setattr__(out, name, close_output(value))
        return out

    return pytree.tree_map(made, opened, is_leaf=lambda t: isinstance(t, _Opened))


def _note_identity(passed_on: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        if len(args) == 1 and out is args[0]:
            passed_on.append(out)

    return hook
