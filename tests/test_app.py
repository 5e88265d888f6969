"""The app in the browser: what its function answers to a picture, a text, and to what can't be."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from PIL import Image

from fxlrp.cli.app_in_browser import make_app
from fxlrp.inputs import load_labels, load_model
from fxlrp.text.command import load_tokenizer

gradio = pytest.importorskip("gradio")

EXAMPLES = Path(__file__).parents[1] / "examples"


def page_in(frame: str) -> str:
    assert 'sandbox="allow-scripts"' in frame
    match = re.search(r"base64,([^\"]+)", frame)
    assert match
    return base64.b64decode(match[1]).decode()


def test_a_picture() -> None:
    loaded = load_model(str(EXAMPLES / "model.pt"))
    loaded.labels = load_labels(EXAMPLES / "labels.txt")
    app = make_app(loaded, "abslrp-hybrid")
    image = Image.open(EXAMPLES / "pictures" / "ring_star.png")
    for target, first in ((None, "ring"), ("star", "star")):
        page = page_in(app.fn(image, target, "layer2"))
        assert page.index(f'"name":"{first}"') < page.index('"name":"cross"')
        assert '"name":"layer2"' in page
    assert app.fn(None, None, "") == ""
    with pytest.raises(gradio.Error, match="no_such_layer"):
        app.fn(image, None, "no_such_layer")


def test_a_text() -> None:
    folder = str(EXAMPLES / "text")
    app = make_app(load_model(folder), "attnlrp", load_tokenizer(folder))
    page = page_in(app.fn("the film was not funny.", "negative"))
    assert "negative (" in page
    assert "funny" in re.sub(r"<[^>]+>", "", page)
