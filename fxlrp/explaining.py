"""One call for everything: it loads the model, prepares the inputs, explains, and names what was explained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxlrp.attribution import Attribution
from fxlrp.boxes import Box, box_at, boxes_in
from fxlrp.capture.calls import refused
from fxlrp.capture.objects import open_objects
from fxlrp.engine.seeds import Contrast, Position
from fxlrp.errors import FxlrpError
from fxlrp.explainer import Explainer, convert
from fxlrp.export.artifact import ExportedExplainer
from fxlrp.inputs import LoadedModel, Preprocess, find_class, load_model, open_picture
from fxlrp.inputs.models import loaded_from
from fxlrp.inputs.pictures import channels_of
from fxlrp.methods import DEFAULT
from fxlrp.rules.registry import Rulebook
from fxlrp.show.files import write_pages
from fxlrp.show.parts import framed
from fxlrp.show.words import scores_of
from fxlrp.text.attribution import TextAttribution, write_html

OTHERS = ("abslrp", "attnlrp")
"""The rulebooks that a page shows beside the one asked for."""
BATCH = 16
"""The pictures that are explained at once."""


def explain(
    model: str | Path | nn.Module | LoadedModel,
    *inputs: Any,
    target: Any = None,
    contrast: Contrast = "default",
    position: Position = None,
    box: int | None = None,
    rules: str | Rulebook = DEFAULT,
    at: Sequence[str] = (),
    shifts: int = 1,
    labels: Sequence[str] | None = None,
    features: Sequence[str] = (),
    edges: Tensor | None = None,
    preprocess: Preprocess | None = None,
    tokenizer: Any = None,
    arch: str | None = None,
    pretrained: bool = True,
    trust: bool = False,
    device: str | torch.device | None = None,
    html: str | Path | None = None,
    **kwargs: Any,
) -> Attribution | TextAttribution | list[TextAttribution]:
    """Explain what a model looked at: fxlrp.explain("timm:resnet50", "cat.jpg", target="tabby").

    model: a module; a name or file as `fxlrp explain` takes it (timm:NAME, torchvision:NAME, hf:DIR, weights.pt with
      arch); what `fxlrp.inputs.load_model` returned; or an explainer, which keeps what it has captured (and its rules).
    inputs: a picture (a file, a PIL image, an array [H, W, 3] of uint8) or a list of several; a text or a list of
      texts for a model that reads them; or the model's own arguments, tensors as it takes them, with kwargs.
    target, contrast, position, at: as in `Explainer.forward`; classes may be named.  rules, shifts: as in `convert`.
    box: of a detector, whose score is explained: 0, the surest, if nothing else is asked: see `fxlrp.boxes`.
    labels: names of the classes, if the model does not bring them.  preprocess: how it takes pictures, likewise.
    features: names for an input of so many numbers, or of a graph's nodes.  edges: which nodes are joined [2, E]; an
      argument of such integers is taken for them.
    tokenizer: of a module that reads text; a name brings its own.
    arch, pretrained, trust: as in `fxlrp.inputs.load_model`.  device: where the model runs, if it is loaded here.
    html: a file to write a page to, with buttons for other classes, contrasts and rulebooks: see `every_side`.

    Returns an Attribution that knows the names of its classes and the pictures, to be looked at (`save`, `plot`,
    `to_html`, in a notebook); of texts a TextAttribution, or a list of them.

    Raises FxlrpError for a model, input or class that can't be, and as `convert` and its explainer do.
    """
    if not inputs and not kwargs:
        raise FxlrpError('There is nothing to explain: give a picture, a text or tensors, explain(model, "cat.jpg").')
    loaded = _loaded(model, arch, pretrained, trust, device)
    if loaded.reads_text and inputs and _are_texts(inputs[0]):
        if at or shifts > 1 or box is not None:
            raise FxlrpError("at, shifts and box are of pictures and tensors; leave them out for a text.")
        asked = {"target": target, "contrast": contrast, "position": position}
        answers = _of_texts(model, loaded, tokenizer, inputs, rules=rules, **asked, **kwargs)
        if html is not None:
            write_html(html, answers if isinstance(answers, list) else [answers], loaded.name)
        return answers
    names = tuple(labels or loaded.labels or ())
    explainer: Any = model if isinstance(model, Explainer) else loaded.module
    if not isinstance(explainer, Explainer | ExportedExplainer):
        explainer = convert(explainer, rules=rules, shifts=shifts)
    target, contrast = (classes_by_number(asked, names) for asked in (target, contrast))
    question: dict[str, Any] = {"target": target, "contrast": contrast}
    question |= {name: given for name, given in (("at", tuple(at)), ("position", position)) if given not in (None, ())}
    if len(inputs) != 1 or not _are_pictures(inputs[0]):
        if box is not None:
            raise FxlrpError("box is of a picture that is given as one; ask tensors by a callable target.")
        a = explainer(*inputs, **question, **kwargs)
        joined = edges if edges is not None else edges_in(a, (inputs, kwargs))
        a = replace(a, labels=names, features=tuple(features), edges=joined)
        return _shown(explainer, a, (inputs, kwargs), question, html, loaded.name)
    loaded = replace(loaded, preprocess=preprocess or loaded.preprocess, labels=list(names))
    surest = box is None and target is None and position is None and not kwargs and not isinstance(model, Explainer)
    given = inputs[0] if isinstance(inputs[0], list | tuple) else inputs
    a, x = _of_pictures(explainer, loaded, given, box=box, surest=surest, **question, **kwargs)
    return _shown(explainer, a, ((x,), kwargs), question, html, loaded.name)


def _of_pictures(
    explainer: Explainer | ExportedExplainer, loaded: LoadedModel, given: Sequence[Any], **how: Any
) -> tuple[Attribution, Tensor]:
    """The attribution of pictures as a user gives them, and the model's input: see `explain_images`."""
    images = [_open(one) for one in given]
    prepare = loaded.preprocess.but(channels=channels_of(loaded.module))
    if prepare.guessed:
        warnings.warn(
            "The model does not say what pictures it takes, so ImageNet's size, mean and std are used: "
            "preprocess=fxlrp.inputs.Preprocess(size=…, mean=…, std=…) says it.",
            stacklevel=3,
        )
    if len(images) > BATCH:
        raise FxlrpError(f"Give at most {BATCH} pictures in one call; more make one call after the other.")
    return explain_images(explainer, replace(loaded, preprocess=prepare), images, **how)


