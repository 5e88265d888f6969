"""Conditional relevance: that part of it which passes chosen channels, heads, tokens or directions inside.

Achtibat et al., "From attribution maps to human-understandable explanations through Concept Relevance Propagation",
Nature Machine Intelligence 2023.  Relevance that goes past a place, as through a shortcut, passes nothing there and is
left out, so that over all channels of a place the maps add up to what passes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from torch import Tensor

from fxlrp.answers import ModelCall, attribution_from
from fxlrp.attribution import Attribution
from fxlrp.engine.seeds import Question
from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.inside.runs import Asked, Run, run
from fxlrp.inside.selection import Selection, selections
from fxlrp.relevance_pass import Read, maps_at_once, pull, read_at

if TYPE_CHECKING:
    pass

Condition = list[Selection]


def answer_given(call: ModelCall, question: Question, at: Sequence[str]) -> Attribution:
    """The answer to a question with conditions, all of them over one forward pass.

    Raises FxlrpError for conditions that can't be, and for several classes.
    """
    plan, given = call.plan, question.given
    asked = [given] if isinstance(given, Mapping) else list(given or ())
    conditions = [selections(plan, condition) for condition in asked]
    if not conditions:
        raise FxlrpError("given=[] lists no condition; leave it out, or name a place: {'layer3': [17]}.")
    if (other := call.about(question.target)) is not call.explainer:
        return other.explain(call.args, call.kwargs, [question], at)[0]
    nodes = {name: plan.named(name).name for name in at}
    _refuse_aside(plan, conditions, nodes)
    kept = {*nodes.values(), *(s.place.node for c in conditions for s in c)}
    with plan.in_its_types():
        ran = run(Asked(**vars(call), question=question), kept)
        reads = _reads(ran, conditions, nodes)
    forward = ran.forward._replace(latent={name: ran.opened.values[node] for name, node in nodes.items()})
    in_words = tuple("; ".join(map(str, condition)) for condition in conditions)
    columns = not isinstance(given, Mapping)
    how = (reads, ran.classes, columns, in_words if columns else in_words[0])
    return attribution_from(call, forward, question, *how)


def _reads(ran: Run, conditions: Sequence[Condition], inside: Mapping[str, str]) -> list[Read]:
    """What each condition lets through to the inputs, and to the values at nodes `inside`, by their names."""
    plan, tensors, out = ran.call.plan, ran.call.tensors, ran.forward.out
    values = [out[at] for several in plan.readouts.values() for at in several]
    values += [ran.opened.values[node] for node in inside.values()]
    at_once = ran.call.question.at_once or maps_at_once(plan.axes.rows(ran.end))
    sides = [_passing(ran, seed, values, conditions, at_once) for seed in ran.seeds]
    book = ran.call.explainer.rulebook
    return [read_at(plan, book, out, tensors, values, ran.summed(gs)) for gs in zip(*sides, strict=True)]


def _passing(
    ran: Run,
    seed: Tensor,
    values: Sequence[Tensor],
    conditions: Sequence[Condition],
    at_once: int,
) -> list[list[Tensor]]:
    """The cotangents of `values` for each condition: a pass to the first place of each, then from place to place with
    what passes there, for all conditions at the same places together."""
    opened, end = ran.opened, ran.end
    first = list(dict.fromkeys(c[0].place.node for c in conditions))
    starts = [opened.values[node] for node in first]
    if opened.shares is None:
        whole = pull(end, starts, [seed])[0]
    else:  # the shares are those of the whole of relevance, down to the inputs
        opened.shares.measuring = True
        whole = pull(end, [*starts, *values], [seed])[0]
        opened.shares.measuring = False
    arriving = dict(zip(first, whole, strict=False))
    cotangents: dict[int, list[Tensor]] = {}
    ways: dict[tuple[str, ...], list[int]] = {}
    for i, condition in enumerate(conditions):
        ways.setdefault(tuple(dict.fromkeys(s.place.node for s in condition)), []).append(i)
    for way, members in ways.items():
        for chunk in (members[i : i + at_once] for i in range(0, len(members), at_once)):
            gs = [arriving[way[0]]] * len(chunk)
            for node, following in zip(way, [*way[1:], None], strict=True):
                gs = [_passed(conditions[i], node, g) for i, g in zip(chunk, gs, strict=True)]
                here = opened.values[node]
                if following is None:
                    cotangents |= dict(zip(chunk, pull(here, values, gs), strict=True))
                else:
                    gs = [g for (g,) in pull(here, [opened.values[following]], gs)]
    return [cotangents[i] for i in range(len(conditions))]


def _passed(condition: Condition, node: str, g: Tensor) -> Tensor:
    """What of a cotangent passes all that a condition says of a place."""
    for selection in condition:
        if selection.place.node == node:
            g = selection.passed(g)
    return g


def _refuse_aside(plan: Plan, conditions: Sequence[Condition], inside: Mapping[str, str]) -> None:
    """Raises FxlrpError for places of a condition that no relevance goes between, and for a value asked for inside that
    relevance reaches before it has passed the condition."""
    for condition in conditions:
        for later, earlier in pairwise(condition):
            if earlier.place.node not in _before(plan, later.place.node):
                raise FxlrpError(
                    f"No relevance goes from {later.place.name!r} to {earlier.place.name!r}, which a condition names "
                    "together: they lie beside each other; ask for one after the other."
                )
        last = condition[-1].place
        if aside := [name for name, node in inside.items() if node not in _before(plan, last.node)]:
            raise FxlrpError(
                f"at={aside[0]!r} does not lie between the inputs and {last.name!r}, where relevance has passed all "
                "that given=… says."
            )


def _before(plan: Plan, name: str) -> set[str]:
    """The names of the nodes that a node depends on, and its own."""
    before = {name}
    for node in reversed(plan.graph.graph.nodes):
        if node.name in before:
            before.update(n.name for n in node.all_input_nodes)
    return before
