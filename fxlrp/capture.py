"""Capture: a model and example inputs → a flat, functional ATen graph with a symbolic batch.

torch.export does the tracing.  The captured graph takes the tensors found in (args, kwargs) in pytree order and
returns the tensors found in the model's output; everything else in them is constant for one *signature*.
"""

from __future__ import annotations

import inspect
import operator
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch._C._functorch import is_dead_tensor_wrapper  # type: ignore[attr-defined]
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.utils import _pytree as pytree

from fxlrp.axes import Axes
from fxlrp.caches import caches_cleaned
from fxlrp.confine import alone, quiet
from fxlrp.derivatives import as_symbols, derivatives_noticed, trace_below_autograd, transforming
from fxlrp.errors import FxlrpError
from fxlrp.flex import flex_attention_spelled
from fxlrp.functions import hide_layers, recorded, settle
from fxlrp.nodes import args_of, outputs_of, target_of
from fxlrp.objects import PLAIN, close_objects, open_objects
from fxlrp.patterns.straight_through import join_straight_through
from fxlrp.precision import autocast_types
from fxlrp.quantised import hide_packed, in_float
from fxlrp.state import gradients_kept
from fxlrp.twin import twin

aten = torch.ops.aten


class Way(Enum):
    """How a model was captured."""

    ANY_BATCH = "torch.export, for batches of any size"
    THIS_BATCH = "torch.export, for batches of one size"
    THIS_INPUT = "make_fx, for the values of one sample: the model branches on them"


@dataclass
class Capture:
    """A captured model.

    graph: takes the input tensors, returns the output tensors, both flat; weights are attributes shared with the model.
    inputs: the example tensors it was captured with, two samples along each batch axis.
    names: where each input tensor stands in the call, e.g. ``args[0]`` or ``kwargs['input_ids']``.
    parameters: what the model's forward calls each, e.g. ``x`` or ``input_ids``.
    way: how it was captured, which says for which calls the graph holds.
    axes: where the samples of the call are.
    returned: the structure of what the model returns, and where each output tensor stands in it.
    lengths: the axes of each input that may be lengths of sequences.
    narrow: the types of the call's tensors and of the model's outputs, where some of the model is in half precision
    and `graph` and `inputs` are in float32; empty for all other models.
    branches: whether the model branches on values, so that it was traced as it runs on its inputs.
    nearly: whether the graph gives the model's output but for rounding, as that of a quantised model does.
    """

    graph: fx.GraphModule
    inputs: list[Tensor]
    names: list[str]
    parameters: list[str]
    way: Way
    returned: _Returned
    axes: Axes
    lengths: list[tuple[int, ...]]
    narrow: list[list[torch.dtype]] = field(default_factory=list)
    branches: bool = False
    nearly: bool = False

    @property
    def any_length(self) -> bool:
        """Whether it holds for sequences of any length: each has a symbol of its own, which no op was fixed by."""
        if self.way is not Way.ANY_BATCH:
            return False
        shapes = [n.meta["val"].shape for n in self.graph.graph.find_nodes(op="placeholder")]
        batches = {
            s for n, a in zip(shapes, self.axes.inputs, strict=True) if a is not None for s in free_symbols(n[a])
        }
        sizes = [shape[a] for shape, at in zip(shapes, self.lengths, strict=True) for a in at]
        return bool(sizes) and all(free_symbols(n) - batches for n in sizes)

    @property
    def answers_apart(self) -> bool:
        """Whether the model answers by itself, and the graph explains."""
        return bool(self.narrow) or self.nearly

    def unflatten(self, tensors: tuple[Tensor, ...]) -> Any:
        """The model's own output object, with `tensors` in the places of its tensors."""
        it = iter(tensors)
        leaves = [next(it) if leaf is Tensor else leaf for leaf in self.returned.leaves]
        return close_objects(_close(pytree.tree_unflatten(leaves, self.returned.spec)))

    @property
    def output_names(self) -> list[str]:
        """Where each output tensor stands in what the model returns, e.g. ``['logits']``."""
        return self.returned.names


@dataclass(frozen=True)
class Signature:
    """What calls have in common that can share a graph: structure, constants, dtypes, autocast, devices and `shapes`
    but for the batch; or, for graphs of any length, `like` alone, which leaves out the lengths of sequences.  What only
    the `kind` of is the same, with as many axes, have their samples at the same axes as a rule."""

    shapes: tuple
    like: tuple
    kind: tuple


