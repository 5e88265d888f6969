"""Read pictures from files, and turn them into the tensors that a model was trained on."""

from __future__ import annotations

import glob
import math
import os
import reprlib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from fxlrp.errors import FxlrpError
from fxlrp.inputs.labels import class_names
from fxlrp.inputs.limits import MOST_INPUT, MOST_PIXELS, MOST_SIDE
from fxlrp.show.files import SUFFIXES as WRITTEN

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
"""The formats read: PIL knows many more, one of which starts Ghostscript, and nobody keeps photographs in those."""
FILTERS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a model's input: it is resized, its centre cut out, scaled to 0..1 and normalised.

    size: height and width in pixels.
    mean, std: of each colour, in 0..1.
    crop_pct: how much of the resized picture's side is kept.
    interpolation: a PIL filter by name.
    squash: resize to `size` and crop nothing; the picture's proportions are lost.
    channels: 3, or 1 for grey.
    guessed: whether these are ImageNet's values, for want of others.

    Raises FxlrpError for values that no picture can be prepared with: what a file says of a model comes through here.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    squash: bool = False
    channels: int = 3
    guessed: bool = False

    def __post_init__(self) -> None:
        for name in ("size", "mean", "std"):  # JSON knows lists only
            if isinstance(value := getattr(self, name), list):
                object.__setattr__(self, name, tuple(value))
        colours = "takes one number or three"
        checks = {
            "size": (
                _are_numbers(self.size, (2,), 1, MOST_INPUT, Integral) and self.size[0] * self.size[1] <= MOST_INPUT,
                f"--size takes pixels, at most {MOST_INPUT:,} in all, as in 224 or 240x320",
            ),
            "mean": (_are_numbers(self.mean, (1, 3), -1e6, 1e6), f"--mean {colours}, finite, as in 0.5,0.5,0.5"),
            "std": (_are_numbers(self.std, (1, 3), 1e-6, 1e6), f"--std {colours}, above 0, as in 0.5,0.5,0.5"),
            "crop_pct": (_are_numbers((self.crop_pct,), (1,), 0.01, 100), "the model should say a number near 1"),
            "interpolation": (self.interpolation in FILTERS, f"the model should say one of {', '.join(FILTERS)}"),
            "squash": (isinstance(self.squash, bool), "the model should say true or false"),
            "channels": (self.channels in (1, 3), "pictures have 3, or 1 in grey"),
            "guessed": (isinstance(self.guessed, bool), "it should be true or false"),
        }
        for name, (fine, should) in checks.items():
            if not fine:
                value = reprlib.repr(getattr(self, name))
                raise FxlrpError(f"Pictures cannot be prepared with {name} {value}: {should}.")

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """Return the input, float [channels, H, W], and what is seen in it, float [H, W, 3] in 0..1.

        Raises FxlrpError for a picture so long and thin that its other side would be huge.
        """
        from torchvision.transforms.v2 import functional as F

        _check_pixels(*image.size, "The picture")
        image = ImageOps.exif_transpose(image).convert("RGB")
        resized = self._resized(image.height, image.width)
        image = F.center_crop(F.resize(image, resized, F.InterpolationMode(self.interpolation)), list(self.size))
        picture = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
        if self.channels == 1:
            x = F.to_dtype(F.pil_to_tensor(image.convert("L")), torch.float32, scale=True)
            return F.normalize(x, [sum(self.mean) / len(self.mean)], [sum(self.std) / len(self.std)]), _hwc(picture)
        return F.normalize(picture, list(self.mean), list(self.std)), _hwc(picture)

    def seen(self, image: Image.Image, most: int = 1024) -> np.ndarray:
        """Return the part of a picture that the model sees, at the picture's own resolution, its longer side at most
        `most` pixels: uint8 [H, W, 3]."""
        image = ImageOps.exif_transpose(image).convert("RGB")
        resized = self._resized(image.height, image.width)
        inside = [min(1.0, side / whole) for side, whole in zip(self.size, resized, strict=True)]
        if any(side > whole for side, whole in zip(self.size, resized, strict=True)):  # black is added around it
            return (self(image)[1] * 255).round().byte().numpy()
        height, width = max(1, round(inside[0] * image.height)), max(1, round(inside[1] * image.width))
        top, left = (image.height - height) // 2, (image.width - width) // 2
        part = image.crop((left, top, left + width, top + height))
        part.thumbnail((most, most))
        return np.asarray(part).copy()

    def but(
        self,
        size: tuple[int, int] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        channels: int | None = None,
    ) -> Preprocess:
        """Return the same with other values, where they are not None.  Raises FxlrpError as the class does."""
        values: dict[str, Any] = {"size": size, "mean": mean, "std": std, "channels": channels}
        new = replace(self, **{name: value for name, value in values.items() if value is not None})
        return replace(new, guessed=self.guessed and (size is None or mean is None or std is None))

    def _resized(self, height: int, width: int) -> list[int]:
        """Give the height and width that a picture is resized to before its centre is cut out."""
        h, w = self.size
        if not self.squash:
            ih, iw = (max(1, int(side / self.crop_pct)) for side in self.size)
            if h == w:  # torchvision's rounding of the longer side
                h, w = (ih, int(ih * width / height)) if height <= width else (int(iw * height / width), iw)
            else:
                scale = max(ih / height, iw / width)
                h, w = max(1, round(height * scale)), max(1, round(width * scale))
        if w * max(h, height) > MOST_PIXELS:  # PIL resizes the rows first, all of them
            raise FxlrpError(
                f"The picture of {width}x{height} pixels would be resized to {w}x{h}, which takes more than "
                f"{MOST_PIXELS:,} pixels on the way; make its sides more alike, or give a smaller --size."
            )
        return [h, w]


