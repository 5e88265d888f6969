"""Global Attribution Evaluation of explanations, with the baselines they are compared with."""

from fxlrp.gae.definitions import DEFINITIONS
from fxlrp.gae.evaluate import evaluate
from fxlrp.gae.methods import BASELINES, explain_by
from fxlrp.gae.metric import Trial, Views, fixed_trial, published_trial, score
from fxlrp.gae.report import Estimate, Report
from fxlrp.gae.tuning import Tuned, tune

__all__ = ["BASELINES", "DEFINITIONS", "Estimate", "Report", "Trial", "Tuned", "Views"]
__all__ += ["evaluate", "explain_by", "fixed_trial", "published_trial", "score", "tune"]
