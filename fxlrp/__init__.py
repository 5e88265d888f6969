"""fxlrp: explain what any PyTorch model looked at."""

from fxlrp import methods as methods  # which publishes the rulebooks
from fxlrp.attribution import Attribution
from fxlrp.engine.seeds import Question
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.methods import DEFAULT
from fxlrp.reports.ended import NoRelevance
from fxlrp.reports.report import Report
from fxlrp.rules import Rulebook, rule, rulebook, rulebooks, unregister

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
    "convert",
    "rule",
    "rulebook",
    "rulebooks",
    "unregister",
]
