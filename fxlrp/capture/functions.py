"""Functions with a backward of their own (torch.autograd.Function): tracing sees their forward, and loses what they say
its derivative is.

While a model is traced, each call of one is recorded whole, as one op.  Where its backward is the derivative of its
forward, the op then becomes the forward's ops, which have rules; else it stays, and the backward is its derivative.
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
from fxlrp.nodes import args_of, target_of
from fxlrp.rules.calculus import differentiable

LIBRARY = torch.library.Library("fxlrp", "FRAGMENT")
LIBRARY.define("function(Tensor[] tensors, str key) -> Tensor[]")
OURS = ("torch.", "fxlrp.")
_calls: dict[str, OwnBackward] = {}
"""The calls recorded by the trace under way."""
_keys = itertools.count()
_running: list[OwnBackward] = []
"""Those whose values are being computed, and what they call is none of the trace."""


class _Context(SimpleNamespace):
    """Stands for the context of a forward whose backward is not asked for."""

    saved_tensors: tuple = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def _ignore(self, *_: Any) -> None:
        pass

    save_for_forward = mark_non_differentiable = set_materialize_grads = _ignore


class OwnBackward:
    """A call of a torch.autograd.Function as a function of the tensors in it."""

    broadcasts = False  # it takes what it was written for

    def __init__(self, kind: Any, forward: Callable, args: tuple) -> None:
        leaves, self.spec = pytree.tree_flatten(args)
        self.kind, self.plain = kind, forward
        self.tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        self.leaves = [Tensor if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self.whole: Any = None
        self.__name__ = self.__qualname__ = kind.__name__
        self.__module__ = __name__

    def as_kind(self, kind: type[OwnBackward]) -> OwnBackward:
        """The same as one of a kind that rulebooks know."""
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
        """The forward alone."""
        context = () if _has_setup(self.kind) else (_Context(needs_input_grad=(False,) * len(self.leaves)),)
        self.whole = self.plain(*context, *self._args(tensors))
        return [t for t in _several(self.whole) if isinstance(t, Tensor)]

    def returned(self, tensors: list[Tensor]) -> Any:
        """What the forward returned, with these tensors in it."""
        it = iter(tensors)
        several = [next(it) if isinstance(t, Tensor) else t for t in _several(self.whole)]
        return several[0] if isinstance(self.whole, Tensor) else tuple(several)


class Entrywise(OwnBackward):
    """A function with a backward of its own that works entry by entry."""


class Stepwise(OwnBackward):
    """The same of one that goes in steps, which its backward passes over."""


class Layer(OwnBackward):
    """A call of a module whose weights are of a kind that can't be traced."""

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
        with unset_fake_temporarily():  # what it makes of a tensor like this, along the last axis
            row = self(torch.zeros(*[1] * (x.ndim - 1), x.shape[-1], dtype=x.dtype, device=x.device))
        if others or not isinstance(row, Tensor) or row.shape[:-1] != (1,) * (x.ndim - 1):
            raise NotImplementedError(f"{self.__name__} does more than a product")
        self.whole = x.new_empty(*x.shape[:-1], row.shape[-1], dtype=row.dtype)
        return [self.whole]


def hide_layers(model: nn.Module, twin: nn.Module) -> None:
    """Make the calls of modules with such weights opaque in the twin of a model."""
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
    """Within it, this thread's calls of a user's torch.autograd.Function are recorded as one op each."""
    _calls.clear()
    with ExitStack() as stack:
        for kind in _kinds(torch.autograd.Function):
            stack.enter_context(_recording(kind))
        yield


def _kinds(base: Any) -> Iterator[Any]:
    """The classes that have a forward of their own which writes into no input."""
    for kind in base.__subclasses__():
        yield from _kinds(kind)
        if kind.__module__.startswith(OURS) or "forward" not in vars(kind):
            continue
        code = [getattr(f, "__code__", None) for f in (kind.forward, kind.setup_context)]
        if not any(c and "mark_dirty" in c.co_names for c in code):
            yield kind


@contextmanager
def _recording(kind: Any) -> Iterator[None]:
    own, original = vars(kind)["forward"], kind.forward

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
        kind.forward = own


def settle(gm: fx.GraphModule, inputs: list[Tensor], plain_form: Callable[[fx.GraphModule], None]) -> None:
    """Put the recorded functions, or the ops of their forwards, in the place of the calls in a graph that was traced.

    plain_form: what is done to every graph that was traced.
    """
    found = gm.graph.find_nodes(op="call_function", target=torch.ops.fxlrp.function.default)
    if not found:
        return
    calls = [_written(node) for node in found]
    _calls.clear()
    given: dict[fx.Node, tuple] = {}

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n in calls:
                given[n] = self.fetch_args_kwargs_from_env(n)[0]
            return super().run_node(n)

    with torch.no_grad():
        Noting(gm).run(*(t.detach().clone() for t in inputs))
    for node in calls:
        forward = None if isinstance(node.target, Layer) else _forward(node, plain_form)
        if forward is not None and _same_derivative(target_of(node), forward, given[node]):
            from fxlrp.patterns.take_apart import inline  # here, since it imports what imports this

            inline(node, forward)
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _written(node: fx.Node) -> fx.Node:
    """The call of an op by its key → the function itself, called with the tensors."""
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
    """The forward's ops as a graph, if it is made of such."""
    values = [n.meta["val"] for n in args_of(node)]
    one = isinstance(node.meta["val"], Tensor)

    def forward(*tensors: Tensor) -> Any:
        out = target_of(node).forward(*tensors)
        return out[0] if one else out

    try:
        with torch.enable_grad(), values[0].fake_mode:
            graph = make_fx(forward, pre_dispatch=True)(*values)
    except Exception:  # as NumPy's functions do
        return None
    plain_form(graph)
    return graph


def _same_derivative(call: OwnBackward, forward: Callable, tensors: tuple) -> bool:
    """Whether the function's backward is the derivative of its forward's ops, or there is none that can be run."""

    def pull(f: Callable) -> list[Tensor]:
        leaves = [t.detach().clone().requires_grad_(differentiable(t)) for t in tensors]
        with torch.enable_grad():
            outputs = [t for t in _several(f(*leaves)) if differentiable(t)]
        chance = torch.Generator().manual_seed(0)
        seeds = [torch.randn(t.shape, generator=chance).to(t) for t in outputs]
        some = [(t, g) for t, g in zip(outputs, seeds, strict=True) if t.requires_grad]
        wanted = [t for t in leaves if t.requires_grad]
        if not some:
            return [torch.zeros_like(t) for t in wanted]
        ends, at_ends = zip(*some, strict=True)
        found = torch.autograd.grad(ends, wanted, at_ends, allow_unused=True)
        return [torch.zeros_like(t) if d is None else d for t, d in zip(wanted, found, strict=True)]

    try:
        own = pull(call)
    except Exception:
        return True
    try:
        of_ops = pull(forward)
    except RuntimeError:  # what its derivative needs is written over
        return False
    return all(bool((a - b).abs().max() <= 1e-3 * a.abs().max()) for a, b in zip(own, of_ops, strict=True) if a.numel())
