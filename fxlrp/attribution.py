"""Attribution: what an explainer returns, and pictures of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from fxlrp.capture.axes import argument
from fxlrp.engine.seeds import Position
from fxlrp.errors import FxlrpError
from fxlrp.reports.ended import Ended
from fxlrp.reports.report import Conservation, Report
from fxlrp.show.parts import samples_of
from fxlrp.show.words import against, headline

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False, repr=False)
class Attribution:
    """Relevance of the inputs for an output.

    relevance: shaped like the explained input (token ids: like the ids, summed over the embedding); a tuple of several.
    Where K classes of each sample were explained, [B, K, …]: see `of`.
    output: the model's own output.  logits: the explained tensor in it.
    target: the class explained per sample [B], or None where a callable target was.
    names: where each explained input stood in the call.
    latent: relevance at the modules and nodes that the call named by `at`, in the shape of their values.
    trace: how much relevance passed every node, if the call asked for it.
    ended: of samples whose map is zero though their score is not, where relevance ended and why; else None.
    rules, contrast: the rulebook's name, and what the target was set against.
    given: the condition that relevance had to pass, in words; a tuple of K of them, and relevance is [B, K, …].
    labels: the names of the classes, if they are known.
    pictures: the picture of each sample [H, W, 3], uint8 or in 0…1, if the input was made of one.
    position: the explained position in a sequence or map of logits, as it was asked for.
    asked: a target that is no class, in words.
    independent: whether classes don't exclude each other, so that the probability of each is its own sigmoid.
    features: the names of an input's features.  edges: of nodes, which are joined [2, E].
    """

    relevance: Tensor | tuple[Tensor, ...]
    output: Any
    logits: Tensor
    target: Tensor | None
    names: tuple[str, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    latent: dict[str, Tensor] = field(default_factory=dict)
    trace: Report | None = None
    ended: Ended | None = None
    rules: str = ""
    contrast: int | str | None = None
    given: str | tuple[str, ...] = ""
    labels: tuple[str, ...] = ()
    pictures: tuple[np.ndarray, ...] = ()
    position: Position = None
    asked: str = ""
    features: tuple[str, ...] = ()
    edges: Tensor | None = None
    independent: bool = False

    @property
    def each(self) -> tuple[Tensor, ...]:
        """Relevance of each explained input, of one as of several."""
        return self.relevance if isinstance(self.relevance, tuple) else (self.relevance,)

    @property
    def named(self) -> dict[str, Tensor]:
        """Relevance by the name of the argument it was read at, as "pixel_values"; "0" for the first positional one."""
        return {argument(name): r for name, r in zip(self.names, self.each, strict=True)}

    def conservation(self) -> Conservation:
        """Where relevance was lost or made, node by node, from the output to the input.

        Raises FxlrpError unless the call was made with trace=True.
        """
        if self.trace is None:
            raise FxlrpError("Nothing was traced: call explainer(…, trace=True), then .conservation().")
        return self.trace.conservation()

    @property
    def several(self) -> bool:
        """Whether relevance is [B, K, …]: of K classes, or of K conditions."""
        return isinstance(self.given, tuple) or (self.target is not None and self.target.ndim == 2)

    def of(self, k: int) -> Attribution:
        """The attribution for the k-th of several classes, or of several conditions."""
        if not self.several:
            raise FxlrpError("One class of each sample was explained; there are no others to pick.")
        maps = tuple(_column(r, x, k) for r, x in zip(self.each, self.inputs, strict=True))
        relevance = maps if isinstance(self.relevance, tuple) else maps[0]
        latent = {name: r[:, k] for name, r in self.latent.items()}
        if isinstance(self.given, tuple):
            return replace(self, relevance=relevance, given=self.given[k], latent=latent)
        assert self.target is not None
        return replace(self, relevance=relevance, target=self.target[:, k], latent=latent)

    def heatmap(self) -> Tensor:
        """Relevance per pixel [B, H, W]: the channels of the first image-like input summed."""
        return self._image()[1].sum(1)

    def _image(self) -> tuple[Tensor, Tensor]:
        for x, r in zip(self.inputs, self.each, strict=True):
            if r.ndim == 4:
                return x, r
        shapes = ", ".join(str(tuple(r.shape)) for r in self.each)
        raise FxlrpError(f"No explained input is an image [B, C, H, W] (relevance has shape {shapes}); use .relevance.")

    def plot(
        self,
        *,
        index: int = 0,
        picture: Any = None,
        features: Sequence[str] = (),
        colours: str = "red-blue",
        opacity: float = 0.85,
    ) -> Figure:
        """A matplotlib figure of sample `index`, which can be changed: see `fxlrp.show.figure.plot`.

        picture: the original as [H, W, 3] in 0…1 or uint8; without it, the network's input is stretched to that range.
        features: names for an input of so many numbers.  opacity: of the overlay, 0…1.
        colours: red-blue, lightness (to be read without telling red from blue) or a map of matplotlib's.

        Raises FxlrpError for a picture, index or colours that can't be.
        """
        from fxlrp.show.figure import plot

        return plot(self, index=index, picture=picture, features=features, colours=colours, opacity=opacity)

    def save(self, path: str | Path, picture: Any = None, *, index: int = 0, **how: Any) -> Path:
        """Write it to a file and return its path: a figure (.png, .svg, .pdf, .jpg, .webp), a page (.html), numbers
        (.json, .csv, .npz), or all of it (.safetensors), which `fxlrp.load` reads: see `fxlrp.show.files.save`.

        picture, index and how (features, colours, opacity, dpi): as in `plot`.

        Raises FxlrpError for a picture or index that cannot be, another extension, and a path that can't be written.
        """
        from fxlrp.show.files import save

        return save(self, path, index=index, **({} if picture is None else {"picture": picture}), **how)

    def to_html(self, path: str | Path, *, index: int = 0, **how: Any) -> Path:
        """Write one HTML file that needs nothing else, and return its path: see `fxlrp.show.page.fragment`.

        Raises FxlrpError as `save` does.
        """
        from fxlrp.show.files import write
        from fxlrp.show.page import page

        return write(Path(path), page([self], index=index, **how))

    def __str__(self) -> str:
        count, shapes = samples_of(self), ", ".join(str(list(r.shape)) for r in self.each)
        by = f" by {self.rules}" if self.rules else ""
        asked = "; ".join(headline(self, i) for i in range(min(count, 3))) + ("; …" if count > 3 else "")
        return f"Attribution of {' '.join(filter(None, (asked, against(self))))}: relevance {shapes}{by}"

    def __repr__(self) -> str:
        return f"<{self}>"

    def _repr_html_(self) -> str:
        from fxlrp.show.page import fragment

        return fragment([self])


def _column(r: Tensor, x: Tensor, k: int) -> Tensor:
    """The k-th of several maps of an input, which lie behind its samples, or before it all if it is of one sample."""
    return r[k] if r.shape[1:] == x.shape and (r.ndim < 2 or r.shape[:1] + r.shape[2:] != x.shape) else r[:, k]
