"""Records calls of torch.autograd.Function, whose custom backward tracing would lose: it sees their forward only.

While a model is traced, each call is recorded as one op.  If its backward is the derivative of its forward, the op is
then replaced by the forward's ops, which have rules; otherwise it stays, and the backward is its derivative.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.autograd.function import _SingleLevelFunction
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from fxlrp.capture.confine import only_here
from fxlrp.nodes import args_of, calls_at, target_of
from fxlrp.rules.calculus import differentiable

LIBRARY = torch.library.Library("fxlrp", "FRAGMENT")
LIBRARY.define("function(Tensor[] tensors, str key) -> Tensor[]")
OURS = ("torch.", "fxlrp.")
_calls: dict[str, OwnBackward] = {}
"""The calls recorded by the current trace."""
_keys = itertools.count()
_running: list[OwnBackward] = []
"""The calls whose values are being computed now; functions that they call are not recorded."""


class _Context(SimpleNamespace):
    """The context passed to a forward whose backward is not needed."""

    saved_tensors: tuple = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def _ignore(self, *_: Any) -> None:
        pass

    save_for_forward = mark_non_differentiable = set_materialize_grads = _ignore


class OwnBackward:
    """A call of a torch.autograd.Function as a function of its tensors."""

    broadcasts = False  # it takes only the shapes that it was written for

    def __init__(self, kind: Any, forward: Callable, args: tuple) -> None:
        leaves, self.spec = pytree.tree_flatten(args)
        self.kind, self.plain = kind, forward
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.leaves = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.whole: Any = None
        self.__name__ = self.__qualname__ = kind.__name__
        self.__module__ = __name__

    def as_kind(self, kind: type[OwnBackward]) -> OwnBackward:
        """A copy of another class, which rulebooks have rules for."""
        new = kind.__new__(kind)
        vars(new).update(vars(self))
        return new

    def _args(self, tensors: tuple[Tensor, ...]) -> tuple:
        it = iter(tensors)
        return pytree.tree_unflatten([next(it) if leaf is Tensor else leaf for leaf in self.leaves], self.spec)

    def __call__(self, *tensors: Tensor) -> Any:
        out = self.kind.apply(*self._args(tensors))
        return out if isinstance(out, Tensor) else [t for t in out if isinstance(t, Tensor)]

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        """Runs the forward alone."""
        context = () if _has_setup(self.kind) else (_Context(needs_input_grad=(False,) * len(self.leaves)),)
        self.whole = self.plain(*context, *self._args(tensors))
        return [t for t in _several(self.whole) if isinstance(t, Tensor)]

    def returned(self, tensors: list[Tensor]) -> Any:
        """The forward's return value, with these tensors in place of its own."""
        it = iter(tensors)
        several = [next(it) if isinstance(t, Tensor) else t for t in _several(self.whole)]
        return several[0] if isinstance(self.whole, Tensor) else tuple(several)


class Entrywise(OwnBackward):
    """A function with a custom backward that works entry by entry."""


class Stepwise(OwnBackward):
    """An entrywise step function, whose backward passes straight through its steps."""


class Layer(OwnBackward):
    """A call of a module whose weights are of a tensor class that can't be traced."""

    def __init__(self, module: nn.Module, args: tuple) -> None:
        super().__init__(type(module), module.forward, args)
        self.module = module

    def __call__(self, *tensors: Tensor) -> Any:
        args, kwargs = self._args(tensors)
        return self.module(*args, **kwargs)

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        (x, *others) = tensors
        if not isinstance(x, FakeTensor):
            self.whole = self(*tensors)
            return [self.whole]
        with unset_fake_temporarily():  # a real row shows the size and dtype of its output
            row = self(torch.zeros(*[1] * (x.ndim - 1), x.shape[-1], dtype=x.dtype, device=x.device))
        if others or not isinstance(row, Tensor) or row.shape[:-1] != (1,) * (x.ndim - 1):
            raise NotImplementedError(f"{self.__name__} does more than a product")
        self.whole = x.new_empty(*x.shape[:-1], row.shape[-1], dtype=row.dtype)
        return [self.whole]


def hide_layers(model: nn.Module, twin: nn.Module) -> None:
    """Makes calls of modules with untraceable weights opaque in the twin of a model."""
    for name, module in list(twin.named_modules()):
        weights = [*module._parameters.values(), *module._buffers.values()]
        if any(w is not None and _untraceable(w) for w in weights):
            vars(module)["forward"] = _record_layer(model.get_submodule(name))
            module._parameters, module._buffers, module._modules = {}, {}, {}


def _untraceable(w: Tensor) -> bool:
    return type(w).__module__.split(".")[0] != "torch" and not is_traceable_wrapper_subclass(w)


def _record_layer(module: nn.Module) -> Callable:
    def record(*args: Any, **kwargs: Any) -> Any:
        return _recorded(Layer(module, (args, kwargs)))

    return record


def _recorded(call: OwnBackward) -> Any:
    key = str(next(_keys))
    _calls[key] = call
    out = torch.ops.fxlrp.function(call.tensors, key)
    call.tensors = []
    return call.returned(out)


