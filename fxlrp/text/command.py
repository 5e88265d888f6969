"""The commands that explain text, as functions of plain arguments: they load, ask, print and write."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from fxlrp.capture.confine import without_warnings
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.inputs.hubs import loading
from fxlrp.inputs.huggingface import check_tokenizer
from fxlrp.inputs.pictures import check_writable
from fxlrp.methods import DEFAULT
from fxlrp.text.ask import explain
from fxlrp.text.attribution import WRITTEN, TextAttribution, write_html
from fxlrp.text.continuations import generate

TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model")


def load_tokenizer(spec: str) -> Any:
    """Load the tokenizer beside a Hugging Face model, of a folder or of hf:NAME, without running code of its own.

    Raises FxlrpError if there is none.
    """
    from transformers import AutoTokenizer

    name = spec.removeprefix("hf:")
    none = FxlrpError(f"There is no tokenizer beside {spec}; save it there, tokenizer.save_pretrained(…).")
    if Path(name).is_dir() and not any(f for kind in TOKENIZER_FILES for f in Path(name).glob(kind)):
        raise none
    if Path(name).is_dir():
        check_tokenizer(Path(name))
    with loading(f"the tokenizer of {spec}", not Path(name).is_dir()):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        tokenizer("a word")  # what a config says wrongly is raised here
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # made of the config alone: it would know no word
        raise none
    return tokenizer


def read_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """Return the texts given, standard input for `-`, and the lines of `file`, each a text.

    Raises FxlrpError if there is none, or the file can't be read.
    """
    read = [sys.stdin.read().strip() if text == "-" else text for text in texts]
    if file is not None:
        if not file.is_file():
            raise FxlrpError(f"There is no file {file}.")
        try:
            read += [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise FxlrpError(f"{file} is not text in UTF-8 ({error.reason}); save it as that.") from error
    if not any(text.strip() for text in read):
        raise FxlrpError("There is no text: give one in quotes, - for standard input, or --text-file FILE.")
    return read


def explain_texts(
    model: nn.Module,
    spec: str,
    texts: Sequence[str],
    *,
    text_file: Path | None = None,
    rules: str | None = None,
    strict: bool = False,
    cache: Path | None = None,
    html: Path | None = None,
    output: Path | None = None,
    as_json: bool = False,
    colours: str = "red-blue",
    dpi: float = 100,
    console: Console,
    **question: Any,
) -> Explainer:
    """Explain texts, print them, write the files asked for, and return the explainer.

    output: a file for one text, or a folder.  question: as `fxlrp.text.explain` takes it.

    Raises FxlrpError as `fxlrp.text.explain` does.
    """
    every_text = read_texts(texts, text_file)
    files = output_files(len(every_text), output)
    explainer = convert(model, rules=rules or DEFAULT, strict=strict, cache=cache)
    explained = quietly(explain, explainer, load_tokenizer(spec), every_text, **question)
    show(explained, html, console, as_json, Path(spec).name)
    for a, file in zip(explained, files, strict=False):
        a.save(file, colours=colours, dpi=dpi)
    if files and not as_json:
        console.print(f"wrote [bold]{output}[/]", soft_wrap=True)
    return explainer


def output_files(texts: int, output: Path | None) -> list[Path]:
    """Return where each text's attribution goes: `output` for one, 1_fxlrp.json, 2_fxlrp.json … in it for several;
    nowhere without one.

    Raises FxlrpError for one file for several texts, a kind of file that no text is written as, or a place that can't
    be written to.
    """
    if output is None:
        return []
    files = [output]
    if output.is_dir() or not output.suffix:
        files = [output / f"{i}_fxlrp.json" for i in range(1, texts + 1)]
    elif output.suffix.lower() not in WRITTEN:
        raise FxlrpError(f"-o {output}: an explanation of a text is written as {', '.join(WRITTEN)}.")
    elif texts > 1:
        raise FxlrpError(f"-o {output} is one file for {texts} texts; give a folder, or --html for a page of all.")
    check_writable(files)
    return files


def generate_text(
    model: nn.Module,
    spec: str,
    prompt: str,
    *,
    continuation: str | None = None,
    max_new_tokens: int = 20,
    contrast: str | None = None,
    rules: str | None = None,
    truncate: bool = False,
    html: Path | None = None,
    console: Console,
) -> None:
    """Write on after a prompt, or take the continuation given, and explain each new token.

    Raises FxlrpError as `fxlrp.text.generate` does.
    """
    written = quietly(
        generate,
        convert(model, rules=rules or DEFAULT),
        load_tokenizer(spec),
        read_texts([prompt], None)[0],
        continuation=continuation,
        max_new_tokens=max_new_tokens,
        contrast=against(contrast),
        truncate=truncate,
    )
    show([written], html, console, model=Path(spec).name)


def demo_text(output: Path, console: Console) -> None:
    """Explain reviews with the text network that comes with fxlrp; needs no network access."""
    from fxlrp.inputs import load_model

    folder = str(Path(__file__).resolve().parents[1] / "examples" / "text")
    texts = [
        "the plot is dull but the music was truly wonderful.",
        "we saw it yesterday. the film was not funny.",
    ]
    explainer = convert(load_model(folder).module)
    show(explain(explainer, load_tokenizer(folder), texts, target=["positive", "negative"]), output, console)


def question_of(targets: Sequence[str] | None, contrast: str, position: str | None) -> dict[str, Any]:
    """Return a question as the library takes it, from what was typed."""
    target = None if not targets else targets[0] if len(targets) == 1 else list(targets)
    place = int(position) if position and position.lstrip("-").isdigit() else position
    return {"target": target, "contrast": against(contrast), "position": place}


def against(contrast: str | None) -> str | None:
    """Return a contrast as the library takes it: the rulebook's if none is typed, None for "none"."""
    return "default" if contrast is None else None if contrast == "none" else contrast


def quietly(ask: Any, *args: Any, **kwargs: Any) -> Any:
    """Call a function without its warnings: what they say is part of its result, and shown with it."""
    with without_warnings():
        return ask(*args, **kwargs)


def show(
    explained: Sequence[TextAttribution], html: Path | None, console: Console, as_json: bool = False, model: str = ""
) -> None:
    """Print attributions, as JSON if asked, and write them to one HTML file.  model: its name, for the title."""
    if as_json:
        print(json.dumps([a.to_dict() for a in explained], indent=1, ensure_ascii=False))
    for a in () if as_json else explained:
        a.show(console)
    if html is not None:
        page = write_html(html, explained, model)
        if as_json:
            return
        console.print(f"wrote [bold]{page}[/]", soft_wrap=True)