def call(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """What the model returns for arguments that `open_objects` may have opened."""
    args, kwargs = close_objects((args, kwargs))
    return model(*args, **kwargs)


def answer(model: nn.Module, args: tuple, kwargs: dict) -> Any:
    """What the model returns, without gradients unless it takes some itself and leaves it to its caller to allow it."""
    try:
        with torch.no_grad():
            return call(model, args, kwargs)
    except RuntimeError as error:
        if "does not require grad" not in str(error):
            raise
    with torch.enable_grad():
        return call(model, args, kwargs)


def split_tensors(args: tuple, kwargs: dict) -> tuple[list[Tensor], Callable[[Any], tuple[tuple, dict]]]:
    """The tensors in a call, and a function that rebuilds (args, kwargs) from others like them."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def rebuild(new: Any) -> tuple[tuple, dict]:
        it = iter(new)
        return pytree.tree_unflatten([next(it) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    return tensors, rebuild


def names_of(args: tuple, kwargs: dict) -> list[str]:
    """Where each tensor stands in a call."""
    paths = pytree.tree_leaves_with_path((args, kwargs))
    return [pytree.keystr(path) for path, leaf in paths if isinstance(leaf, Tensor)]


def signature(args: tuple, kwargs: dict, axes: Axes) -> Signature:
    """The signature of a call whose samples are at these axes."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = iter(axes.inputs)

    def describe(leaf: Any, axis: int | None, length: Any = None) -> Any:
        if not isinstance(leaf, Tensor):
            if isinstance(leaf, np.ndarray):
                return leaf.dtype, leaf.shape, leaf.tobytes()
            return (type(leaf), leaf) if isinstance(leaf, PLAIN) else Same(leaf)
        lengths = _lengths(leaf, axis) if length else ()
        shape = ["batch" if i == axis else length if i in lengths else n for i, n in enumerate(leaf.shape)]
        return tuple(shape), leaf.dtype, leaf.layout, leaf.device, finite(leaf)

    at = [next(places) if isinstance(leaf, Tensor) else None for leaf in leaves]
    common = (str(spec), autocast_types([leaf for leaf in leaves if isinstance(leaf, Tensor)]))
    like = (*common, *(describe(leaf, axis, "length") for leaf, axis in zip(leaves, at, strict=True)))
    kind = (str(spec), *(leaf.ndim if isinstance(leaf, Tensor) else None for leaf in leaves))
    return Signature((*common, *map(describe, leaves, at)), like, kind)


class Same:
    """An object as a key: equal to itself alone, and kept alive, so that its identity is not given to another."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.thing is self.thing

    def __hash__(self) -> int:
        return id(self.thing)


def finite(t: Tensor) -> bool:
    """Whether there is no infinity in a tensor, as there is in masks: rules look out for it."""
    dense = t.is_floating_point() and t.layout is torch.strided
    return not dense or not bool(t.isinf().any())


def equal(a: Tensor, b: Tensor) -> bool:
    """torch.equal, of sparse tensors too."""
    return torch.equal(*(t if t.layout is torch.strided else t.to_dense() for t in (a, b)))


SHORTEST = 2


def _lengths(t: Tensor, axis: int | None) -> tuple[int, ...]:
    """The axes that may be lengths of a sequence: of token ids, their mask or kinds [B, T], of vectors [B, T, F], of a
    mask [T, T] that samples share.  Export fixes lengths of 0 and 1, and can't tell one of 2 from the batch."""
    axes: tuple[int, ...]
    if axis is None:
        axes = (0, 1) if t.ndim == 2 and t.shape[0] == t.shape[1] else ()
    else:
        vectors = t.ndim == 3 and axis < 2
        tokens = t.ndim == 2 and not t.is_floating_point() and not t.is_complex()
        axes = (1 - axis,) if vectors or tokens else ()
    return tuple(a for a in axes if t.shape[a] > SHORTEST)


@dataclass
class _Returned:
    """What a model returned when it was traced.  Kept outside the module: export undoes assignments to attributes."""

    leaves: list[Any]
    spec: pytree.TreeSpec
    names: list[str]
    untouched: list[int]  # outputs that the module they come from returned just as it got them


class _Flat(nn.Module):
    """The model as a function of flat tensors, which is what export numbers its inputs and outputs by."""

    def __init__(self, model: nn.Module, rebuild: Callable[[Any], tuple[tuple, dict]], seen: list[_Returned]) -> None:
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
                _let_go(mode.shape_env)
            if isinstance(error, RuntimeError):  # as it is, torch would print the graph so far
                raise _OfModel from error
            raise
        finally:
            for hook in hooks:
                hook.remove()
        paths, spec = pytree.tree_flatten_with_path(open_output(returned))
        found = [(path, leaf) for path, leaf in paths if isinstance(leaf, Tensor)]
        leaves = [Tensor if isinstance(leaf, Tensor) else _constant(leaf) for _, leaf in paths]
        untouched = [i for i, (_, leaf) in enumerate(found) if any(leaf is t for t in passed_on)]
        self.note(_Returned(leaves, spec, [pytree.keystr(path) for path, _ in found], untouched))
        return tuple(leaf for _, leaf in found)

    def _notice_below(self) -> None:
        if not self.known.derives:
            self.known.derives = True
            raise RuntimeError("this is to be traced below autograd")


class _OfModel(Exception):
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


def _close(opened: Any) -> Any:
    """The inverse of `open_output`."""

    def made(thing: Any) -> Any:
        if not isinstance(thing, _Opened):
            return thing
        kind: Any = thing.kind
        out = kind.__new__(kind)
        for name, value in thing.items():
            object.__setattr__(out, name, _close(value))
        return out

    return pytree.tree_map(made, opened, is_leaf=lambda t: isinstance(t, _Opened))


def _note_identity(passed_on: list[Tensor]) -> Callable[[nn.Module, Any, Any], None]:
    def hook(module: nn.Module, args: Any, out: Any) -> None:
        if len(args) == 1 and out is args[0]:
            passed_on.append(out)

    return hook


def capture(
    model: nn.Module,
    args: tuple,
    kwargs: dict,
    axes: Axes | None = None,
    *,
    fixed: bool = False,
    longer: bool = False,
    branches: bool = False,
    itself: bool = False,
) -> Capture:
    """Trace `model` on (args, kwargs), whose samples are at `axes` (the first ones), while no other thread traces.

    What is traced is a twin of the model, which other threads may run meanwhile; `itself`, or if its twin does not run
    where it does, the model.

    A symbolic batch and lengths of texts are asked for first, and of vectors and shared masks if calls differ in them
    (`longer`), which takes torch several times as long; then the batch alone, unless `fixed`; if the model fixes its
    batch, it is traced at the shapes given; if it branches on values, or is known to (`branches`), as it runs on the
    first sample.

    Raises FxlrpError, with the line in the user's model, if no way succeeds.
    """
    tensors, rebuild = split_tensors(args, kwargs)
    axes = Axes.first(tensors) if axes is None else axes
    batch = axes.count(tensors)
    seen: list[_Returned] = []
    traced = model if itself else _twin(model)
    flat = _Flat(traced, rebuild, seen)
    if traced is not model:
        hide_layers(model, traced)
        flat.quantised = hide_packed(traced)
    exact = [t.detach().clone() for t in tensors]
    pair = axes.each(_two, exact)  # export specialises 0 and 1
    single = axes.each(lambda t, axis: t.narrow(axis, 0, 1), pair)
    auto = torch.export.Dim.AUTO
    dims = tuple(None if axis is None else {axis: auto} for axis in axes.inputs)
    lengths = [_lengths(t, axis) for t, axis in zip(tensors, axes.inputs, strict=True)]
    texts = [longer or (t.ndim == 2 and axis is not None) for t, axis in zip(tensors, axes.inputs, strict=True)]
    sized = tuple(
        {**(dim or {}), **dict.fromkeys(at if asked else (), auto)} or None
        for dim, at, asked in zip(dims, lengths, texts, strict=True)
    )
    ways: list[tuple[Way, list[Tensor], Callable[[list[Tensor]], fx.GraphModule]]] = [
        *([(Way.ANY_BATCH, pair, lambda ts: _traced(flat, ts, sized))] if sized != dims else []),
        (Way.ANY_BATCH, pair, lambda ts: _traced(flat, ts, dims)),
        (Way.THIS_BATCH, exact, lambda ts: _traced(flat, ts, (None,) * len(ts))),
        (Way.THIS_INPUT, single, lambda ts: _traced(flat, ts, None)),
    ]
    errors: list[Exception] = []
    tried = ways[-2:] if fixed or axes.whole else ways
    for at, (way, inputs, trace) in enumerate(tried):
        if branches and way is not Way.THIS_INPUT:
            continue
        try:
            with caches_cleaned(model):
                graph = trace(inputs)
            settle(graph, inputs, _plain_ops)
        except FxlrpError:
            raise
        except Exception as problem:
            cause = problem.__cause__ if isinstance(problem, _OfModel) else None
            errors.append(cause if isinstance(cause, Exception) else problem)
            branches |= isinstance(cause, GuardOnDataDependentSymNode)
            continue
        places = zip(graph.graph.find_nodes(op="placeholder"), axes.inputs, strict=True)
        open_ = (free_symbols(n.meta["val"].shape[axis]) for n, axis in places if axis is not None)
        if way is Way.ANY_BATCH and not all(open_):
            if tried[at + 1][0] is way:  # of one length, it may hold for any batch
                continue
            way = Way.THIS_BATCH
            if axes.count(inputs) != batch:  # it was specialised to our two
                continue
        _mark_identities(graph, seen[-1].untouched)
        names, called = names_of(args, kwargs), parameters_of(model, args, kwargs)
        return Capture(
            graph, inputs, names, called, way, seen[-1], axes, lengths, branches=branches, nearly=flat.quantised
        )
    _run_as_it_is(model, *rebuild(exact))
    if traced is not model and _refuses(traced, *rebuild(exact)):
        return capture(model, args, kwargs, axes, fixed=fixed, longer=longer, branches=branches, itself=True)
    raise FxlrpError(_why(errors[0])) from errors[0]


def parameters_of(model: nn.Module, args: tuple, kwargs: dict) -> list[str]:
    """What the model's forward calls each tensor in a call, as "input_ids" or "batch.pixels"."""
    try:
        known = list(inspect.signature(model.forward).parameters)
    except ValueError:  # a traced module's forward
        forward: Any = model.forward
        known = [a.name for a in forward.schema.arguments][1:]

    def called(path: tuple[Any, ...]) -> str:
        first, *rest = (str(getattr(key, "idx", getattr(key, "key", getattr(key, "name", key)))) for key in path[1:])
        first = known[int(first)] if path[0].idx == 0 and int(first) < len(known) else first
        return ".".join([first, *rest])

    leaves = pytree.tree_leaves_with_path((args, kwargs))
    return [called(path) for path, leaf in leaves if isinstance(leaf, Tensor)]


def _twin(model: nn.Module) -> nn.Module:
    """A twin of the model, or the model, if there can be none: attributes that copy in a way of their own."""
    try:
        return twin(model)
    except Exception:
        return model


def _mark_identities(gm: fx.GraphModule, places: list[int]) -> None:
    """An identity module at the output leaves no op in the graph; an alias stands for it."""
    output = gm.graph.output_node()
    outputs = outputs_of(gm)
    for i in places:
        with gm.graph.inserting_before(output):
            alias = gm.graph.call_function(aten.alias.default, (outputs[i],))
        alias.meta = dict(outputs[i].meta)
        outputs[i] = alias
    output.args = (tuple(outputs),)


def free_symbols(size: int | torch.SymInt) -> set:
    """The symbols in a size of a captured tensor: none where export found it to be fixed."""
    return size.node.expr.free_symbols if isinstance(size, torch.SymInt) else set()


def hint(size: int | torch.SymInt) -> int:
    """A size in the example that the graph was captured with."""
    found: Any = size.node.hint if isinstance(size, torch.SymInt) else size
    return found


def _two(t: Tensor, axis: int) -> Tensor:
    """The first sample and the last, of an empty batch two that are zero."""
    if not t.shape[axis]:
        return t.new_zeros([2 if i == axis else n for i, n in enumerate(t.shape)])
    return torch.cat([t.narrow(axis, 0, 1), t.narrow(axis, t.shape[axis] - 1, 1)], axis).detach()


def _tensors(node: fx.Node) -> Iterator[Tensor]:
    yield from (v for v in pytree.tree_leaves(node.meta.get("val")) if isinstance(v, Tensor))


def _traced(flat: _Flat, tensors: list[Tensor], dims: tuple | None) -> fx.GraphModule:
    """The graph for these tensors, whose axes in `dims` are of any size; for their very values without `dims`."""
    if not flat.known.derives:
        try:
            with recorded():
                graph = _trace(flat, tensors) if dims is None else _export(flat, tensors, dims)
        except Exception as error:
            flat.known.derives |= transforming(error)
            if not flat.known.derives:
                raise
        if not flat.known.derives:
            return graph
    return _derive(flat, tensors, dims)


def _export(flat: _Flat, tensors: list[Tensor], dims: tuple) -> fx.GraphModule:
    shapes = (dims,) if any(dims) else None
    with torch.enable_grad(), alone(), quiet():
        program = torch.export.export(flat, tuple(tensors), dynamic_shapes=shapes, strict=False)
        graph = program.module(check_guards=False)
        spell = _turns_on_autocast(graph)
        inline_modes(graph)
        if spell or not functionalize_simple(graph):
            graph = program.run_decompositions({}).module(check_guards=False)  # casts of torch.autocast are ops then
            inline_modes(graph)
            _restore_vocabulary(graph)
    graph.graph.set_codegen(fx.graph.CodeGen())
    _plain_interface(graph)
    fakes = [t for n in graph.graph.nodes for t in _tensors(n) if isinstance(t, FakeTensor)]
    for symbols in {t.fake_mode.shape_env for t in fakes}:
        if symbols is not None:
            _let_go(symbols)
    return fx.GraphModule(graph, graph.graph)  # without export's hooks, which check inputs at every call


def _let_go(symbols: ShapeEnv) -> None:
    """Take apart the circle from the symbols of shapes to fake tensors and back, which goes through C++, where Python's
    garbage collector does not see it: none of this would ever be freed."""
    symbols.tracked_fakes = []
    symbols.fake_tensor_cache.clear()


def _trace(flat: _Flat, tensors: list[Tensor]) -> fx.GraphModule:
    """The ops that run on these very values, Python's branches taken as they fall."""
    how: dict[str, Any] = {"pre_dispatch": True, "_error_on_data_dependent_ops": False, "record_stack_traces": True}
    with torch.enable_grad(), alone(), quiet():
        seen = make_fx(flat, **how)(*(t.clone() for t in tensors))
        for node in seen.graph.find_nodes(op="get_attr"):  # what torch.func wrapped is a constant to this trace
            if is_dead_tensor_wrapper(operator.attrgetter(str(node.target))(seen)):
                flat.known.derives = True
        for node in seen.graph.find_nodes(op="call_function", target=aten.dropout.default):
            if not node.args[2]:  # functionalization takes its result, which may be its input, for unwritable
                node.target, node.args = aten.clone.default, node.args[:1]
        functional = dispatch_functionalize(
            fx.Interpreter(seen).run, FunctionalTensorMode(pre_dispatch=True, export=True)
        )
        with fx.traceback.preserve_node_meta():
            graph = make_fx(functional, **how)(*(t.clone() for t in tensors))
    inline_modes(graph)
    _note_values(graph, tensors)
    _restore_vocabulary(graph)
    _plain_interface(graph)
    return graph


def _derive(flat: _Flat, tensors: list[Tensor], dims: tuple | None) -> fx.GraphModule:
    """The same of a model that takes derivatives, which are ops below autograd alone."""
    given = tensors if dims is None else as_symbols(tensors, dims)
    with alone(), quiet(), gradients_kept(flat):
        graph = trace_below_autograd(flat, given)
    if dims is None:
        _note_values(graph, tensors)
    else:
        mode = detect_fake_mode(given)
        assert mode is not None
        assert mode.shape_env is not None
        for node in graph.graph.find_nodes(op="get_attr"):
            node.meta["val"] = mode.from_tensor(operator.attrgetter(str(node.target))(graph), static_shapes=True)
        _let_go(mode.shape_env)
    _restore_vocabulary(graph)
    _plain_interface(graph)
    return graph


def _note_values(gm: fx.GraphModule, tensors: list[Tensor]) -> None:
    """Give every node the `val` that export would: a tensor without storage, all in one mode."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            n.meta["val"] = pytree.tree_map_only(Tensor, lambda t: mode.from_tensor(t, static_shapes=True), value)
            return value

    with torch.no_grad():
        Noting(gm).run(*(t.clone() for t in tensors))


MODES = {  # how many arguments stand before the submodule in the calls that stand for a mode
    torch.ops.higher_order.wrap_with_set_grad_enabled: 1,
    torch.ops.higher_order.wrap_with_autocast: 4,
}


def _turns_on_autocast(gm: fx.GraphModule) -> bool:
    """Whether a block of the graph is under torch.autocast, turned on in the model."""
    graphs = [m.graph for m in gm.modules() if isinstance(m, fx.GraphModule)]
    blocks = [n for g in graphs for n in g.nodes if n.target is torch.ops.higher_order.wrap_with_autocast]
    return any(block.args[2] for block in blocks)


def inline_modes(gm: fx.GraphModule) -> None:
    """Put the bodies of `torch.no_grad` and `torch.autocast` blocks in the place of the calls they became."""
    for node in list(gm.graph.nodes):
        if node.target not in MODES:
            continue
        body = node.args[MODES[node.target]]
        inner = operator.attrgetter(str(body.target))(gm)
        inline_modes(inner)
        operands = iter(node.args[MODES[node.target] + 1 :])
        copies = {n: next(operands) for n in inner.graph.find_nodes(op="placeholder")}
        with gm.graph.inserting_before(node):
            outputs: Any = gm.graph.graph_copy(inner.graph, copies)
            if node.args[0] is False:  # what is made without gradients is detached
                outputs = [_detached(gm.graph, n) for n in outputs]
        for item in list(node.users):
            item.replace_all_uses_with(outputs[args_of(item)[1]])
            gm.graph.erase_node(item)
        gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()


def _detached(graph: fx.Graph, node: fx.Node) -> fx.Node:
    detached = graph.call_function(aten.detach.default, (node,))
    detached.meta = dict(node.meta)
    return detached


def _plain_interface(gm: fx.GraphModule) -> None:
    """Nothing but the computation: no guards, no assertions on metadata, no detach, nothing written back to inputs, no
    views that hold for the strides of one run alone."""
    join_straight_through(gm)
    _name_convolutions(gm)
    for node in reversed(gm.graph.nodes):
        if node.target in (aten.detach.default, aten.detach_.default):  # relevance is not stopped where training is
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
        elif node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif (
            node.op == "call_module"
            or node.target is torch._C._set_grad_enabled
            or str(node.target).startswith(("aten._assert", "aten.copy_"))
        ):
            gm.graph.erase_node(node)
    gm.graph.eliminate_dead_code()
    gm.recompile()


def _plain_ops(gm: fx.GraphModule) -> None:
    """The same, of what was run without gradients, which may have written in place what its derivative needs."""
    _plain_interface(gm)
    functionalize_simple(gm)


CONVOLUTIONS = {  # by how many axes a picture has, and whether they are transposed
    (1, False): aten.conv1d.default,
    (2, False): aten.conv2d.default,
    (3, False): aten.conv3d.default,
    (1, True): aten.conv_transpose1d.default,
    (2, True): aten.conv_transpose2d.input,
    (3, True): aten.conv_transpose3d.input,
}


def _name_convolutions(gm: fx.GraphModule) -> None:
    """The one op that torch makes of all convolutions, as TorchScript records it → those it stands for."""
    for node in gm.graph.nodes:
        if node.target in (aten.convolution.default, aten._convolution.default, aten._convolution.deprecated):
            x, w, b, stride, padding, dilation, transposed, more, groups = node.args[:9]
            rest = (padding, more, groups, dilation) if transposed else (padding, dilation, groups)
            node.target, node.args = CONVOLUTIONS[len(stride), transposed], (x, w, b, stride, *rest)


def functionalize_simple(gm: fx.GraphModule) -> bool:
    """Replace in-place ops by their functional twins; False where something else sees the mutated tensor.

    torch's own functionalization is complete but costs more than the whole export (2.3 s for a 50-layer network), and
    nearly every in-place op of real models (`relu_`, `add_` on a fresh tensor) is of this simple kind.
    """
    position = {node: i for i, node in enumerate(gm.graph.nodes)}
    swaps: list[tuple[fx.Node, Any]] = []
    for node in gm.graph.nodes:
        if getattr(node.target, "__module__", "") == "torch._functorch.predispatch":  # inside of vmap
            return False
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        twin = _functional_twin(node)
        base = node.args[0]
        views = [u for u in base.users if u is not node and _aliases(u)]
        if twin is None or base.op != "call_function" or (_aliases(base) and not _was_mutating(base)) or views:
            return False
        swaps.append((node, twin))
    for node, twin in swaps:
        base = args_of(node)[0]
        node.target = twin
        base.replace_all_uses_with(node, delete_user_cb=lambda u, at=position[node]: position[u] > at)
    gm.recompile()
    return True


def _functional_twin(node: fx.Node) -> Any:
    """`relu` for `relu_`, if it gives the same tensor: same shape and dtype as the one it wrote into."""
    op = target_of(node)
    name, overload = op._schema.name.split("::")[1], op._overloadname
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    twin = getattr(packet, overload, None)
    others = [a.meta["val"] for a in node.all_input_nodes[1:] if isinstance(a.meta.get("val"), Tensor)]
    mine = node.meta["val"]
    same = all(torch.promote_types(o.dtype, mine.dtype) == mine.dtype and o.ndim <= mine.ndim for o in others)
    return twin if same and isinstance(node.args[0], fx.Node) else None


def _aliases(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.target is operator.getitem or (schema is not None and any(r.alias_info for r in schema.returns))


def _was_mutating(node: fx.Node) -> bool:
    return node.target._schema.is_mutable if hasattr(node.target, "_schema") else False


NATIVE: dict[Any, tuple[Any, Callable[..., tuple]]] = {
    aten._native_batch_norm_legit_no_training.default: (
        aten.batch_norm.default,
        lambda x, w, b, mean, var, momentum, eps: (x, w, b, mean, var, False, momentum, eps, False),
    ),
    aten.native_layer_norm.default: (aten.layer_norm.default, lambda x, shape, w, b, eps: (x, shape, w, b, eps)),
    aten.native_group_norm.default: (
        aten.group_norm.default,
        lambda x, w, b, n, c, size, groups, eps: (x, groups, w, b, eps),
    ),
}
"""What functionalization makes of norms, with their statistics beside the result → the ops themselves."""


def _restore_vocabulary(gm: fx.GraphModule) -> None:
    """Undo what functionalization renames: `batch_norm` became a triple, a write a copy, a cast `_to_copy`."""
    for node in list(gm.graph.nodes):
        if node.target is aten._to_copy.default and node.kwargs.keys() == {"dtype"}:
            node.target, node.args, node.kwargs = aten.to.dtype, (node.args[0], node.kwargs["dtype"]), {}
        if node.target is aten.copy.default:  # only the source's values are copied
            target, source = node.args[:2]
            with gm.graph.inserting_before(node):
                alike = gm.graph.call_function(aten.type_as.default, (source, target))
            alike.meta = {**node.meta, "val": source.meta["val"].to(node.meta["val"].dtype)}
            node.target, node.args, node.kwargs = aten.expand_as.default, (alike, target), {}
        elif node.target in NATIVE and len(node.users) == 1:
            (item,) = node.users
            op, arguments = NATIVE[node.target]
            with gm.graph.inserting_before(node):
                whole = gm.graph.call_function(op, arguments(*node.args))
            whole.meta = item.meta
            item.replace_all_uses_with(whole)
            gm.graph.erase_node(item)
            gm.graph.erase_node(node)
    gm.recompile()


def _run_as_it_is(model: nn.Module, args: tuple, kwargs: dict) -> None:
    """Tell a model that refuses its inputs from one that can't be traced.  Raises FxlrpError for the former."""
    if error := _refuses(model, args, kwargs):
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise FxlrpError(
            f"The model itself refuses these inputs ({said}); check their number, shape and type."
        ) from error


def _refuses(model: nn.Module, args: tuple, kwargs: dict) -> Exception | None:
    """What the model raises when it is called so, if it does."""
    try:
        answer(model, args, kwargs)
    except Exception as error:
        return error
    return None


def _why(error: Exception) -> str:
    """One sentence on why a model could not be traced, with the user's line, and a way out."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    own = [f for f in traceback.extract_tb(error.__traceback__) if not _of_torch(f.filename)]
    said = [ln.strip() for ln in text.splitlines() if ln.strip().startswith("File ") and not _of_torch(ln)]
    lines = [f'File "{f.filename}", line {f.lineno}, in {f.name}: {f.line}' for f in own] or said
    where = f" at {lines[-1]}" if lines else ""
    if transforming(error):
        return (
            f"This model takes derivatives inside forward, or maps over samples, by torch.func{where}: write them out "
            "in torch operations, or convert the module they are taken of (the energy, not the force)."
        )
    return (
        f"This model can't be traced ({type(error).__name__}: {first}){where}; write that line in torch operations "
        "(torch.where for a branch on values), or convert the submodule without it."
    )


def _of_torch(file: str) -> bool:
    return "/torch/" in file or file.startswith(str(Path(__file__).parent))
