"""What `fxlrp app` does: a page in the browser where one drops a picture or types a text and gets its explanation."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import gradio

from fxlrp.errors import FxlrpError
from fxlrp.explainer import convert
from fxlrp.explaining import every_side, explain_images
from fxlrp.inputs import LoadedModel, find_class
from fxlrp.rules.registry import Rulebook
from fxlrp.show.page import page
from fxlrp.text import explain as explain_text
from fxlrp.text.html import page as page_of_texts

HEIGHT = 1100
"""Pixels of the frame that the page stands in."""


def make_app(loaded: LoadedModel, rules: str | Rulebook, tokenizer: Any = None) -> Any:
    """A gradio app of a model: a picture, or a text if there is a tokenizer, and below it the page of its explanation.

    One explanation runs at a time, others wait; nothing is read from or written to files, but what is uploaded.
    """
    explainer = convert(loaded.module, rules=rules)
    classes = list(loaded.labels or ())

    def of_picture(picture: Any, target: str | None, places: str) -> str:
        at = [name.strip() for name in places.split(",") if name.strip()]
        target_class = find_class(target, classes) if target else None
        a, x = explain_images(explainer, loaded, [picture], target=target_class)
        return _framed(page(every_side(explainer, a, ((x,), {}), at)))

    def of_text(text: str, target: str | None) -> str:
        a = explain_text(explainer, tokenizer, text, target=target or None)
        return _framed(page_of_texts([a._panel()]))

    def safe(f: Callable[..., str]) -> Callable[..., str]:
        def run(*given: Any) -> str:
            if given[0] is None or given[0] == "":
                return ""
            try:
                return f(*given)
            except FxlrpError as error:
                raise gradio.Error(str(error)) from error

        return run

    target = gradio.Dropdown(classes, value=None, label="class", info="the likeliest, if none is chosen")
    places = gradio.Textbox(label="inside", info="modules whose maps are shown, with commas between")
    shown = gradio.HTML()
    f: Callable[..., str]
    if tokenizer is not None:
        f, inputs, did = of_text, [gradio.Textbox(label="text", lines=3), target], "read"
    else:
        f, inputs, did = of_picture, [gradio.Image(type="pil", label="picture"), target, places], "look at"
    title = f"What did {loaded.name} {did}?"
    return gradio.Interface(safe(f), inputs, shown, title=title, flagging_mode="never", api_name="explain")


def _framed(content: str) -> str:
    """A page in a frame of its own: it runs its script, and reaches nothing around it."""
    encoded = base64.b64encode(content.encode()).decode()
    return (
        f'<iframe title="explanation" sandbox="allow-scripts" src="data:text/html;base64,{encoded}" '
        f'style="width:100%;height:{HEIGHT}px;border:0"></iframe>'
    )
