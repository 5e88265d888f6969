"""Evaluation on texts: removal of tokens, human rationales, sensitivity and randomization."""

from fxlrp.gae.texts.case import Case
from fxlrp.gae.texts.data import Sample
from fxlrp.gae.texts.evaluate import evaluate
from fxlrp.gae.texts.methods import BASELINES
from fxlrp.gae.texts.report import TextReport

__all__ = ["BASELINES", "Case", "Sample", "TextReport", "evaluate"]
