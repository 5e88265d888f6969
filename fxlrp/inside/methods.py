"""What an explainer offers of the inside of its network: the functions here are its methods."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from fxlrp.engine.seeds import Contrast, Position, Question, Target

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer
    from fxlrp.inside.edges import Edges
    from fxlrp.inside.parts import Parts
    from fxlrp.inside.weights import Weights


def parts(
    explainer: Explainer,
    /,
    at: str,
    *args: Any,
    by: str = "channels",
    axis: int | None = None,
    target: Target = None,
    contrast: Contrast = "default",
    position: Position = None,
    **kwargs: Any,
) -> Parts:
    """The channels (or heads, or tokens) of a module's or node's output, ranked by their relevance for a call.

    by: "channels", "heads" of an attention, or "tokens".  axis: of the channels, if it is not where the module's
    ops have them.  target, contrast, position: as in a call of the explainer; the call follows `at`.

    Raises FxlrpError for a place that relevance does not pass, and as a call of the explainer does.
    """
    from fxlrp.inside.parts import parts_at

    return parts_at(explainer, at, args, kwargs, Question(target, contrast, position), by, axis)


def edges(
    explainer: Explainer,
    /,
    *args: Any,
    nodes: Sequence[str] | None = None,
    depth: int | None = None,
    target: Target = None,
    contrast: Contrast = "default",
    position: Position = None,
    **kwargs: Any,
) -> Edges:
    """Relevance that goes from one module's output into another's input directly, not through a third one named.

    nodes: the modules; without them, those of a `depth` (1: the model's own children), or else every attention and
    every block of two layers with an activation between them, and where there is no attention, the children.
    target, contrast, position: as in a call of the explainer.

    Raises FxlrpError for a module that relevance does not pass, and as a call of the explainer does.
    """
    from fxlrp.inside.edges import edges_between

    return edges_between(explainer, args, kwargs, Question(target, contrast, position), nodes, depth)


def weights(
    explainer: Explainer,
    data: Iterable[Any],
    *,
    target: Target | str = None,
    contrast: Contrast = "default",
    each: bool = False,
) -> Weights:
    """The mean relevance of every weight and of every output channel of the linear and convolutional layers, by one
    pass over the data.

    data: batches, each a tensor, a tuple of arguments or a dict of them; (inputs, classes) where target is "label".
    each: weigh samples one by one, for `weight_size`, where those for and against a class do not cancel.

    Raises FxlrpError for data without a batch, and as a call of the explainer does.
    """
    from fxlrp.inside.weights import weigh

    return weigh(explainer, data, target, contrast, each=each)
