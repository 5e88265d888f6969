"""Runs a call with its inside at hand, for the batch together or, where its samples can't be told apart, one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fxlrp.answers import Forward, ModelCall, run_forward
from fxlrp.capture.objects import open_objects
from fxlrp.engine.seeds import Question
from fxlrp.errors import FxlrpError
from fxlrp.graph.plan import Plan
from fxlrp.inside.opened import Opened, shares_of
from fxlrp.relevance_pass import Direction, at_end, pull, seeds_of
from fxlrp.rows import sample_of
from fxlrp.rules.quantities import relevance
from fxlrp.rules.registry import Rulebook
from fxlrp.targets import asked_directions, completed

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer


@dataclass(frozen=True, eq=False)
class Asked(ModelCall):
    """A call, with what is asked about it."""

    question: Question


class Run(NamedTuple):
    """A call that has run.

    direction: what is explained of the output.
    classes: those that were explained [batch], if the target was one.
    """

    call: Asked
    opened: Opened
    forward: Forward
    direction: Direction
    classes: Tensor | None

    @property
    def seeds(self) -> list[Tensor]:
        """The cotangents of the graph's end that relevance starts from: one, or one for each side of a contrast."""
        return at_end(self.end, seeds_of(self.direction, self.call.explainer.rulebook))

    @property
    def end(self) -> Tensor:
        """What the explained output is of the graph."""
        return self.forward.out[self.call.plan.logits]

    def cotangents(self, nodes: Sequence[str]) -> list[Tensor]:
        """The cotangents of the values at some nodes, of both sides of a contrast together."""
        return self.summed([pull(self.end, [self.opened.values[n] for n in nodes], [s])[0] for s in self.seeds])

    def summed(self, sides: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """What is read of one side, or of one less the other."""
        return list(sides[0]) if len(sides) == 1 else [p - n for p, n in zip(*sides, strict=True)]


def arguments(given: Any) -> tuple[tuple, dict[str, Any]]:
    """What a call was given as, one argument, a tuple of them or a dict of them by name, as (args, kwargs)."""
    if isinstance(given, Mapping):
        return open_objects(((), dict(given)))
    return open_objects((tuple(given) if isinstance(given, tuple | list) else (given,), {}))


def calls(
    explainer: Explainer, args: tuple, kwargs: dict[str, Any], question: Question, *, apart: bool = False
) -> Iterator[Asked]:
    """The call itself, or one for each of its samples, each by the explainer of the output that its target is about.

    apart: one for each sample in any case, not only where they can't be told apart in a batch.
    """
    call = explainer.call(args, kwargs)
    plan, batch = call.plan, call.batch
    if (other := call.about(question.target)) is not explainer:
        yield from calls(other, args, kwargs, question, apart=apart)
        return
    if (apart or plan.is_for_one) and batch > 1:
        for i in range(batch):
            args_of_one, kwargs_of_one, asked = sample_of(plan.axes, (args, kwargs), [question], i, batch)
            yield from calls(explainer, args_of_one, kwargs_of_one, asked)
        return
    yield Asked(**vars(call), question=completed(question, plan, explainer.rulebook, call.tensors))


def run(call: Asked, kept: Collection[str], *, cut: bool = False, instead: Any = None) -> Run:
    """Run a call and keep the values at some nodes.

    Raises FxlrpError for a question about several classes.
    """
    plan, question = call.plan, call.question
    opened = Opened(plan, kept, cut=cut, instead=instead, shares=shares_of(call.explainer.rulebook))
    forward = run_forward(call, [question], run=opened.run)
    several, classes = asked_directions(plan, forward.out, forward.model_out, question, call.batch)
    if len(several) != 1:
        raise FxlrpError(f"This is about one class of each sample, not {len(several)}: ask for one after the other.")
    return Run(call, opened, forward, several[0], classes)


def each_run(
    explainer: Explainer,
    args: tuple,
    kwargs: dict[str, Any],
    question: Question,
    kept: Callable[[Plan], Collection[str]],
    *,
    apart: bool = False,
) -> Iterator[Run]:
    """The runs of a call, with the values that `kept` names of a plan; apart: see `calls`."""
    with torch.inference_mode(False), torch.enable_grad():
        for call in calls(explainer, args, kwargs, question, apart=apart):
            with call.plan.in_its_types():
                yield run(call, kept(call.plan))


def relevance_of(book: Rulebook, a: Tensor, g: Tensor) -> Tensor:
    """Relevance at a value with cotangent g; of a rulebook that reads gradients these."""
    return relevance(a.detach(), g, masked=True) if book.reads == "relevance" else g


def joined_classes(classes: Sequence[Tensor | None]) -> Tensor | None:
    """The classes that several runs explained, one after the other; None if a target was none."""
    return None if any(c is None for c in classes) else torch.cat([c for c in classes if c is not None])
