"""Fonts that have the letters of a figure: matplotlib's own has no Chinese, Hindi or Thai, and few emoji."""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

from fxlrp.errors import NoGlyphs, counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def families(text: str) -> list[str]:
    """The families of fonts to write a text in: matplotlib's own first, then those that have what it lacks.

    Warns of letters that none has.
    """
    from matplotlib.font_manager import FontProperties, findfont

    own = FontProperties()
    names, written = list(own.get_family()), {c for c in text if unicodedata.category(c)[0] not in "CMZ"}
    left = {c for c in written if ord(c) not in _letters(findfont(own))}
    for name, file in _others() if left else ():
        if has := {c for c in left if ord(c) in _letters(file)}:
            names.append(name)
            left -= has
        if not left:
            break
    if left:
        some = ", ".join(sorted(left)[:3])
        others = f" and {counted(len(left) - 3, 'other')}" if len(left) > 3 else ""
        warnings.warn(
            NoGlyphs(
                f"No font of this machine has the letters {some}{others}, which are drawn as boxes: install one that "
                "has (Noto has every script), or look at a page (.html), which the browser draws."
            ),
            stacklevel=2,
        )
    return names


@contextmanager
def not_said_again() -> Iterator[None]:
    """Leaves out what matplotlib says of each letter that is drawn as a box: `families` has said it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def legible(figure: Figure) -> Figure:
    """The figure, with fonts that have its letters."""
    from matplotlib.text import Text

    written = [t for t in figure.findobj(Text) if isinstance(t, Text)]
    names = families("".join(t.get_text() for t in written))
    for text in written if len(names) > 1 else ():
        text.set_fontfamily(names)
    return figure


@cache
def _letters(file: str) -> frozenset[int]:
    """The characters that a font has, none if it can't be drawn at any size."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(font.get_charmap()) if font.scalable else frozenset()


def _others() -> Iterator[tuple[str, str]]:
    """The names and files of the fonts that there are, plain ones first; those installed since matplotlib last looked
    are made known to it."""
    from matplotlib import font_manager

    manager = font_manager.fontManager
    known = sorted(manager.ttflist, key=lambda f: any(kind in f.name for kind in ("Serif", "Mono", "Math")))
    yield from ((f.name, f.fname) for f in known if not f.name.startswith("Last Resort"))  # has boxes for all letters
    for file in sorted({*font_manager.findSystemFonts()} - {f.fname for f in known}):
        if _letters(file):
            manager.addfont(file)
            yield manager.ttflist[-1].name, file