def explain_images(
    explainer: Explainer | ExportedExplainer,
    loaded: LoadedModel,
    images: Sequence[Image.Image],
    *,
    box: int | None = None,
    surest: bool = False,
    **question: Any,
) -> tuple[Attribution, Tensor]:
    """Explain pictures as the loaded model takes them; returns the attribution, which knows its classes and the
    pictures, and the model's input.

    box: of a detector and one picture, whose score is explained.  Raises FxlrpError if there is none.
    surest: take the surest box, if the model is a detector that finds one.
    """
    tensors = [loaded.preprocess(image)[0] for image in images]
    x = loaded.like(torch.stack(tensors) if len(tensors) > 1 else tensors[0][None])
    seen, asked, labels = [loaded.preprocess.seen(image) for image in images], "", tuple(loaded.labels or ())
    boxes: list[Box] | None = None
    if box is not None or (surest and isinstance(explainer, Explainer) and not explainer.model.training):
        boxes = _boxes(explainer, x[:1], labels)
        box = 0 if box is None and boxes else box
    if box is not None:
        if len(images) > 1:
            raise FxlrpError("A box is one picture's: explain one picture in a call.")
        chosen = box_at(boxes, box)
        question |= {"contrast": None, **chosen.question}
        asked, seen = f"box {box}: {chosen.named(labels)}", [framed(seen[0], chosen.corners)]
    a = explainer(x, **question)
    return replace(a, labels=labels, pictures=tuple(seen), asked=asked), x


def _boxes(model: nn.Module, x: Tensor, labels: Sequence[str]) -> list[Box] | None:
    model = model.model if isinstance(model, Explainer) else model
    try:
        with torch.no_grad():
            found = model(x)
    except Exception as error:
        raise refused(error) from error
    return boxes_in(found, (x.shape[-2], x.shape[-1]), labels)


def edges_in(a: Attribution, call: tuple[tuple, dict]) -> Tensor | None:
    """The edges [2, E] among the arguments of a call: integers that number the rows of what was explained."""
    args, kwargs = open_objects(call)
    nodes = max((len(x) for x in a.inputs if x.ndim == 2), default=0)
    for t in tree_leaves((args, kwargs)):
        is_pairs = isinstance(t, Tensor) and t.dtype == torch.long and t.ndim == 2 and t.shape[0] == 2 and t.numel()
        if is_pairs and int(t.min()) >= 0 and int(t.max()) < nodes:
            return t
    return None


