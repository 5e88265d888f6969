"""Text: what a language model looked at, token by token and word by word.  Nothing in the core imports it."""

from fxlrp.text.ask import explain, generate
from fxlrp.text.attribution import Asked, TextAttribution

__all__ = ["Asked", "TextAttribution", "explain", "generate"]
