"""The report: what became of every node of a graph."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import fx

HERE = Path(__file__).parent
KINDS = ("rule", "structural", "generic", "inactive")


@dataclass(frozen=True)
class NodeReport:
    """One node: its name and op, the kind of treatment, its rule, and where the user's model asks for it."""

    name: str
    op: str
    kind: str
    rule: str
    module: str
    source: str


@dataclass(frozen=True)
class Report:
    """Every node of a graph, counted by kind: has a rule, is structural, fell to the generic rule, carries nothing.

    way: how the graph was captured, and for which calls it holds.
    """

    nodes: list[NodeReport]
    rulebook: str
    way: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Nodes of each kind: rule, structural, generic, inactive."""
        tally = Counter(n.kind for n in self.nodes)
        return {kind: tally[kind] for kind in KINDS}

    def table(self, *, nodes: bool = True) -> Table:
        """A rich table: a row per node (or, without `nodes`, per op and rule), totals below."""
        totals = ", ".join(f"{n} {kind}" for kind, n in self.counts.items())
        out = Table(
            title=f"{len(self.nodes)} nodes by rulebook {self.rulebook}", caption=f"{totals}\ncaptured by {self.way}"
        )
        colour = {"rule": "green", "structural": "cyan", "generic": "bold red", "inactive": "dim"}
        if nodes:
            for column in ("node", "op", "kind", "rule", "module", "source"):
                out.add_column(column, overflow="fold")
            for n in self.nodes:
                out.add_row(n.name, n.op, n.kind, n.rule, n.module, n.source, style=colour[n.kind])
            return out
        for column in ("op", "kind", "rule", "nodes", "first at"):
            out.add_column(column, overflow="fold")
        groups: dict[tuple[str, str, str], list[NodeReport]] = {}
        for n in self.nodes:
            groups.setdefault((n.op, n.kind, n.rule), []).append(n)
        for (op, kind, rule), members in sorted(groups.items(), key=lambda kv: (KINDS.index(kv[0][1]), -len(kv[1]))):
            first = " ".join(filter(None, (members[0].module, members[0].source.split("  ")[0])))
            out.add_row(op, kind, rule, str(len(members)), first, style=colour[kind])
        return out

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()

    def __str__(self) -> str:
        return ", ".join(f"{n} {kind}" for kind, n in self.counts.items())


def describe(node: fx.Node, kind: str, rule: str) -> NodeReport:
    """The report's row for a node."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = stack[-1][0].removeprefix("model").lstrip(".") if stack else ""
    return NodeReport(node.name, op_name(node), kind, rule, module, source(node))


def op_name(node: fx.Node) -> str:
    """`conv2d.default`, or the function's own name."""
    target = str(node.target) if hasattr(node.target, "_schema") else getattr(node.target, "__name__", str(node.target))
    return target.removeprefix("aten.")


def source(node: fx.Node) -> str:
    """The line of the model's code that the node comes from: the innermost `forward` outside torch, as file:line."""
    frames = re.findall(r'File "([^"]+)", line (\d+), in [^\n]*\n\s*([^\n]+)', node.meta.get("stack_trace") or "")
    frames = [f for f in frames if Path(f[0]).parent != HERE]
    own = [f for f in frames if "/torch/" not in f[0]] or frames
    if not own:
        return ""
    file, line, code = own[-1]
    return f"{'/'.join(file.split('/')[-2:])}:{line}  {code.strip()}"
