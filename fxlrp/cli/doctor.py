"""What `fxlrp doctor` says of a model: how it was captured, what has no rule, what a map costs, and what to try."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from fxlrp.cli.terminal import out, print_json
from fxlrp.explainer import Explainer
from fxlrp.inputs import LoadedModel
from fxlrp.reports.report import Report

ROUNDS = 3


def examine(loaded: LoadedModel, explainer: Explainer, call: tuple[tuple, dict], as_json: bool = False) -> None:
    """Print the examination of a model by an example call of it, (args, kwargs), as a table or JSON."""
    args, kwargs = call
    began = time.perf_counter()
    explainer(*args, **kwargs)
    captured = time.perf_counter() - began
    report = explainer.report()
    weights = list(loaded.module.parameters())
    rows = [("model", f"{loaded.name}, {sum(p.numel() for p in weights) / 1e6:.1f} M weights")]
    if weights:
        rows.append(("runs", f"on {weights[0].device}, in {str(weights[0].dtype).removeprefix('torch.')}"))
    rows.append(("captured", f"by {report.mode}, in {captured:.1f} s with the first map"))
    counts = ", ".join(f"{n} {kind}" for kind, n in report.counts.items() if n)
    rows.append(("ops", f"{len(report.nodes)}: {counts}"))
    rows += [("left out", f"{name}: {why}") for name, why in report.left_out.items()]
    costs = list(_costs(loaded, explainer, args, kwargs))
    rows += [(what, f"{1000 * seconds:.0f} ms{more}") for what, seconds, more in costs]
    advice = list(_advice(explainer, report))
    if as_json:
        about = {"model": loaded.name, **report.to_dict(), "capture_seconds": captured}
        print_json({**about, "seconds": {what: seconds for what, seconds, _ in costs}, "advice": advice})
        return
    table = Table(box=None, show_header=False)
    for row in rows + [("try", line) for line in advice]:
        table.add_row(*map(escape, row))
    out.print(table)


def _costs(loaded: LoadedModel, explainer: Explainer, args: tuple, kwargs: dict) -> Iterator[tuple[str, float, str]]:
    """What a forward pass, a gradient and a map take: the shortest of three, of one sample."""

    def forward() -> Any:
        with torch.no_grad():
            return loaded.module(*args, **kwargs)

    def gradient() -> None:
        floats = [t.clone().requires_grad_() if t.is_floating_point() else t for t in args]
        answer = loaded.module(*floats, **kwargs)
        score = _first(answer).float().flatten()[0]
        torch.autograd.grad(score, [t for t in floats if t.requires_grad], allow_unused=True)

    yield "a forward pass", _shortest(forward), ""
    ratio = ""
    if any(t.is_floating_point() for t in args):
        base = _shortest(gradient)
        yield "a gradient", base, ""
        ratio = " = {:.1f} gradients"
    took = _shortest(lambda: explainer(*args, **kwargs))
    yield "a map", took, ratio.format(took / base) if ratio else ""


def _first(answer: Any) -> Tensor:
    """The first float tensor of an output."""
    leaves = torch.utils._pytree.tree_leaves(dict(answer) if hasattr(answer, "keys") else answer)
    return next(t for t in leaves if isinstance(t, Tensor) and t.is_floating_point())


def _shortest(f: Callable[[], Any]) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        f()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times)


def _advice(explainer: Explainer, report: Report) -> Iterator[str]:
    """What would make maps better or cheaper, as far as the graph tells."""
    plan = explainer.latest
    generic = sorted({n.op for n in report.nodes if n.kind == "generic"})
    if generic:
        yield f"@fxlrp.rule(…) for {', '.join(generic)}, which the generic rule explains now; --strict refuses instead"
    if plan.is_for_one:
        yield "larger batches bring nothing: its samples are explained one by one"
    ops = {n.op.split(".")[0] for n in report.nodes}
    if {"conv2d", "layer_norm"} <= ops and ops & {"softmax", "scaled_dot_product_attention", "attention"}:
        yield "--shifts 4, the mean over moved pictures, which hides the grid of patches"
    if len(report.nodes) > 600:
        yield "convert(…, checkpoint=True): a fraction of the memory for one more forward pass"
    yield "explainer.compile() for many maps: minutes at the first call, faster after it"
