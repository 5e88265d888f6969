"""Shows concepts: writes their page, of a data set alone or of a sample that is explained by them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fxlrp.engine.seeds import Contrast, Question, Target
from fxlrp.inside.concepts import Concepts, parts_of_call
from fxlrp.inside.concepts_page import Shown, page
from fxlrp.inside.references import Reference, call_of, conditional_maps, flat, reference, references
from fxlrp.show.files import write
from fxlrp.show.words import headline as headline_of

if TYPE_CHECKING:
    from fxlrp.explainer import Explainer


def show_concepts(
    model: nn.Module | Explainer,
    found: Concepts,
    data: Any,
    path: str | Path,
    *,
    explain: Any = None,
    seen: Any = None,
    parts: Sequence[int] | None = None,
    most: int = 5,
    samples: int = 6,
    target: Target = None,
    contrast: Contrast = "default",
    labels: Sequence[str] = (),
) -> Path:
    """Write one HTML file of concepts and return its path.

    model: as for `fxlrp.concepts`; a module is explained by the rulebook the concepts were found by.
    data: as for `fxlrp.concepts`, whose samples stand for the concepts.
    explain: a sample like those of the data: the page says which concepts speak for its class, and where.
    seen: what is seen of it: a picture [H, W, 3], or the words of a text.
    parts: which concepts are shown; without it, the `most` that the sample's class owes most to, or those that have
      the largest share over the data.  samples: references of each.
    target, contrast: of what is explained; references have the maps of what they were found for.
    labels: the names of the classes.

    Raises FxlrpError as an explainer's call does, and for a path that can't be written.
    """
    from fxlrp.explainer import Explainer, convert

    explainer = model if isinstance(model, Explainer) else convert(model, rules=found.about["rules"])
    headline, whole, shares = "", None, found.mean
    if explain is not None:
        args, kwargs = call_of(explain)
        share, _ = parts_of_call(
            explainer, args, kwargs, Question(target, contrast), found.at, found.by, found.directions
        )
        shares = share[0]
        a = explainer(*args, target=target, contrast=contrast, **kwargs)
        headline = headline_of(replace(a, labels=tuple(labels)))
        whole = reference(-1, 1.0, flat(a.each[0][0].detach().double().cpu()), explain, seen)
    chosen = list(parts) if parts is not None else shares.argsort(descending=True, stable=True)[:most].tolist()
    of_data = target if found.about["target"] == "given" else found.about["target"]
    by_relevance, by_activation = (
        references(explainer, found, data, chosen, by=by, most=samples, target=of_data)
        for by in ("relevance", "activation")
    )
    own: dict[int, Reference] = {}
    if explain is not None:
        maps = conditional_maps(explainer, found, explain, chosen, target)
        own = {p: reference(-1, float(shares[p]), r, explain, seen) for p, r in zip(chosen, maps, strict=True)}
    shown = [Shown(p, float(shares[p]), own.get(p), by_relevance[p], by_activation[p]) for p in chosen]
    return write(Path(path), page(found, shown, headline, whole))
