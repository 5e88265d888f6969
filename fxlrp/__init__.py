"""fxlrp: explain what any PyTorch model looked at.

What is public is imported when it is first asked for, so that `import fxlrp` and `fxlrp --help` start at once.
"""

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fxlrp.errors import FxlrpError, NoRelevance
from fxlrp.methods import DEFAULT

if TYPE_CHECKING:
    from fxlrp.attribution import Attribution
    from fxlrp.engine.seeds import Question
    from fxlrp.explainer import Explainer, convert
    from fxlrp.explaining import explain
    from fxlrp.inside.concepts import concepts
    from fxlrp.inside.patching import patching
    from fxlrp.reports.report import Report
    from fxlrp.rules import Rulebook, rule, rulebook, rulebooks, unregister
    from fxlrp.show.files import load

__version__ = "0.1.0"
__all__ = [
    "DEFAULT",
    "Attribution",
    "Explainer",
    "FxlrpError",
    "NoRelevance",
    "Question",
    "Report",
    "Rulebook",
    "concepts",
    "convert",
    "explain",
    "load",
    "patching",
    "rule",
    "rulebook",
    "rulebooks",
    "unregister",
]
_PLACES = {
    "Attribution": "attribution",
    "Explainer": "explainer",
    "Question": "engine.seeds",
    "Report": "reports.report",
    "concepts": "inside.concepts",
    "convert": "explainer",
    "explain": "explaining",
    "load": "show.files",
    "patching": "inside.patching",
    **dict.fromkeys(("Rulebook", "rule", "rulebook", "rulebooks", "unregister"), "rules"),
}
_PACKAGES = ("adapters", "cli", "data", "gae", "inputs", "inside", "methods", "rules", "text")


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"fxlrp.{name}")
    if name not in _PLACES:
        raise AttributeError(f"module 'fxlrp' has no attribute {name!r}")
    drawn = random.getstate()  # importing rich draws a number
    value = globals()[name] = getattr(import_module(f"fxlrp.{_PLACES[name]}"), name)
    random.setstate(drawn)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
