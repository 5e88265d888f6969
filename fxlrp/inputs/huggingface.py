"""Load models from the folders that Hugging Face's libraries save, or by name on its hub.

A folder is data: no code in it is run, nothing it names is fetched, and its files are looked at before a library is
given them, since a number in a config may ask for any amount of memory or time.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration

from fxlrp.errors import FxlrpError
from fxlrp.inputs.hubs import loading
from fxlrp.inputs.labels import class_names
from fxlrp.inputs.limits import read_json
from fxlrp.inputs.pickles import check_pickle

try:
    from re import _constants as sre  # type: ignore[attr-defined]
    from re import _parser as sre_parse  # type: ignore[attr-defined]
except ImportError:  # Python 3.10
    import sre_constants as sre
    import sre_parse

LARGEST = 2**25
"""The largest size in a config: the largest vocabularies and contexts have some millions."""
NO_SIZE = re.compile(r".*(theta|base|period|freq|token|id|ids|seed|index|version)s?", re.IGNORECASE)
"""Fields of a config whose numbers size nothing."""
LAYERS = re.compile(r"(n|num)_.*layers?|.*depths?", re.IGNORECASE)
MOST_LAYERS = 2048
MODULES = 50_000
SPARE = 2**26
"""The most numbers that a network may hold beside its weights, as masks and tables of positions."""
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "tekken.json", "special_tokens_map.json", "vocab.json")
PATTERNS = ("regex", "pattern", "pat_str")
MOST_TOKENIZER = 2**26
"""The most bytes of a tokenizer in JSON. Those of 260,000 tokens have 33 million."""


def load_module(name: str, pretrained: bool) -> tuple[nn.Module, Any]:
    """Load the model in a folder or of a name, and its config; with random weights unless `pretrained`.

    Raises FxlrpError if there is none that can be loaded as data alone, or it is larger than its files.
    """
    import transformers

    folder = Path(name) if Path(name).is_dir() else None
    if folder is not None:
        _check_config(folder)
    with loading(f"hf:{name}", folder is None):
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False)
        config._attn_implementation = "eager"  # a config may name an attention kernel to fetch from the hub, and run
        cls = _class_of(config, name)
        if not pretrained:
            with torch.device("meta"), _no_more_than(_memory() // 4, f"hf:{name}"):
                cls(config)
            return cls(config), config
        allowed = None if folder is None else 2 * _check_weights(folder) + SPARE
        with _no_more_than(allowed, f"the weights of hf:{name}"):
            return cls.from_pretrained(name, config=config, trust_remote_code=False), config


def _class_of(config: Any, name: str) -> Any:
    """Return the class of transformers that a config names.  Raises FxlrpError if it is for another kind of config."""
    import transformers

    named = [n for n in config.architectures or () if isinstance(n, str)]
    for value in (getattr(transformers, n, None) for n in named):
        cls: Any = value if isinstance(value, type) and issubclass(value, transformers.PreTrainedModel) else None
        if cls is not None and cls.config_class is not None and isinstance(config, cls.config_class):
            return cls
    raise FxlrpError(
        f"hf:{name} names no model of transformers for its kind of config ({', '.join(named)[:200] or 'none'})."
    )


def _memory() -> int:
    """Return the bytes of memory that the computer has."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 2**34


@contextmanager
def _no_more_than(allowed: int | None, what: str) -> Iterator[None]:
    """Within it, keep this thread from making modules with more numbers than `allowed`, or without end.

    Raises FxlrpError as soon as they are more.
    """
    here, modules, numbers = threading.get_ident(), itertools.count(1), [0]

    def on_module(module: nn.Module, name: str, child: nn.Module | None) -> None:
        if threading.get_ident() == here and next(modules) > MODULES:
            raise FxlrpError(f"Cannot load {what}: its config asks for more than {MODULES:,} modules.")

    def on_tensor(module: nn.Module, name: str, value: Tensor | None) -> None:
        if threading.get_ident() != here or value is None or not value.is_meta:
            return  # only what is planned: what is loaded takes its place
        numbers[0] += value.numel()
        if allowed is not None and numbers[0] > allowed:
            raise FxlrpError(f"Cannot load {what}: its config asks for more numbers than its files hold.")

    with ExitStack() as stack:
        for kind, hook in (("module", on_module), ("parameter", on_tensor), ("buffer", on_tensor)):
            handle = getattr(registration, f"register_module_{kind}_registration_hook")(hook)
            stack.callback(handle.remove)
        yield


