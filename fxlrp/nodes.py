"""Untyped access to nodes of torch.fx graphs, whose arguments and targets torch types as very wide unions."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch.utils import _pytree as pytree


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """The positional arguments of a node's call."""
    return node.args


def target_of(node: fx.Node) -> Any:
    """The function that a node calls."""
    return node.target


def leaves(node: fx.Node) -> list[Any]:
    """The leaves of a node's positional and keyword arguments, in pytree order."""
    return pytree.tree_leaves((node.args, node.kwargs))


def outputs_of(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose values a graph returns."""
    outputs: Any = gm.graph.output_node().args[0]
    return list(outputs)


def copied(gm: fx.GraphModule) -> tuple[fx.GraphModule, dict[fx.Node, fx.Node]]:
    """A copy of a graph over the same modules, and a map from each node to its copy."""
    graph = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(gm.graph, nodes))
    return fx.GraphModule(gm, graph), nodes
