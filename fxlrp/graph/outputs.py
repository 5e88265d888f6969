"""Finds the explained output of a captured graph, and the logits that it is made of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxlrp.capture.flat import NotCaptured
from fxlrp.capture.model import Capture
from fxlrp.capture.symbols import hint
from fxlrp.emit import emit
from fxlrp.errors import FxlrpError
from fxlrp.graph.analyse import can_carry
from fxlrp.graph.probe import nudged
from fxlrp.nodes import args_of, outputs_of, values_of
from fxlrp.ops import SCALINGS, SUMS, about

aten = torch.ops.aten


Output = str | int | tuple[int, ...] | None
"""The explained output of a model: its name, its index, or the indices of several."""


class Explained(NamedTuple):
    """The explained output of a graph.

    outputs: the graph's outputs, and after them the logits if the model returns only what it makes of them.
    place: the index of the explained output.  logits: that of its logits, often the same.
    head: the nodes that make the output of the logits.
    """

    outputs: list[fx.Node]
    place: int
    logits: int
    head: list[fx.Node]

    @property
    def end(self) -> fx.Node:
        """The logits, from which relevance starts."""
        return self.outputs[self.logits]


def explained_output(captured: Capture, output: Output) -> Explained:
    """The output of a captured graph that is explained.  Raises FxlrpError if there is none by that name or index."""
    outputs = outputs_of(captured.graph)
    if isinstance(output, tuple):
        return Explained(outputs, output[0], len(outputs) - 1, [])
    explained = logits = _index_of(captured, outputs, output)
    head = _probability_head(outputs[explained])
    if head:  # probabilities are explained by their logits
        outputs, logits = [*outputs, args_of(head[0])[0]], len(outputs)
    return Explained(outputs, explained, logits, head)


def _index_of(captured: Capture, outputs: list, output: str | int | None) -> int:
    """The index of the requested output tensor; by default of the one named logits, or of the first float output that
    is no box."""
    names = captured.output_names
    floats = [i for i, n in enumerate(outputs) if isinstance(n, fx.Node) and can_carry(n)]
    if not floats:
        arrays = any(leaf.kind is np.ndarray for leaf in captured.returned.leaves if isinstance(leaf, NotCaptured))
        raise FxlrpError(
            "The model returns numpy arrays, which say nothing of where they come from: let forward return the tensor "
            "itself, without .numpy(), and convert what is returned outside."
            if arrays
            else "The model returns no float tensor that could be explained: let forward return one, of a distribution "
            "its logits or its mean."
        )
    if isinstance(output, int):
        chosen = [output] if output in floats else []
    else:
        chosen = [i for i in floats if (output or "logits") in re.findall(r"\w+", names[i])]
    if output is not None and not chosen:
        available = ", ".join(f"{i}: {names[i] or 'the output itself'}" for i in floats)
        raise FxlrpError(f"output={output!r} is no float output of the model; there are {available}.")
    scores = [i for i in floats if not re.search(r"box(es)?\b", names[i])]  # coordinates are no classes
    return (chosen or [i for i in floats if "logits" in names[i]] or scores or floats)[0]


def put_together(gm: fx.GraphModule, places: tuple[int, ...]) -> None:
    """Appends an output that concatenates the entries of several outputs, [batch, entries].

    Raises FxlrpError if they have no axis of samples in common.
    """
    end, outputs = gm.graph.output_node(), outputs_of(gm)
    several = [outputs[i] for i in places]
    sizes = {hint(size) for n in several for size in n.meta["val"].shape[:1] or (0,)}
    if len(sizes) > 1 or 0 in sizes:
        shapes = ", ".join(str(tuple(n.meta["val"].shape)) for n in several)
        raise FxlrpError(f"The target depends on outputs of shapes {shapes}, which have no axis of samples in common.")
    with gm.graph.inserting_before(end):
        rows = [
            emit(gm.graph, n, aten.unsqueeze.default, n, 1)
            if n.meta["val"].ndim == 1
            else emit(gm.graph, n, aten.flatten.using_ints, n, 1)
            for n in several
        ]
        joined = emit(gm.graph, several[0], aten.cat.default, rows, 1)
    end.args = ((*outputs, joined),)


SQUEEZES = (aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
SIGMOIDS = (aten.sigmoid.default, aten.log_sigmoid.default)


def _probability_head(output: fx.Node) -> list[fx.Node]:
    """The nodes from logits to `output`, if it is their softmax over the classes, their sigmoid, the logarithm of one,
    or a rescaled single score, whose constants could absorb all relevance; else none."""
    head: list[fx.Node] = []
    node = output
    while (
        about(node.target).copies
        or node.target in SIGMOIDS
        or _rescales(node)
        or (node.target in SQUEEZES and (_one_score(node) or _of_rows(node)))
    ):
        head.insert(0, node)
        node = args_of(node)[0]
    if about(node.target).kind == "softmax" and node.meta["val"].ndim == 2 and node.args[1] in (1, -1):
        return [node, *head]
    return head if any(n.target in SIGMOIDS or _rescales(n) or _of_rows(n) or _of_reals(n) for n in head) else []


def score_rows(gm: fx.GraphModule, scores: fx.Node) -> None:
    """Makes a vector of scores, one per row, the only class of each row: [rows, 1]."""
    with gm.graph.inserting_after(scores):
        rows = emit(gm.graph, scores, aten.unsqueeze.default, scores, -1)
    with gm.graph.inserting_after(rows):
        vector = emit(gm.graph, scores, aten.squeeze.dim, rows, -1)
    scores.replace_all_uses_with(vector, delete_user_cb=lambda user: user is not rows)


def spell_reals(gm: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
    """Makes an output of complex numbers that never have an imaginary part, as the power y · ȳ, of its real part."""
    wanted = {n for n in outputs_of(gm) if isinstance(n, fx.Node) and _complex(n)}
    for change in (torch.clone, nudged):
        if wanted:
            runner = fx.Interpreter(gm, garbage_collect_values=False)
            with torch.no_grad():
                try:
                    runner.run(*(change(t.detach()) if _is_dense(t) else t.detach().clone() for t in inputs))
                except (RuntimeError, IndexError, ValueError):  # the network refuses the nudged values
                    return
            wanted = {n for n in wanted if _is_real(runner.env[n])}
    for node in wanted:
        with gm.graph.inserting_before(gm.graph.output_node()):
            real = emit(gm.graph, node, aten.real.default, node)
            whole = emit(gm.graph, node, aten._to_copy.default, real, dtype=node.meta["val"].dtype)
        gm.graph.output_node().replace_input_with(node, whole)


def _is_dense(t: Tensor) -> bool:
    return t.layout is torch.strided and (t.is_floating_point() or t.is_complex())


def _is_real(z: Tensor) -> bool:
    """Whether the imaginary part of complex numbers is rounding alone, and the real part is not zero."""
    largest = z.real.abs().max() if z.numel() else z.new_zeros(()).real
    return bool(largest > 0) and bool(z.imag.abs().max() <= 4 * torch.finfo(z.dtype).eps * largest)


def _of_reals(node: fx.Node) -> bool:
    """Whether a node makes complex numbers of real ones."""
    return node.target is aten._to_copy.default and _complex(node) and not _complex(args_of(node)[0])


def _complex(node: fx.Node) -> bool:
    return any(v.is_complex() for v in values_of(node))


def _of_rows(node: fx.Node) -> bool:
    """Whether a node makes a vector of scores of the rows that `score_rows` made of it."""
    source = args_of(node)[0]
    return node.target is aten.squeeze.dim and source.target is aten.unsqueeze.default


def are_independent(model: nn.Module, head: Sequence[fx.Node] = ()) -> bool:
    """Whether classes don't exclude each other: their sigmoid is the output, or the model's config says so, as those of
    transformers do."""
    says = getattr(getattr(model, "config", None), "problem_type", None)
    return says == "multi_label_classification" or any(n.target in SIGMOIDS for n in head)


def _rescales(node: fx.Node) -> bool:
    """Whether a node adds a number to the single score of each sample, multiplies or divides it by a positive number,
    or multiplies or divides any value by one."""
    if node.target not in (*SUMS, *SCALINGS) or not isinstance(node.args[1], int | float) or node.kwargs:
        return False
    if node.target in SCALINGS:
        return node.args[1] == 1 or (node.args[1] > 0 and _one_score(node))
    return _one_score(node)


def _one_score(node: fx.Node) -> bool:
    """Whether a node's value is one number per sample, [B] or [B, 1, …], or a single number."""
    return all(isinstance(n, int) and n == 1 for n in node.meta["val"].shape[1:])
