"""Reports the treatment of every node of a graph."""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree
from torch import fx

from fxlrp.reports.mass import Mass

OURS = Path(__file__).parents[1]
KINDS = ("rule", "structural", "generic", "inactive")


@dataclass(frozen=True)
class NodeReport:
    """One node: its name and op, the kind of treatment, its rule, and its place in the user's model.

    arrives, leaves: relevance at its output, and relevance passed on to its inputs, if a call was weighed.
    """

    name: str
    op: str
    kind: str
    rule: str
    module: str
    source: str
    arrives: Mass | None = None
    leaves: Mass | None = None


@dataclass(frozen=True)
class Conservation:
    """The sum of relevance at the output (`seed`), at the inputs (`read`), and at every node between."""

    seed: float
    read: float
    nodes: list[NodeReport] = field(repr=False)
    rulebook: str

    @property
    def lost(self) -> dict[str, float]:
        """The relevance that each node, by name, does not pass on, summed over samples; negative if the node adds
        some."""
        return {n.name: n.arrives.sum - (n.leaves or Mass()).sum for n in self.nodes if n.arrives is not None}

    def table(self, least: float = 1e-3) -> Table:
        """A rich table of the nodes that lose or add at least the share `least` of the seed."""
        out = Table(
            title=f"{self.read:.4g} of {self.seed:.4g} arrives at the input, by rulebook {self.rulebook}",
            caption=f"nodes that keep all but {least:g} of the seed are left out",
        )
        for column in ("node", "op", "rule", "arrives", "leaves", "lost", "module", "source"):
            out.add_column(
                column, justify="right" if column in ("arrives", "leaves", "lost") else "left", overflow="fold"
            )
        lost = self.lost
        for n in self.nodes:
            if abs(lost[n.name]) >= least * abs(self.seed):
                sums = [f"{v:.4g}" for v in ((n.arrives or Mass()).sum, (n.leaves or Mass()).sum, lost[n.name])]
                out.add_row(n.name, n.op, n.rule or n.kind, *sums, n.module, escape(n.source.split("  ")[0]))
        return out

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def __str__(self) -> str:
        return f"{self.read:.4g} of {self.seed:.4g} arrives at the input"


class Printed(Tree):
    """A rich tree that print() and a notebook show, too."""

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)


def as_text(shown: Table | Tree) -> str:
    """What rich shows, as plain text."""
    console = Console(file=io.StringIO(), record=True, width=120)
    console.print(shown)
    return console.export_text().rstrip()


def as_html(*shown: Table | Tree) -> str:
    """What rich shows, as HTML with colours."""
    console = Console(file=io.StringIO(), record=True, width=120)
    for each in shown:
        console.print(each)
    return console.export_html(inline_styles=True, code_format="<pre>{code}</pre>")