def every_side(
    explainer: Explainer, a: Attribution, call: tuple[tuple, dict], at: Sequence[str] = (), classes: int = 3
) -> list[Attribution]:
    """The answer `a` to a call from more sides: its class and the likeliest others, against what it was and against
    nothing, then by the rulebooks `OTHERS`.  Each is one relevance pass over one forward pass for all classes.

    call: the arguments, (args, kwargs).  at: places inside whose relevance is shown, too.

    Of one sample, relevance is also traced from module to module.  A target that is no class has one side.
    """
    args, kwargs = call
    scores = scores_of(a)
    if a.target is None or a.target.ndim != 1 or scores is None or scores.shape[1] < 2:
        return [a]
    chances = scores.scatter(1, a.target[:, None].to(scores.device), torch.inf)
    if isinstance(a.contrast, int):  # nothing is set against itself
        chances[:, a.contrast] = -torch.inf
        classes = min(classes, chances.shape[1] - 1)
    asked = chances.topk(min(classes, chances.shape[1])).indices
    about = {name: getattr(a, name) for name in ("labels", "pictures", "features", "edges")}
    kwargs = kwargs | ({} if a.position is None else {"position": a.position})
    first = explainer(*args, target=asked, contrast=a.contrast, at=tuple(at), **kwargs)
    answers = [first] if a.contrast is None else [first, explainer(*args, target=asked, contrast=None, **kwargs)]
    answers += [explainer.by(book)(*args, target=asked, **kwargs) for book in OTHERS if book != a.rules]
    if len(a.target) == 1:
        traced = explainer(*args, target=a.target, contrast=a.contrast, trace=True, **kwargs)
        answers[0] = replace(answers[0], trace=traced.trace)
    return [replace(answer, **about) for answer in answers]


def _shown(
    explainer: nn.Module, a: Attribution, call: tuple[tuple, dict], question: dict, html: str | Path | None, name: str
) -> Attribution:
    """The attribution, after writing a page of it if there is a file for one."""
    if html is not None:
        sides = every_side(explainer, a, call, question.get("at", ())) if isinstance(explainer, Explainer) else [a]
        write_pages(html, [sides], model=name)
    return a


def _loaded(
    model: object, arch: str | None, pretrained: bool, trust: bool, device: str | torch.device | None
) -> LoadedModel:
    """The model with what is known of its inputs and classes.  Raises FxlrpError for what is none."""
    if isinstance(model, LoadedModel):
        return model
    if isinstance(model, Explainer):
        return loaded_from(model.model)
    if isinstance(model, nn.Module):
        return loaded_from(model)
    if not isinstance(model, str | Path):
        raise FxlrpError(f"A {type(model).__name__} is no model; give a module, or a name such as timm:resnet50.")
    loaded = load_model(str(model), arch=arch, trust=trust, pretrained=pretrained)
    loaded.module.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return loaded


def _of_texts(
    model: object, loaded: LoadedModel, tokenizer: Any, texts: tuple, **question: Any
) -> TextAttribution | list[TextAttribution]:
    from fxlrp.text import explain as explain_text
    from fxlrp.text.command import load_tokenizer

    if tokenizer is None:
        if not isinstance(model, str | Path):
            raise FxlrpError("A module that reads text needs its tokenizer: explain(model, text, tokenizer=…).")
        tokenizer = load_tokenizer(str(model))
    given = model if isinstance(model, Explainer) else loaded.module
    return explain_text(given, tokenizer, *texts, **question)


def _are_texts(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(v, str) for v in value))


def _are_pictures(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(_are_pictures(v) for v in value)
    return isinstance(value, str | Path | Image.Image) or (isinstance(value, np.ndarray) and value.dtype == np.uint8)


def _open(given: Any) -> Image.Image:
    """A picture.  Raises FxlrpError for a file that is none, and an array of another shape."""
    if isinstance(given, str | Path):
        if not Path(given).is_file():
            raise FxlrpError(f"There is no file {given}.")
        return open_picture(Path(given))
    if isinstance(given, Image.Image):
        return given.convert("RGB")
    if given.ndim != 3 or given.shape[2] != 3:
        raise FxlrpError(f"An array of shape {given.shape} is no picture; give [H, W, 3] of uint8.")
    return Image.fromarray(given)


def classes_by_number(asked: Any, labels: Sequence[str]) -> Any:
    """A target or contrast with class numbers in the place of names.  Raises FxlrpError for a name that is none."""
    if isinstance(asked, str) and asked not in ("default", "others", "softmax"):
        return find_class(asked, list(labels))
    if isinstance(asked, list | tuple):
        return [classes_by_number(one, labels) for one in asked]
    return asked