def _are_numbers(values: Any, counts: tuple[int, ...], low: float, high: float, kind: Any = Real) -> bool:
    """Tell whether these are so many numbers from `low` to `high`; NaN and True are none."""
    return (
        isinstance(values, tuple)
        and len(values) in counts
        and all(isinstance(v, kind) and not isinstance(v, bool) and low <= v <= high for v in values)
    )


def _check_pixels(width: int, height: int, where: str) -> None:
    """Raise FxlrpError, naming `where`, for a picture that is empty or huge."""
    if not 0 < width * height <= MOST_PIXELS or max(width, height) > MOST_SIDE:
        raise FxlrpError(
            f"{where} has {width}x{height} pixels; give one of at least 1 and at most {MOST_PIXELS:,} pixels, "
            f"no side over {MOST_SIDE:,}."
        )


def described(module: nn.Module) -> tuple[Preprocess | None, list[str] | None]:
    """Return the preprocessing and class names in a module's `pretrained_cfg` or `default_cfg`, as timm's have.

    Both are None if it has neither.  Raises FxlrpError for values that cannot be.
    """
    cfg = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(cfg, Mapping) or "input_size" not in cfg:
        return None, None
    # a model built for another size than its weights' config says so in its patch embedding
    actual = getattr(getattr(module, "patch_embed", None), "img_size", None)
    size: Any = actual if isinstance(actual, tuple) else cfg["input_size"]
    size = size[-2:] if isinstance(size, tuple | list) else size
    config: dict[str, Any] = {key: value for key, value in cfg.items() if value is not None}
    names = config.get("label_names", ())
    return (
        Preprocess(
            size,
            config.get("mean", Preprocess.mean),
            config.get("std", Preprocess.std),
            config.get("crop_pct", Preprocess.crop_pct),
            _filter(config.get("interpolation")),
            config.get("crop_mode") == "squash",
        ),
        None if isinstance(names, tuple | list) and not names else class_names(names, "The model's config"),
    )


def from_torchvision(weights: Any) -> Preprocess | None:
    """Return the preprocessing that a member of a torchvision weights enum was trained with, None if it has none."""
    transform = weights.transforms()
    if not hasattr(transform, "crop_size"):
        return None
    crop, resize = transform.crop_size[0], transform.resize_size[0]
    return Preprocess(
        (crop, crop), tuple(transform.mean), tuple(transform.std), crop / resize, transform.interpolation.value
    )


def from_processor(config: Any) -> Preprocess:
    """Return the preprocessing in a Hugging Face preprocessor_config.json.  Raises FxlrpError if it cannot be."""
    if not isinstance(config, Mapping):
        raise FxlrpError(f"The preprocessor_config.json holds {reprlib.repr(config)}; it should be a JSON object.")

    stated = {key: value for key, value in config.items() if value is not None}

    def sides(size: Any) -> Any:
        if isinstance(size, Mapping):
            edge = size.get("shortest_edge", size.get("longest_edge"))
            if "merge_size" in stated and isinstance(edge, int) and edge > 0:  # sizes that vary: numbers of pixels
                edge = math.isqrt(edge)
            size = (size.get("height"), size.get("width")) if "height" in size else edge
        return tuple(size[:2]) if isinstance(size, list | tuple) else (size, size)

    normal = stated.get("do_normalize", True)
    preprocess = Preprocess(
        sides(stated.get("size", 224)),
        stated.get("image_mean", Preprocess.mean) if normal else (0.0,) * 3,
        stated.get("image_std", Preprocess.std) if normal else (1.0,) * 3,
        stated.get("crop_pct", 1.0),
        _filter(stated.get("resample")),
        squash="crop_pct" not in config,
    )
    if stated.get("do_center_crop") and "crop_size" in stated:
        crop = replace(preprocess, size=sides(stated["crop_size"])).size
        return replace(preprocess, size=crop, crop_pct=crop[0] / preprocess.size[0], squash=False)
    return preprocess


def _filter(name: Any) -> Any:
    """Return a PIL filter's name from its name or number; bicubic where none is named, or one at random."""
    if isinstance(name, int):
        return next((r.name.lower() for r in Image.Resampling if r == name), name)
    if name in (None, "random"):
        return "bicubic"
    return name.lower() if isinstance(name, str) else name


