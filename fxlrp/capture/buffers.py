"""Passes a model's buffers as inputs while the model is traced, so that it may write into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn


def buffers_of(model: nn.Module) -> list[Tensor]:
    """The buffers of a model's Python modules, each once."""
    return list({id(b): b for module in _modules(model) for b in module._buffers.values() if b is not None}.values())


def of_buffers(model: nn.Module, buffers: Sequence[Tensor]) -> Callable:
    """model(*tensors) as a function of its buffers and of the tensors."""

    def lifted(*given: Tensor) -> Any:
        with _in_place_of(model, buffers, given[: len(buffers)]):
            return model(*given[len(buffers) :])

    return lifted


@contextmanager
def _in_place_of(model: nn.Module, buffers: Sequence[Tensor], others: Sequence[Tensor]) -> Iterator[None]:
    """Within it, the model has other tensors for its buffers."""
    before = [(module._buffers, dict(module._buffers)) for module in _modules(model)]
    by_id = {id(b): other for b, other in zip(buffers, others, strict=True)}
    try:
        for held, old in before:
            held.update({name: by_id.get(id(b), b) for name, b in old.items()})
        yield
    finally:
        for held, old in before:
            held.clear()
            held.update(old)


def put_in(gm: fx.GraphModule, buffers: Sequence[Tensor]) -> None:
    """Replaces the first inputs of a graph by these buffers."""
    inputs = gm.graph.find_nodes(op="placeholder")
    for i, (node, buffer) in enumerate(zip(inputs, buffers, strict=False)):
        if node.users:
            gm.register_buffer(f"_buffer_{i}", buffer, persistent=False)
            with gm.graph.inserting_before(node):
                held = gm.graph.get_attr(f"_buffer_{i}")
            held.meta = dict(node.meta)
            node.replace_all_uses_with(held)
        gm.graph.erase_node(node)
    gm.recompile()


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies that a trace may write into."""
    return [t.detach().clone() for t in tensors]


def _modules(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
