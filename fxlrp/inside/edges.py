"""Edges: relevance that goes from one module's output into another's input directly, past all others that are named.

The graph is cut at each module's output.  From the output of the network backwards, what arrives at a module is passed
on to its input and, through residual streams and reshapes, to the outputs before it, where it ends: an edge each.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from torch import Tensor

from fxlrp.capture.objects import open_objects
from fxlrp.engine.seeds import Question
from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.inside.blocks import nodes_of
from fxlrp.inside.places import samples_at
from fxlrp.inside.runs import Asked, Run, calls, joined_classes, relevance_of, run
from fxlrp.nodes import outputs_of
from fxlrp.relevance_pass import pull
from fxlrp.reports.report import Tabled
from fxlrp.rules.per_sample import sample_sum
from fxlrp.rules.quantities import as_pair

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer

OUTPUT = "output"


@dataclass(frozen=True, repr=False)
class Edges(Tabled):
    """Relevance between the modules of a network.

    nodes: the modules' names from the input to the output: the inputs' first, then the modules, "output" last.
    relevance: what goes from the i-th directly into the j-th [B, N, N], so that a row sums to the i-th's relevance.
    target: the class explained per sample [B], or None where a callable target was.
    """

    nodes: tuple[str, ...]
    relevance: Tensor
    target: Tensor | None = None
    rules: str = ""
    labels: tuple[str, ...] = field(default=(), repr=False)

    @property
    def node(self) -> Tensor:
        """The relevance of each node [B, N]; of the output, that which starts there."""
        rows = self.relevance.sum(2)
        return torch.cat([rows[:, :-1], self.relevance[:, :, -1].sum(1, keepdim=True)], 1)

    def top(self, most: int = 30, index: int = 0) -> list[tuple[str, str, float]]:
        """The edges (from, to, relevance) of sample `index` with the most |relevance|, the strongest first."""
        r = self.relevance[index]
        order = r.abs().flatten().argsort(descending=True, stable=True)[:most].tolist()
        places = (divmod(i, len(self.nodes)) for i in order)
        return [(self.nodes[i], self.nodes[j], float(r[i, j])) for i, j in places if r[i, j]]

    def table(self, most: int = 30, index: int = 0) -> Table:
        """A rich table of the strongest edges of a sample."""
        total = float(self.node[index, -1].abs()) or 1.0
        out = Table(
            title=f"{len(self.nodes)} nodes, the strongest edges", caption="share: of what arrives at the output"
        )
        for column in ("from", "to", "relevance", "share"):
            out.add_column(column, justify="right" if column in ("relevance", "share") else "left")
        for source, to, r in self.top(most, index):
            out.add_row(source, to, f"{r:+.4g}", f"{r / total:+.1%}")
        return out

    def as_dict(self, index: int = 0) -> dict[str, Any]:
        """All of a sample as JSON takes it."""
        return {
            "rules": self.rules,
            "target": None if self.target is None else int(self.target[index]),
            "nodes": [{"name": n, "relevance": float(r)} for n, r in zip(self.nodes, self.node[index], strict=True)],
            "edges": [{"from": s, "to": t, "relevance": r} for s, t, r in self.top(len(self.nodes) ** 2, index)],
        }

    def save(self, path: str | Path, *, index: int = 0, top: int = 30) -> Path:
        """Write sample `index` to a file and return its path: a page (.html), a drawing (.svg) or all of it (.json).

        top: how many edges a page and a drawing show.

        Raises FxlrpError for another extension, and for a path that can't be written.
        """
        from fxlrp.inside.circuit_page import drawing, page
        from fxlrp.show.files import write

        path, kind = Path(path), Path(path).suffix.lower()
        if kind == ".json":
            return write(path, json.dumps(self.as_dict(index), indent=1))
        if kind not in (".html", ".svg"):
            raise FxlrpError(f"{path} is none of .html, .svg and .json.")
        return write(path, page(self, index, top) if kind == ".html" else drawing(self, index, top))

    def __repr__(self) -> str:
        return f"<Edges between {len(self.nodes)} nodes>"


def edges_between(
    explainer: Explainer,
    args: tuple,
    kwargs: dict[str, Any],
    question: Question,
    names: Sequence[str] | None,
    depth: int | None,
) -> Edges:
    """The edges between modules for a call: see `Explainer.edges`."""
    args, kwargs = open_objects((args, kwargs))
    relevance: list[Tensor] = []
    classes = []
    with torch.inference_mode(False), torch.enable_grad():
        for call in calls(explainer, args, kwargs, question):
            modules = nodes_of(call.plan, names, depth)
            with call.plan.in_its_types():
                rows, of_call = _edges(call, list(modules.values()))
            relevance.append(rows)
            classes.append(of_call)
            inputs = [_input_name(call.plan, i) for i in call.plan.readouts]
    target = joined_classes(classes)
    nodes = (*inputs, *modules, OUTPUT)
    return Edges(nodes, torch.cat(relevance), target, explainer.rulebook.name)


def _input_name(plan: Plan, i: int | str) -> str:
    return i if isinstance(i, str) else plan.capture.parameters[i]


def _edges(call: Asked, modules: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Relevance from each source to each node [B, N, N], and the classes explained."""
    ran = run(call, modules, cut=True)
    shares = ran.opened.shares
    if shares is None:
        sides = [_rows(ran, seed, modules) for seed in ran.seeds]
        return ran.summed([[side] for side in sides])[0], ran.classes
    whole = run(call, ())  # the shares are those of the whole of relevance, through a graph that is not cut
    assert whole.opened.shares is not None
    shares.measuring, shares.factors = False, whole.opened.shares.factors
    sides = []
    for seed, of_whole in zip(ran.seeds, whole.seeds, strict=True):
        pull(whole.end, _inputs(whole), [of_whole])
        sides.append(_rows(ran, seed, modules))
    return ran.summed([[side] for side in sides])[0], ran.classes