def channels_of(module: nn.Module) -> int:
    """Return the channels that a model's first convolution takes.  Raises FxlrpError unless pictures have so many."""
    taken = [getattr(m, "in_channels", 3) for m in module.modules() if isinstance(m, (nn.Conv2d, nn.LazyConv2d))]
    if not taken or taken[0] == 3:
        return 3
    if taken[0] == 1:
        return 1
    if 3 in taken:  # the first in the module need not be the first to run
        return 3
    raise FxlrpError(f"The model's first convolution takes {taken[0]} channels; pictures have 3, or 1 in grey.")


def open_picture(path: Path | BinaryIO, name: str = "") -> Image.Image:
    """Open the picture in a file, upright, in 8 bits a colour; of several frames or pages, the first.

    name: what errors call a file that is no path.

    Raises FxlrpError if there is none of a known format, or it is huge, which its first bytes say.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what PIL holds for a bomb; what we do, is refused below
            with Image.open(path, formats=FORMATS) as image:
                _check_pixels(*image.size, name or str(path))
                ImageOps.exif_transpose(image, in_place=True)
                picture = _eight_bits(image) if image.mode.startswith(("I", "F")) else image.convert("RGB")
    except FxlrpError:
        raise
    except Image.DecompressionBombError as error:
        raise FxlrpError(
            f"{name or path} has more than the {MOST_PIXELS:,} pixels that are read; give a smaller one."
        ) from error
    except Exception as error:  # PIL's readers raise more than OSError for files that are damaged
        raise FxlrpError(
            f"{name or path} is not a picture that can be read; give a {', '.join(FORMATS)} that other programs show."
        ) from error
    picture.info = {}  # PIL would read damaged metadata again, and warn, wherever the picture is turned
    return picture


def _eight_bits(image: Image.Image) -> Image.Image:
    """Turn grey of more bits than 8, which PIL would clip at 255, into 8 bits."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    top = float(values.max())
    white = 65535 if image.mode.startswith("I;16") else 1 if image.mode == "F" and top <= 1 else max(top, 255)
    np.rint(np.clip(values * (255 / white), 0, 255, out=values), out=values)
    return Image.fromarray(values.astype(np.uint8))


def find_pictures(inputs: Iterable[str]) -> list[Path]:
    """Return the files that files, folders and globs name, each once, without heatmaps; those in a folder, however
    deep, by name.

    Raises FxlrpError for a file that is not there, and for a folder or glob without pictures.
    """
    files: dict[Path, None] = {}
    for name in inputs:
        path = Path(name)
        if path.is_file():
            files[path] = None
            continue
        places = list(path.rglob("*")) if path.is_dir() else [Path(p) for p in glob.glob(name, recursive=True)]
        places = [p for p in places if p.suffix.lower() in SUFFIXES and not p.name.endswith("_fxlrp.png")]
        pictures = sorted(p for p in places if p.is_file())
        if not pictures:
            if path.is_dir():
                raise FxlrpError(f"There is no picture in the folder {name} ({', '.join(sorted(SUFFIXES))}).")
            if glob.has_magic(name):
                raise FxlrpError(f"No picture matches {name}; give files, folders or other globs.")
            raise FxlrpError(f"There is no file {name}.")
        files |= dict.fromkeys(pictures)
    return list(files)


def output_files(pictures: list[Path], output: Path | None) -> list[Path]:
    """Return where to write each picture's heatmap: `output` for one, NAME_fxlrp.png in it or here for several.

    Raises FxlrpError for one file for several pictures, a kind of file that no picture is written as, an input, or a
    folder that can't be written to.
    """
    if output is not None and output.suffix and not output.is_dir():
        if len(pictures) > 1:
            raise FxlrpError(f"-o {output} is one file for {len(pictures)} pictures; give a folder.")
        if output.suffix.lower() not in WRITTEN:
            raise FxlrpError(f"-o {output}: an explanation is written as {', '.join(WRITTEN)}.")
        return _not_among(pictures, [output])
    files: dict[Path, None] = {}
    for picture in pictures:
        names = [picture.stem, *(f"{picture.stem}-{n}" for n in range(2, len(pictures) + 1))]
        named = ((output or Path()) / f"{name}_fxlrp.png" for name in names)
        files[next(file for file in named if file not in files)] = None
    return _not_among(pictures, list(files))


def _not_among(pictures: list[Path], files: list[Path]) -> list[Path]:
    """Return the files.  Raises FxlrpError if one of them is a picture that is read, or can't be written."""
    check_writable(files)
    inputs = {picture.resolve() for picture in pictures}
    if file := next((file for file in files if file.resolve() in inputs), None):
        raise FxlrpError(f"{file} is an input and would be overwritten; give another place with -o.")
    return files


def check_writable(files: Iterable[Path]) -> None:
    """Raise FxlrpError if a file can't be written where it should be, before any work is done for it."""
    for folder in dict.fromkeys(file.parent for file in files):
        place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise FxlrpError(f"{place} is no folder that can be written to; give another place.")


def _hwc(picture: Tensor) -> Tensor:
    return picture.permute(1, 2, 0).contiguous()
