"""Samples as the commands take them: pictures of a folder, or texts of a file, with what is seen of each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fxlrp.errors import FxlrpError
from fxlrp.inputs import LoadedModel, find_pictures, open_picture
from fxlrp.text.command import load_tokenizer, read_texts
from fxlrp.text.encode import batched, encode


class Pictures:
    """Pictures as a model takes them: the i-th is [C, H, W], `seen(i)` what the model sees of it."""

    def __init__(self, files: list[Path], loaded: LoadedModel) -> None:
        self.files, self.loaded = files, loaded

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> Tensor:
        return self.loaded.like(self.loaded.preprocess(open_picture(self.files[i]))[0][None])[0]

    def first(self, count: int) -> Pictures:
        """The first so many."""
        return Pictures(self.files[:count], self.loaded)

    def seen(self, i: int) -> np.ndarray:
        """The part of the picture that the model sees, [H, W, 3]."""
        return self.loaded.preprocess.seen(open_picture(self.files[i]))


class Texts:
    """Texts as a model takes them: the i-th is a dict of its arguments [T], `seen(i)` its tokens."""

    def __init__(self, texts: list[str], loaded: LoadedModel, tokenizer: Any) -> None:
        self.written, self.loaded, self.tokenizer = texts, loaded, tokenizer
        self.texts = [encode(loaded.module, tokenizer, text, None, True) for text in texts]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {name: t[0] for name, t in batched(self.loaded.module, self.tokenizer, [self.texts[i]]).items()}

    def first(self, count: int) -> Texts:
        """The first so many."""
        return Texts(self.written[:count], self.loaded, self.tokenizer)

    def seen(self, i: int) -> list[str]:
        """The tokens with the spaces between them."""
        text = self.texts[i]
        starts = [p.start for p in text.pieces]
        ends = [0, *(p.end for p in text.pieces[:-1])]
        return [(" " if s > e else "") + text.text_of(k) for k, (s, e) in enumerate(zip(starts, ends, strict=True))]


def samples_of(model: str, loaded: LoadedModel, data: str) -> Pictures | Texts:
    """The samples that DATA names: pictures, or for a model of text the lines of a file.

    Raises FxlrpError for what is not there.
    """
    if not loaded.reads_text:
        return Pictures(find_pictures([data]), loaded)
    if not Path(data).is_file():
        raise FxlrpError(f"{loaded.name} reads text: DATA is a file with a text on every line, and {data} is none.")
    return Texts(read_texts([], Path(data)), loaded, load_tokenizer(model))


def sample_of(model: str, loaded: LoadedModel, given: str) -> Pictures | Texts:
    """One sample: a picture's file, or a text.  Raises FxlrpError for a file that is none."""
    if loaded.reads_text:
        return Texts(read_texts([given], None), loaded, load_tokenizer(model))
    return Pictures([one_picture(given)], loaded)


def one_picture(given: str) -> Path:
    """The only picture that a file, folder or glob names.  Raises FxlrpError for several."""
    files = find_pictures([given])
    if len(files) > 1:
        raise FxlrpError(f"{given} holds {len(files)} pictures, and one is asked about here: name it, as {files[0]}.")
    return files[0]
