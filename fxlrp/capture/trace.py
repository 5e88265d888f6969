"""Traces a flat model and tensors into a graph: by torch.export, by make_fx, or below autograd."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch._C._functorch import is_dead_tensor_wrapper  # type: ignore[attr-defined]
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensorMode, dispatch_functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from fxlrp.capture.buffers import buffers_of, copies, of_buffers, put_in
from fxlrp.capture.confine import alone, quiet
from fxlrp.capture.constants import evaluate_written_constants
from fxlrp.capture.derivatives import as_symbols, trace_below_autograd, transforming
from fxlrp.capture.files import files_outside
from fxlrp.capture.flat import Flat
from fxlrp.capture.functionalize import (
    functionalize_simple,
    inline_modes,
    plain_interface,
    restore_vocabulary,
    turns_on_autocast,
)
from fxlrp.capture.functions import recorded
from fxlrp.capture.state import gradients_kept
from fxlrp.capture.symbols import let_go
from fxlrp.nodes import values_of

aten = torch.ops.aten


@files_outside()
def trace_flat(flat: Flat, tensors: list[Tensor], dims: tuple | None) -> fx.GraphModule:
    """Traces the model on these tensors, with any size along the axes in `dims`; without `dims`, for these values."""
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


def _export(flat: Flat, tensors: list[Tensor], dims: tuple) -> fx.GraphModule:
    shapes = (dims,) if any(dims) else None
    with torch.enable_grad(), alone(), quiet():
        program = torch.export.export(flat, tuple(tensors), dynamic_shapes=shapes, strict=False)
        graph = program.module(check_guards=False)
        has_autocast = turns_on_autocast(graph)
        inline_modes(graph)
        if not has_autocast:
            literals = program.graph_signature.inputs_to_lifted_tensor_constants.values()
            evaluate_written_constants(graph, set(literals))
        if has_autocast or not functionalize_simple(graph):
            graph = program.run_decompositions({}).module(check_guards=False)  # this turns autocast's casts into ops
            inline_modes(graph)
            restore_vocabulary(graph)
    graph.graph.set_codegen(fx.graph.CodeGen())
    plain_interface(graph)
    fakes = [t for n in graph.graph.nodes for t in values_of(n) if isinstance(t, FakeTensor)]
    for symbols in {t.fake_mode.shape_env for t in fakes}:
        if symbols is not None:
            let_go(symbols)
    return fx.GraphModule(graph, graph.graph)  # without export's hooks, which check inputs at every call


def _trace(flat: Flat, tensors: list[Tensor]) -> fx.GraphModule:
    """Traces the ops that run on these values, including the Python branches that these values take."""
    options: dict[str, Any] = {"pre_dispatch": True, "_error_on_data_dependent_ops": False, "record_stack_traces": True}
    buffers = buffers_of(flat)
    with torch.enable_grad(), alone(), quiet():
        traced = make_fx(of_buffers(flat, buffers), **options)(*copies([*buffers, *tensors]))
        for node in traced.graph.find_nodes(op="get_attr"):  # tensors wrapped by torch.func became constants
            if is_dead_tensor_wrapper(operator.attrgetter(str(node.target))(traced)):
                flat.known.derives = True
        for node in traced.graph.find_nodes(op="call_function", target=aten.dropout.default):
            if not node.args[2]:  # functionalization refuses writes to its result, which may be its input
                node.target, node.args = aten.clone.default, node.args[:1]
        functional = dispatch_functionalize(
            fx.Interpreter(traced).run, FunctionalTensorMode(pre_dispatch=True, export=True)
        )
        with fx.traceback.preserve_node_meta():
            graph = make_fx(functional, **options)(*copies([*buffers, *tensors]))
    put_in(graph, buffers)
    inline_modes(graph)
    _note_values(graph, tensors)
    restore_vocabulary(graph)
    plain_interface(graph)
    return graph


def _derive(flat: Flat, tensors: list[Tensor], dims: tuple | None) -> fx.GraphModule:
    """Traces a model that takes derivatives, which are visible as ops only below autograd."""
    buffers = buffers_of(flat)
    given = copies([*buffers, *tensors])
    symbolic = given if dims is None else as_symbols(given, [None] * len(buffers) + list(dims))
    with alone(), quiet(), gradients_kept(flat):
        graph = trace_below_autograd(of_buffers(flat, buffers), symbolic)
    put_in(graph, buffers)
    if dims is None:
        _note_values(graph, tensors)
    else:
        mode = detect_fake_mode(symbolic)
        assert mode is not None
        assert mode.shape_env is not None
        for node in graph.graph.find_nodes(op="get_attr"):
            node.meta["val"] = mode.from_tensor(operator.attrgetter(str(node.target))(graph), static_shapes=True)
        let_go(mode.shape_env)
    restore_vocabulary(graph)
    plain_interface(graph)
    return graph


def _note_values(gm: fx.GraphModule, tensors: list[Tensor]) -> None:
    """Gives every node the `val` that export would: a fake tensor, all of one mode."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            n.meta["val"] = pytree.tree_map_only(Tensor, lambda t: mode.from_tensor(t, static_shapes=True), value)
            return value

    with torch.no_grad():
        Noting(gm).run(*(t.clone() for t in tensors))