def _check_config(folder: Path) -> None:
    """Raise FxlrpError for a config that is none, or asks for a size that no network has."""
    file = folder / "config.json"
    if not file.is_file():
        raise FxlrpError(
            f"The folder {folder} has no config.json; a folder is a model if Hugging Face's library saved it."
        )
    config = read_json(file)
    if not isinstance(config, dict):
        raise FxlrpError(f"{file} holds no config; give a folder that Hugging Face's library saved.")
    labels = config.get("id2label")
    if labels is not None:
        if not isinstance(labels, dict):
            raise FxlrpError(f'{file} has an id2label that is no dict from numbers to names, as {{"0": "cat"}}.')
        class_names(labels, f"The id2label of {file}")
    for key, value in _leaves("", config):
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        large = abs(value) > LARGEST and not NO_SIZE.fullmatch(key) and math.isfinite(value)
        if large or (LAYERS.fullmatch(key) and value > MOST_LAYERS):
            raise FxlrpError(f"{file} has {key} {value:.0e}, which no network has.")


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the numbers and texts in JSON, each with the key that it stands under."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _leaves(name, inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(key, inner)
    else:
        yield key, value


def _check_weights(folder: Path) -> int:
    """Return the bytes of weights in a folder.  Raises FxlrpError if a pickle there does more than hold tensors."""
    files = [f for f in folder.iterdir() if f.suffix in (".safetensors", ".bin") and f.is_file()]
    safe = [f for f in files if f.suffix == ".safetensors"]
    for file in files:
        if not safe and file.suffix == ".bin" and file.name.startswith("pytorch_model"):
            check_pickle(file)
    return sum(f.stat().st_size for f in safe or files)


def check_tokenizer(folder: Path) -> None:
    """Raise FxlrpError if a tokenizer in a folder has a pattern that may take forever on a short text."""
    for name in TOKENIZER:
        if (file := folder / name).is_file():
            for key, pattern in _leaves("", read_json(file, MOST_TOKENIZER)):
                if key.lower() in PATTERNS and isinstance(pattern, str) and (why := _explodes(pattern)):
                    raise FxlrpError(
                        f"{file} cuts text by the pattern {pattern[:80]!r}, {why}: give another tokenizer."
                    )


REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)
MANY = 16
"""How often something may be repeated without being taken for endless."""


def _explodes(pattern: str) -> str | None:
    """Say why a pattern may take forever: it repeats what repeats, or one thing after another.  None if it may not."""
    parsed = None
    for plain in (_without_classes(pattern), pattern) if len(pattern) < 5000 else ():
        with suppress(re.error, RecursionError, OverflowError):
            parsed = parsed or sre_parse.parse(plain)
    if parsed is None:
        return "which is too long or can't be read"
    most, nested = _repeats(parsed)
    if nested:
        return "which repeats what repeats, and may take forever"
    return "which repeats too many things after each other" if most > 4 else None


def _without_classes(pattern: str) -> str:
    """Put one class of characters in the place of any: in other libraries than Python's re they stand in each other."""
    pattern = re.sub(r"\\[pP](\{[^}]*\}|[A-Z])|\\[hHRXK]", r"\\w", pattern)
    out, depth, at = "", 0, 0
    while at < len(pattern):
        piece = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        if piece == "[":
            out += "\\w" if depth == 0 else ""
            depth += 1
        elif piece == "]" and depth:
            depth -= 1
        elif not depth:
            out += piece
        at += len(piece)
    return out


def _repeats(parsed: Any) -> tuple[int, bool]:
    """Return how many endless repeats stand behind each other at most, and whether one stands inside another."""
    count, nested = 0, False
    for op, args in parsed:
        if op in REPEATS or op is getattr(sre, "POSSESSIVE_REPEAT", None):
            _, most, inside = args
            inner, inner_nested = _repeats(inside)
            endless = most is sre.MAXREPEAT or most > MANY
            nested |= inner_nested or (endless and inner > 0)
            varies = inner + (1 if endless else 0)
            count += varies if most <= 1 or endless else varies * int(most)
        elif op is sre.BRANCH:
            branches = [_repeats(branch) for branch in args[1]]
            count += max(repeats for repeats, _ in branches)
            nested |= any(inside for _, inside in branches)
        else:
            for inside in args if isinstance(args, tuple) else ():
                if isinstance(inside, sre_parse.SubPattern):
                    inner, inner_nested = _repeats(inside)
                    count, nested = count + inner, nested | inner_nested
    return count, nested
