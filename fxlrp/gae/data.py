"""Data sets for an evaluation: samples with ids, and masks."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxlrp.errors import FxlrpError


@dataclass(frozen=True)
class Sample:
    """One picture of a data set.

    x [C, H, W] as the model takes it; label, if known.  mask: where the object is, bool [H, W], or such by class.
    """

    x: Tensor
    label: int | None = None
    mask: Tensor | Mapping[int, Tensor] | None = None

    def shown(self, cls: int, predicted: int) -> Tensor | None:
        """Return where the picture shows a class, bool [H, W], or None if that is not known.

        A single mask is of the label or, without a label, of the predicted class.
        """
        if isinstance(self.mask, Mapping):
            return self.mask.get(cls)
        return self.mask if cls == (predicted if self.label is None else self.label) else None


def count_of(dataset: Any, limit: int | None) -> int:
    """Return how many samples of a data set are taken.

    Raises FxlrpError for one that is empty, or has no length or items.
    """
    if isinstance(dataset, str) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise FxlrpError(f"The data set is a {type(dataset).__name__}; give one with a length and items by number.")
    count = len(dataset) if limit is None else min(limit, len(dataset))
    if not count:
        raise FxlrpError("The data set is empty.")
    return count


class Data:
    """A data set of any kind as samples: of items x, (x, label), (x, label, mask) or dicts with these keys.

    Raises FxlrpError for a data set without length or items, or with another number of masks, and for odd items.
    """

    def __init__(self, dataset: Any, masks: Sequence[Any] | None = None, limit: int | None = None) -> None:
        self.dataset, self.masks, self.count = dataset, masks, count_of(dataset, limit)
        if masks is not None and len(masks) != len(dataset):
            raise FxlrpError(
                f"There are {len(masks)} masks for {len(dataset)} samples; give one each, or None for none."
            )

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Sample:
        item = self.dataset[i]
        if isinstance(item, Mapping):
            item = tuple(item.get(key) for key in ("x", "label", "mask"))
        elif not isinstance(item, tuple | list):
            item = (item,)
        x, label, mask = (*item, None, None)[:3]
        if self.masks is not None:
            mask = self.masks[i]
        x = torch.as_tensor(x)
        if x.ndim != 3 or not x.is_floating_point():
            raise FxlrpError(f"Sample {i} is {x.dtype} of shape {list(x.shape)}; it should be float [C, H, W].")
        if isinstance(mask, Mapping):
            return Sample(x, _label(label), {int(c): _mask(m, x, i) for c, m in mask.items()})
        return Sample(x, _label(label), None if mask is None else _mask(mask, x, i))


def _label(label: Any) -> int | None:
    return None if label is None else int(label)


def _mask(mask: Any, x: Tensor, i: int) -> Tensor:
    """Return the mask of sample i as bool [H, W].  Raises FxlrpError if the sample has another size."""
    mask = torch.as_tensor(mask).squeeze() > 0
    if mask.shape != x.shape[-2:]:
        raise FxlrpError(f"The mask of sample {i} has shape {list(mask.shape)}, the sample {list(x.shape)}.")
    return mask


def ring(count: int, seed: int, turn: int = 0) -> list[int]:
    """Return all samples in an order drawn by seed and index.

    A mosaic is four neighbours in it, so that every picture stands in as many as any other.
    """
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{seed}:{turn}:{i}".encode()).digest())


class Folder:
    """The pictures of a folder, preprocessed.

    masks: a folder of pictures of the same name or NAME_mask, that are not black where the object is.  A picture
    NAME_mask beside NAME is a mask and no sample.
    """

    def __init__(self, folder: Path, preprocess: Any, masks: Path | None = None) -> None:
        from fxlrp.inputs import find_pictures

        pictures = find_pictures([str(folder)])
        stems = {p.stem for p in pictures}
        self.files = [p for p in pictures if not (p.stem.endswith("_mask") and p.stem.removesuffix("_mask") in stems)]
        self.preprocess = preprocess
        self.masks = None if masks is None else [_mask_file(masks, p) for p in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[Tensor, None, Tensor | None]:
        from dataclasses import replace

        from fxlrp.inputs import open_picture

        x, _ = self.preprocess(open_picture(self.files[i]))
        if self.masks is None:
            return x, None, None
        plain = replace(self.preprocess, mean=(0.0,) * 3, std=(1.0,) * 3, interpolation="nearest", channels=3)
        return x, None, plain(open_picture(self.masks[i]))[0].amax(0) > 0


def _mask_file(folder: Path, picture: Path) -> Path:
    """Find the mask of a picture in a folder.  Raises FxlrpError if there is none."""
    for stem in (f"{picture.stem}_mask", picture.stem):
        for suffix in dict.fromkeys((".png", picture.suffix)):
            if (file := folder / f"{stem}{suffix}").is_file() and file.resolve() != picture.resolve():
                return file
    raise FxlrpError(
        f"There is no mask for {picture.name} in {folder}; name it {picture.stem}.png or {picture.stem}_mask.png."
    )


class _Stored:
    """The pictures of a table or archive, preprocessed, and their labels where these are numbers."""

    def __init__(self, spec: str, preprocess: Any) -> None:
        from fxlrp.data.sources import open_source

        self.source, self.preprocess = open_source(spec), preprocess

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[Tensor, int | None]:
        try:
            label, picture = self.source.key(i)[1], self.source.value(i)
        except Exception as error:  # whatever a reader raises
            raise FxlrpError(f"Sample {i} of {self.source.files[0]} can't be read: {error}") from error
        x = picture if isinstance(picture, Tensor) else self.preprocess(picture)[0]
        return x, label if isinstance(label, int) else None


def open_data(spec: str, preprocess: Any, masks: Path | None = None) -> Any:
    """Open the data set that `spec` names.

    spec: a folder of pictures, one that Hugging Face's `datasets` saved, a .tar of WebDataset, .parquet, .csv or
      .jsonl, or `module:factory` (also path/to/file.py:factory), a function that returns a data set.

    Raises FxlrpError if there is none such, and for masks beside a data set that is no folder of pictures.
    """
    from fxlrp.data.tables import is_saved_by_datasets

    path = Path(spec)
    stored = path.is_file() or is_saved_by_datasets(path)
    if masks is not None and (stored or (":" in spec and not path.is_dir())):
        raise FxlrpError(
            f"A folder of masks goes with a folder of pictures; {spec} has its own: items (x, label, mask)."
        )
    if stored:
        return _Stored(spec, preprocess)
    if path.is_dir():
        return Folder(path, preprocess, masks)
    module, colon, factory = spec.rpartition(":")
    if not colon:
        raise FxlrpError(f"There is no {spec}; DATA is a folder, a .tar, .parquet, .csv or .jsonl, or module:factory.")
    return call_factory(module, factory)


def call_factory(module: str, factory: str) -> Any:
    """Import a module or Python file and call a function of it.  Raises FxlrpError if there is none such."""
    before = list(sys.path)
    try:
        if module.endswith(".py"):
            sys.path.insert(0, str(Path(module).resolve().parent))
            spec = importlib.util.spec_from_file_location(Path(module).stem, module)
            assert spec is not None
            assert spec.loader is not None
            code = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(code)
        else:
            sys.path.insert(0, str(Path.cwd()))
            code = importlib.import_module(module)
    except (ImportError, FileNotFoundError) as error:
        raise FxlrpError(f"Cannot import {module} for the data set: {error}.") from error
    finally:
        sys.path[:] = before
    make = getattr(code, factory, None)
    if not callable(make):
        raise FxlrpError(f"{module} has no function {factory}, which should return the data set.")
    return make()