class Tabled(ABC):
    """What is printed, and shown in a notebook, as its table."""

    @abstractmethod
    def table(self) -> Table:
        """A rich table of it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def __str__(self) -> str:
        return as_text(self.table())

    def _repr_html_(self) -> str:
        return as_html(self.table())


@dataclass(frozen=True, repr=False)
class Report:
    """Every node of a graph, by kind: it has a rule, is structural, gets the generic rule, or is inactive.

    mode: how the graph was captured, and for which calls it holds.
    left_out: the inputs that are not explained, by name, with the reason.
    edges: relevance passed from a node to one of its inputs, by name, if a call was weighed.
    """

    nodes: list[NodeReport]
    rulebook: str
    mode: str = ""
    left_out: dict[str, str] = field(default_factory=dict)
    edges: dict[tuple[str, str], Mass] = field(default_factory=dict, repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """The number of nodes of each kind: rule, structural, generic, inactive."""
        tally = Counter(n.kind for n in self.nodes)
        return {kind: tally[kind] for kind in KINDS}

    def table(self, *, nodes: bool = True) -> Table:
        """A rich table with a row per node (or, without `nodes`, per op and rule), and totals below."""
        totals = ", ".join(f"{n} {kind}" for kind, n in self.counts.items())
        without = "".join(f"\nnot explained: {name} ({why})" for name, why in self.left_out.items())
        out = Table(
            title=f"{len(self.nodes)} nodes by rulebook {self.rulebook}",
            caption=f"{totals}\ncaptured by {self.mode}{escape(without)}",
            box=None,
        )
        colour = {"rule": "green", "structural": "cyan", "generic": "bold red", "inactive": "dim"}
        if nodes:
            for column in ("node", "op", "kind", "rule", "module", "source"):
                out.add_column(column, overflow="fold", no_wrap=column == "op")
            for n in self.nodes:
                source = escape(n.source.split("  ")[0])
                out.add_row(n.name, n.op, n.kind, n.rule, n.module, source, style=colour[n.kind])
            return out
        for column in ("op", "kind", "rule", "nodes", "first at"):
            out.add_column(column, overflow="fold", no_wrap=column == "op")
        groups: dict[tuple[str, str, str], list[NodeReport]] = {}
        for n in self.nodes:
            groups.setdefault((n.op, n.kind, n.rule), []).append(n)
        for (op, kind, rule), members in sorted(groups.items(), key=lambda kv: (KINDS.index(kv[0][1]), -len(kv[1]))):
            first = members[0].module or members[0].source.split("  ")[0]
            out.add_row(op, kind, rule, str(len(members)), first, style=colour[kind])
        return out

    def weighed(self, edges: dict[tuple[str, str], Mass]) -> Report:
        """A copy of the report with the mass of relevance that passed along `edges`."""
        arrives: dict[str, Mass] = {}
        leaves: dict[str, Mass] = {}
        for (node, source), mass in edges.items():
            leaves[node] = leaves.get(node, Mass()) + mass
            arrives[source] = arrives.get(source, Mass()) + mass
        nodes = [replace(n, arrives=arrives.get(n.name), leaves=leaves.get(n.name)) for n in self.nodes]
        return replace(self, nodes=nodes, edges=edges)

    def conservation(self) -> Conservation:
        """The sum of relevance at every node of a weighed call, from the output to the input."""
        seeded = sum((m for (node, _), m in self.edges.items() if node == "output"), Mass())
        read = sum((m for (_, at), m in self.edges.items() if at.startswith("readout")), Mass())
        passed = [n for n in reversed(self.nodes) if n.arrives is not None]
        return Conservation(seeded.sum, read.sum, passed, self.rulebook)

    def to_dict(self) -> dict[str, object]:
        """Everything as plain data, ready for JSON; relevance that arrives and leaves as its sum, if it was weighed."""
        rows = []
        for n in self.nodes:
            row: dict[str, object] = {f: getattr(n, f) for f in ("name", "op", "kind", "rule", "module", "source")}
            row |= {f: mass.sum for f in ("arrives", "leaves") if (mass := getattr(n, f)) is not None}
            rows.append(row)
        about = {"rulebook": self.rulebook, "captured": self.mode, "left_out": self.left_out, "counts": self.counts}
        return {**about, "nodes": rows}

    def tree(self, depth: int = 99) -> Printed:
        """A tree of the relevance that arrives at each module from outside and leaves it, with nodes below modules.

        depth: the number of module levels shown.
        """
        home = {n.name: tuple(filter(None, n.module.split("."))) for n in self.nodes}
        root = Printed(f"relevance that arrives → leaves, by rulebook {self.rulebook}")
        branches: dict[tuple[str, ...], Tree] = {(): root}

        def branch(path: tuple[str, ...]) -> Tree:
            if path not in branches:
                arrives, leaves = self._through(path, home)
                branches[path] = branch(path[:-1]).add(f"[bold]{escape(path[-1])}[/]  {_flow(arrives, leaves)}")
            return branches[path]

        for n in self.nodes:
            if n.arrives is None and n.leaves is None:
                continue
            above = branch(home[n.name][:depth])
            if len(home[n.name]) <= depth:
                line = f"{escape(n.op)} [dim]{escape(n.rule or n.kind)}[/]  {_flow(n.arrives, n.leaves)}"
                above.add(f"{line}  [dim]{escape(n.source.split('  ')[0])}[/]")
        return root

    def _through(self, path: tuple[str, ...], home: dict[str, tuple[str, ...]]) -> tuple[Mass, Mass]:
        def inside(name: str) -> bool:
            return home.get(name, ())[: len(path)] == path

        crossing = [
            (inside(source), mass) for (node, source), mass in self.edges.items() if inside(node) != inside(source)
        ]
        arrives = sum((mass for into, mass in crossing if into), Mass())
        return arrives, sum((mass for into, mass in crossing if not into), Mass())

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def __str__(self) -> str:
        return as_text(self.table(nodes=False))

    def __repr__(self) -> str:
        return f"<Report of {len(self.nodes)} nodes: {', '.join(f'{n} {kind}' for kind, n in self.counts.items())}>"

    def _repr_html_(self) -> str:
        return as_html(self.table(nodes=False))


def _flow(arrives: Mass | None, leaves: Mass | None) -> str:
    """Formats two masses: yellow if more than a tenth is lost, red if it is added, else green."""
    a, b = arrives or Mass(), leaves or Mass()
    off = abs(a.size - b.size) > 0.1 * max(a.size, b.size)
    colour = "red" if b.size > a.size and off else "yellow" if off else "green"
    kept = f" ({b.size / a.size:.0%})" if a.size and off else ""
    return f"[{colour}]{a} → {b}{kept}[/]"


NO_MODULE = "_empty_nn_module_stack_from_metadata_hook"
"""What torch.export calls the module of a node that is in none, such as a size."""


def row_of(node: fx.Node, kind: str = "", rule: str = "") -> NodeReport:
    """The report's row for a node; without kind and rule, what an error says of it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = stack[-1][0].removeprefix("model").lstrip(".") if stack and stack[-1][0] != NO_MODULE else ""
    return NodeReport(node.name, op_name(node), kind, rule, module, source(node))


def op_name(node: fx.Node) -> str:
    """The op's name, such as `conv2d.default`, or the function's own."""
    target = str(node.target) if hasattr(node.target, "_schema") else getattr(node.target, "__name__", str(node.target))
    return target.removeprefix("aten.")


def source(node: fx.Node) -> str:
    """The line of the model's code that the node comes from: the innermost frame outside torch, as file:line."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]+)', node.meta.get("stack_trace") or "")
    frames = [f for f in frames if OURS not in Path(f[0]).parents]
    frames_of_model = [f for f in frames if "/torch/" not in f[0]] or frames
    if not frames_of_model:
        return ""
    file, line, code = frames_of_model[-1]
    return f"{'/'.join(file.split('/')[-2:])}:{line}  {code.strip()}"
