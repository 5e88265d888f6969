"""How `explain` and `compare` take pictures, and the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL.Image import Image
from rich.markup import escape

from fxlrp.attribution import Attribution
from fxlrp.boxes import returns_boxes
from fxlrp.cli.answering import AnyExplainer, Asked, Reading, print_answer
from fxlrp.cli.loading import load, print_counts, take_pictures
from fxlrp.cli.terminal import out
from fxlrp.errors import FxlrpError
from fxlrp.explainer import convert
from fxlrp.explaining import explain_images
from fxlrp.inputs import LoadedModel, open_picture


def pictures(loaded: LoadedModel, asked: Asked, *, box: int | None = None, check_labels: bool = False) -> Reading:
    """How files of pictures are taken.

    box: of a detector; the surest, if nothing is asked.
    check_labels: whether the class names must be as many as the classes.
    """
    may_detect = box is None and not asked.targets and asked.position is None  # until an output has no boxes

    def explain(
        explainer: AnyExplainer, image: Image, question: dict[str, Any]
    ) -> tuple[Attribution, tuple[tuple, dict]]:
        nonlocal may_detect
        a, x = explain_images(explainer, loaded, [image], box=box, surest=may_detect, **question)
        may_detect = may_detect and returns_boxes(a.output)
        if check_labels and loaded.labels and a.logits.ndim > 1 and len(loaded.labels) != a.logits.shape[1]:
            raise FxlrpError(f"--labels has {len(loaded.labels)} names, but the model has {a.logits.shape[1]} classes.")
        return a, ((x,), {})

    return Reading("picture", open_picture, explain)


def demo_pictures(output: Path) -> None:
    """Explain two objects in one picture with the network that comes with fxlrp."""
    examples = Path(__file__).resolve().parents[1] / "examples"
    loaded = load(str(examples / "model.pt"), None, None, False, False, "cpu")
    loaded = take_pictures(loaded, None, None, None, examples / "labels.txt")
    labels = loaded.labels or []
    shown = ((p, [n for n in p.stem.split("_") if n in labels]) for p in sorted(examples.glob("pictures/*.png")))
    picture, objects = next((p, n[:2]) for p, n in shown if len(n) > 1)
    explainer = convert(loaded.module)
    for name in objects:
        a, _ = explain_images(explainer, loaded, [open_picture(picture)], target=labels.index(name))
        print_answer(a, picture)
        out.print(f"  wrote [bold]{escape(str(a.save(output / f'demo_{name}.png')))}[/]", soft_wrap=True)
    print_counts(explainer.report())