def _inputs(ran: Run) -> list[Tensor]:
    return [ran.forward.out[at] for several in ran.call.plan.readouts.values() for at in several]


def _rows(ran: Run, seed: Tensor, modules: Sequence[str]) -> Tensor:
    """Relevance from each source to each node [B, N, N]: from the output backwards, what has arrived at each module
    goes on to the cuts before it."""
    plan, opened = ran.call.plan, ran.opened
    leaves = [opened.values[m] for m in modules]
    sources = [*_inputs(ran), *leaves]
    arrived = [torch.zeros_like(t) for t in leaves]
    columns: list[Tensor] = []
    ends = [*((opened.arrived[m], i) for i, m in enumerate(modules)), (ran.end, None)]
    for end, i in reversed(ends):
        g = seed if i is None else arrived[i]
        before = len(sources) if i is None else len(sources) - len(leaves) + i
        passed = pull(end, sources[:before], [g])[0]
        for k, more in enumerate(passed[len(sources) - len(leaves) :]):
            arrived[k] = arrived[k] + more
        columns.append(_column(ran, sources, passed, modules))
    return torch.stack([*[torch.zeros_like(columns[0])] * len(plan.readouts), *reversed(columns)], 2)


def _column(ran: Run, sources: Sequence[Tensor], passed: Sequence[Tensor], modules: Sequence[str]) -> Tensor:
    """What goes from each node into one of them [B, N]."""
    plan, book = ran.call.plan, ran.call.explainer.rulebook
    batch, outputs = int(plan.axes.count(ran.call.tensors)), outputs_of(plan.graph)
    by_name = {n.name: n for n in plan.graph.graph.nodes}
    nodes = [
        *(outputs[at] for several in plan.readouts.values() for at in several),
        *(by_name[name] for name in modules),
    ]
    sums = [
        sample_sum(as_pair(relevance_of(book, a, g)), samples_at(plan, node)).expand(batch)
        for node, a, g in zip(nodes, sources, passed, strict=False)
    ]
    zero = torch.zeros_like(sums[0])
    sums += [zero] * (len(sources) - len(passed))
    of_inputs, at = [], 0
    for several in plan.readouts.values():
        of_inputs.append(torch.stack(sums[at : at + len(several)]).sum(0))
        at += len(several)
    return torch.stack([*of_inputs, *sums[at:], zero], 1)
