"""Runs a graph captured in half precision in float32, because half precision can't hold relevance.

Relevance spreads over all entries of a layer, so that most of it is below what float16 can hold, and rules subtract
sums that bfloat16 rounds to the same number.  The weights stay as they are stored; each is cast where it is used and
again in the relevance pass, so that no second copy of them is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import Argument
from torch.utils import _pytree as pytree

from fxlrp.errors import FxlrpError, first_line
from fxlrp.nodes import values_of

aten = torch.ops.aten
WIDER = {torch.float16: torch.float32, torch.bfloat16: torch.float32, torch.complex32: torch.complex64}


def widened(thing: Any) -> Any:
    """Converts each tensor or dtype in half precision among the leaves of `thing` to float32."""

    def wide(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dtype in WIDER:
            return leaf.to(WIDER[leaf.dtype])
        return WIDER.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf

    return pytree.tree_map(wide, thing)


def cast(w: Tensor) -> Tensor:
    """Casts a stored tensor to float32; the result's storage refers to the original, for `casts_made_again`."""
    wide = w.detach().to(WIDER[w.dtype])
    vars(wide.untyped_storage())["made_of"] = w  # views share the storage
    return wide


def stored(node: fx.Node) -> fx.Node:
    """The node of the stored tensor if `node` is a cast of it, else `node` itself."""
    return node.all_input_nodes[0] if node.target is cast else node


def widen(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> bool:
    """Makes a graph compute in float32 what it computed in half precision; returns False if that is nothing.

    Raises FxlrpError where an op does not take float32, and where an op reads a value's bits, which differ in float32.
    """
    from fxlrp.reports.report import row_of  # imported here to avoid a circular import

    half = [n for n in gm.graph.nodes if _is_half(n)]
    for node in half:
        for reader in (n for n in (node, *node.users) if n.target is aten.view.dtype):
            row = row_of(reader)
            raise FxlrpError(
                f"{row.op} at {row.source} reads the bits of a value in half precision, and relevance needs that value "
                "in float32; take that line out of the model."
            )
    for node in half:
        if node.op == "get_attr":
            for user in list(node.users):
                with gm.graph.inserting_before(user):
                    wide = gm.graph.call_function(cast, (node,))
                wide.meta = {**node.meta, "val": widened(node.meta["val"])}
                user.replace_input_with(node, wide)
        else:
            node.meta["val"] = widened(node.meta["val"])
    if half:
        for node in gm.graph.nodes:
            node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), _wider_type)
        gm.recompile()
        with torch.no_grad():
            _Trying(gm).run(*widened(inputs))
    return bool(half)


class _Trying(fx.Interpreter):
    """Runs a graph; raises FxlrpError with the op and its line where one fails."""

    def run_node(self, n: fx.Node) -> Any:
        from fxlrp.reports.report import row_of

        try:
            return super().run_node(n)
        except Exception as error:
            row, reason = row_of(n), first_line(error)
            raise FxlrpError(
                f"{row.op} at {row.source} does not run in float32 ({reason}), which relevance of a model in half "
                "precision needs; write that line in ops that do."
            ) from error


def _is_half(node: fx.Node) -> bool:
    return any(v.dtype in WIDER for v in values_of(node))


def _wider_type(argument: Argument) -> Argument:
    return WIDER.get(argument, argument) if isinstance(argument, torch.dtype) else argument


def look_up_before_cast(gm: fx.GraphModule) -> None:
    """Casts the rows looked up in a table instead of the whole table."""
    for node in gm.graph.find_nodes(op="call_function", target=aten.embedding.default):
        table, *rest = node.args
        if table.target is cast:
            with gm.graph.inserting_before(node):
                rows = gm.graph.call_function(node.target, (*table.args, *rest), node.kwargs)
            node.target, node.args, node.kwargs = aten.to.dtype, (rows, node.meta["val"].dtype), {}
    gm.graph.eliminate_dead_code()


@contextmanager
def casts_made_again() -> Iterator[None]:
    """Within it, autograd saves a weight instead of its cast, and casts it again in the relevance pass."""

    def pack(t: Tensor) -> Any:
        made_of = getattr(t.untyped_storage(), "made_of", None)
        return t if made_of is None else (made_of, t.size(), t.stride(), t.storage_offset())

    def unpack(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else widened(kept[0]).as_strided(*kept[1:])

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


@contextmanager
def no_autocast(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Within it, torch.autocast is off on the devices of `tensors`."""
    with ExitStack() as stack:
        for kind in {t.device.type for t in tensors}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def autocast_types(tensors: Iterable[Tensor]) -> tuple[torch.dtype | None, ...]:
    """The dtype that torch.autocast now casts to on the device of each of `tensors`; None where it is off."""
    kinds = [t.device.type for t in tensors]
    on = {k: k != "meta" and torch.is_autocast_enabled(k) for k in kinds}
    return tuple(torch.get_autocast_dtype(k) if on[k] else None for k in kinds)
