"""Global Attribution Evaluation of explanations, with the baselines they are compared with."""

from fxlrp.gae.definitions import DEFINITIONS
from fxlrp.gae.evaluate import evaluate
from fxlrp.gae.known.cases import Case, Known, right
from fxlrp.gae.known.report import KnownReport
from fxlrp.gae.known.run import SUITES, known
from fxlrp.gae.masking import MASKINGS
from fxlrp.gae.methods import BASELINES, explain_by
from fxlrp.gae.metric import Trial, Views, fixed_trial, published_trial, score
from fxlrp.gae.report import Estimate, Report
from fxlrp.gae.tuning import Tuned, tune

__all__ = ["BASELINES", "DEFINITIONS", "Estimate", "Report", "Trial", "Tuned", "Views"]
__all__ += ["MASKINGS", "SUITES", "Case", "Known", "KnownReport", "evaluate", "explain_by", "known", "right"]
__all__ += ["fixed_trial", "published_trial", "score", "tune"]
