"""Text: what a language model looked at, token by token and word by word.  Nothing in the core imports it."""

from fxlrp.text.ask import explain
from fxlrp.text.attribution import Asked, TextAttribution
from fxlrp.text.continuations import generate
from fxlrp.text.readout import of_tokens

__all__ = ["Asked", "TextAttribution", "explain", "generate", "of_tokens"]
