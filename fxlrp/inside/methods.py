"""What an explainer offers of the inside of its network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxlrp.engine.seeds import Contrast, Position, Question, Target

if TYPE_CHECKING:
    from fxlrp.inside.parts import Parts


class Inside:
    """The part of an explainer that looks inside: at parts of a place, at edges between modules, at weights."""

    def parts(
        self: Any,
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

        return parts_at(self, at, args, kwargs, Question(target, contrast, position), by, axis)