def _several(out: Any) -> tuple:
    return tuple(out) if isinstance(out, tuple | list) else (out,)


def _has_setup(kind: Any) -> bool:
    return kind.setup_context is not _SingleLevelFunction.setup_context


def _run(tensors: list[Tensor], key: str) -> list[Tensor]:
    call = _calls[key]
    _running.append(call)
    try:
        with torch.no_grad():
            return [t.clone() for t in call.forward(*tensors)]
    finally:
        _running.pop()


LIBRARY.impl("function", _run, "CompositeExplicitAutograd")
torch.library.register_fake("fxlrp::function", _run, lib=LIBRARY)


@contextmanager
def recorded() -> Iterator[None]:
    """Within it, records each call of a user's torch.autograd.Function in this thread as one op."""
    _calls.clear()
    with ExitStack() as stack:
        for kind in _kinds(torch.autograd.Function):
            stack.enter_context(_recording(kind))
        yield


def _kinds(base: Any) -> Iterator[Any]:
    """Users' subclasses that define a forward which writes into no input."""
    for kind in base.__subclasses__():
        yield from _kinds(kind)
        if kind.__module__.startswith(OURS) or "forward" not in vars(kind):
            continue
        code = [getattr(f, "__code__", None) for f in (kind.forward, kind.setup_context)]
        if not any(c and "mark_dirty" in c.co_names for c in code):
            yield kind


@contextmanager
def _recording(kind: Any) -> Iterator[None]:
    stored, original = vars(kind)["forward"], kind.forward

    def record(*args: Any) -> Any:
        context = () if _has_setup(kind) else args[:1]
        call = OwnBackward(kind, original, args[len(context) :])
        if _running or torch._C._are_functorch_transforms_active() or not any(map(differentiable, call.tensors)):
            return original(*args)
        return _recorded(call)

    kind.forward = staticmethod(only_here(record, original))
    try:
        yield
    finally:
        kind.forward = stored


def resolve_recorded(gm: fx.GraphModule, inputs: list[Tensor], plain_form: Callable[[fx.GraphModule], None]) -> None:
    """Replaces recorded calls in a traced graph by the functions themselves, or by the ops of their forwards.

    plain_form: the pass that every traced graph goes through.
    """
    recorded_nodes = gm.graph.find_nodes(op="call_function", target=torch.ops.fxlrp.function.default)
    if not recorded_nodes:
        return
    calls = [_written(node) for node in recorded_nodes]
    _calls.clear()
    for node, (operands, _) in calls_at(gm, calls, inputs).items():
        forward = None if isinstance(node.target, Layer) else _forward(node, plain_form)
        if forward is not None and _same_derivative(target_of(node), forward, operands):
            from fxlrp.patterns.take_apart import inline  # imported here to avoid a circular import

            inline(node, forward)
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _written(node: fx.Node) -> fx.Node:
    """Turns the op called with a key into a call of the recorded function with its tensors."""
    operands, key = args_of(node)
    node.target, node.args = _calls[key], tuple(operands)
    if isinstance(node.target.whole, Tensor):
        (value,) = node.meta["val"]
        node.meta["val"] = value
        for item in list(node.users):
            item.replace_all_uses_with(node)
            node.graph.erase_node(item)
    return node


def _forward(node: fx.Node, plain_form: Callable[[fx.GraphModule], None]) -> fx.GraphModule | None:
    """The forward's ops as a graph; None if it can't be traced."""
    values = [n.meta["val"] for n in args_of(node)]
    one = isinstance(node.meta["val"], Tensor)

    def forward(*tensors: Tensor) -> Any:
        out = target_of(node).forward(*tensors)
        return out[0] if one else out

    try:
        with torch.enable_grad(), values[0].fake_mode:
            graph = make_fx(forward, pre_dispatch=True)(*values)
    except Exception:  # a forward that calls NumPy, for example
        return None
    plain_form(graph)
    return graph


def _same_derivative(call: OwnBackward, forward: Callable, tensors: tuple) -> bool:
    """Whether the function's backward is the derivative of its forward's ops, or can't be run."""

    def pull(f: Callable) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_(differentiable(t)) for t in tensors]
        with torch.enable_grad():
            outputs = [t for t in _several(f(*leaves)) if differentiable(t)]
        generator = torch.Generator().manual_seed(0)
        seeds = [torch.randn(t.shape, generator=generator).to(t) for t in outputs]
        connected = [(t, g) for t, g in zip(outputs, seeds, strict=True) if t.requires_grad]
        wanted = [t for t in leaves if t.requires_grad]
        if not connected:
            return [torch.zeros_like(t) for t in wanted]
        ends, at_ends = zip(*connected, strict=True)
        gradients = torch.autograd.grad(ends, wanted, at_ends, allow_unused=True)
        return [torch.zeros_like(t) if d is None else d for t, d in zip(wanted, gradients, strict=True)]

    try:
        own = pull(call)
    except Exception:
        return True
    try:
        ops = pull(forward)
    except RuntimeError:  # a value that the derivative needs was overwritten in place
        return False
    return all(bool((a - b).abs().max() <= 1e-3 * a.abs().max()) for a, b in zip(own, ops, strict=True) if a.numel())
