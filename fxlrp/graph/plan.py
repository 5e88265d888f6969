"""A rewritten graph ready to run, and its forms, one for each kind of call."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import fx

from fxlrp import acceleration
from fxlrp.capture.axes import Axes
from fxlrp.capture.confine import LOCK, tidy
from fxlrp.capture.model import Capture, CaptureMode
from fxlrp.capture.precision import no_autocast
from fxlrp.capture.symbols import hint
from fxlrp.errors import FxlrpError
from fxlrp.graph.probe import Probe
from fxlrp.graph.reads import Place
from fxlrp.nodes import copied, outputs_of
from fxlrp.recent import Recent
from fxlrp.reports.report import Report, row_of
from fxlrp.rules.per_sample import SampleAxis

FORMS = 16
"""The number of forms of a graph that are kept."""


class Form(NamedTuple):
    """A graph that returns a plan's outputs, and the indices among its outputs of further requested values."""

    graph: fx.GraphModule
    latent: list[int]


@dataclass
class Plan:
    """A rewritten graph, ready to run: inputs → (*outputs, *readouts), and the meaning of each of these.

    scores_shape: the shape of the explained output, samples first: [batch, classes], or another.
    """

    graph: fx.GraphModule
    capture: Capture
    readouts: dict[Place, list[int]]  # input tensor, or name → indices of its readouts among the graph's outputs
    positions: dict[int, int]  # index of a readout of looked-up vectors → index of the positions of their entries
    logits: int  # index of the logits that are explained
    explained: int  # index of the output they become: the logits themselves, or what `head` makes of them
    head: list[fx.Node]
    together: tuple[int, ...]  # indices of the outputs whose entries the logits join, if several are explained
    report: Report
    random: bool  # whether the graph draws random numbers
    active: frozenset[str]  # the names of the nodes that relevance goes through
    samples_separable: bool  # whether every node keeps the samples of a batch apart
    any_length: bool  # whether it holds for sequences of any length
    samples: dict[str, SampleAxis]  # where the samples are in the values of active nodes, by name, where that is known
    independent: bool = False  # whether classes don't exclude each other
    key: Hashable = None  # the key under which an explainer keeps it
    _causal: bool | None = field(default=None, repr=False)
    _forms: Recent[Form] = field(default_factory=lambda: Recent(FORMS), repr=False)

    def __post_init__(self) -> None:
        self.scores_shape = self.axes.rows(outputs_of(self.graph)[self.logits].meta["val"]).shape

    @property
    def axes(self) -> Axes:
        """The sample axes of a call."""
        return self.capture.axes

    @property
    def is_for_one(self) -> bool:
        """Whether each sample is explained alone: it takes its own branches, or can't be separated from the others."""
        return self.capture.mode is CaptureMode.THIS_INPUT or not self.samples_separable

    @property
    def causal(self) -> bool:
        """Whether each position of the logits [B, T, K] depends on no later entry of the sequence; found once."""
        if self._causal is None:
            self._causal = self._is_causal()
        return self._causal

    def _is_causal(self) -> bool:
        """Whether logits [B, T, K] depend only on entries of the sequence up to their own, tested at two entries: the
        first must reach the last position, and the last must reach the last position and no other."""
        outputs = outputs_of(self.graph)
        logits = outputs[self.logits]
        rows = self.axes.rows(logits.meta["val"])
        length = hint(rows.shape[1])
        if length is None:
            return False
        starts: dict[fx.Node, SampleAxis] = {}
        for place, ends in self.readouts.items():
            samples = 0 if isinstance(place, str) else self.axes.inputs[place]
            for node in (outputs[at] for at in ends):
                fit = [a for a, n in enumerate(node.meta["val"].shape) if a != samples and hint(n) == length]
                starts |= {node: SampleAxis(fit[0])} if fit else {}
        probe = Probe(self.graph, self.capture.inputs, starts)
        first, last = (probe.changes(i, {logits}) if starts else None for i in (0, length - 1))
        if first is None or last is None:
            return False
        by_first, by_last = (self.axes.rows(c[logits]).transpose(0, 1).flatten(1).any(1) for c in (first, last))
        return bool(by_first[-1] and by_last[-1] and not by_last[:-1].any())

    def in_its_types(self) -> AbstractContextManager:
        """A context to run the graph in: without autocast if it runs in float32 instead of half precision."""
        return no_autocast(self.capture.inputs) if self.capture.narrow else nullcontext()

    def form(
        self, one_sided: bool = False, at: Sequence[str] = (), small: bool = False, checkpoint: bool = False
    ) -> Form:
        """The graph for one kind of call, made when it is first needed.

        one_sided: for seeds ≥ 0, as they are without a contrast.
        at: modules and nodes whose values are returned too.  Raises FxlrpError for a name of nothing active.
        small: recomputes attention weights instead of storing them; checkpoint: recomputes whole segments.
        """
        key = (one_sided, tuple(at), small, checkpoint)
        with LOCK if self._forms.get(key) is None else nullcontext():
            form = self._forms.get(key)
            if form is None:
                with tidy():
                    form = self._forms.set(key, self._form(*key))
        return form

    def _form(self, one_sided: bool, at: tuple[str, ...], small: bool, checkpoint: bool) -> Form:
        if checkpoint:
            form = self.form(one_sided, at, small)
            outputs = outputs_of(form.graph)
            starts = [outputs[at] for several in self.readouts.values() for at in several]
            return Form(acceleration.checkpointed(form.graph, starts), form.latent)
        if small:
            form = self.form(one_sided, at)
            return Form(acceleration.without_squares(form.graph), form.latent)
        if not at:
            return Form(acceleration.specialized(self.graph, self.logits, self.active, one_sided), [])
        copy, nodes = copied(self.graph)
        outputs = outputs_of(copy)
        copy.graph.output_node().args = ((*outputs, *(nodes[self.named(name)] for name in at)),)
        copy.recompile()
        return Form(copy, list(range(len(outputs), len(outputs) + len(at))))

    def named(self, name: str) -> fx.Node:
        """The active node of that name, else the last active node inside the module of that name."""
        active = [n for n in self.graph.graph.nodes if n.op == "call_function" and n.name in self.active]
        paths = {n: row_of(n).module for n in active}
        inside = [n for n in active if f"{paths[n]}.".startswith(f"{name}.")]
        leaving = [n for n in inside if any(u not in inside for u in n.users)]
        matches = [n for n in active if n.name == name] or (leaving or inside)[-1:]
        if not matches:
            raise FxlrpError(
                f"at={name!r} names no module or node on the way of relevance; modules are, among others, "
                f"{', '.join(sorted({p for p in paths.values() if p})[:8]) or 'none'}."
            )
        return matches[0]
