"""Writing into a captured graph: nodes with the metadata (`val`, stack trace, module) that later passes read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx


def emit(graph: fx.Graph, like: fx.Node, op: Callable, *args: Any, **kwargs: Any) -> fx.Node:
    """Append op(*args, **kwargs) at the graph's insertion point, as part of what `like` stands for."""
    node = graph.call_function(op, args, kwargs)
    values = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    node.meta = {k: v for k, v in like.meta.items() if k in ("stack_trace", "nn_module_stack")}
    fakes = [v for v in torch.utils._pytree.tree_leaves(values) if isinstance(v, torch._subclasses.FakeTensor)]
    with fakes[0].fake_mode:
        node.meta["val"] = op(*values[0], **values[1])
    return node


def replace(node: fx.Node, write: Callable[..., fx.Node]) -> fx.Node:
    """Put what `write(call, *args, **kwargs)` builds in the place of `node`; call(op, …) appends a node."""
    with node.graph.inserting_before(node):
        new = write(lambda op, *a, **k: emit(node.graph, node, op, *a, **k), *node.args, **node.kwargs)
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new
