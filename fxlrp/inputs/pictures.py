"""Pictures: files → the tensors a model was trained on."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from fxlrp.errors import FxlrpError

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"))


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a model's input: resize, crop the centre, scale to 0..1, normalise.

    size: height and width in pixels.
    mean, std: of each colour, in 0..1.
    crop_pct: how much of the resized picture's side is kept.
    interpolation: a PIL filter by name.
    squash: resize to `size` and crop nothing; the picture's proportions are lost.
    channels: 3, or 1 for grey.
    guessed: whether nobody said any of this; ImageNet's values, then.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    squash: bool = False
    channels: int = 3
    guessed: bool = False

    def __call__(self, image: Image.Image) -> tuple[Tensor, Tensor]:
        """The input, float [channels, H, W], and what is seen in it, float [H, W, 3] in 0..1."""
        from torchvision.transforms.v2 import functional as F

        image = ImageOps.exif_transpose(image).convert("RGB")
        h, w = self.size
        ih, iw = int(h / self.crop_pct), int(w / self.crop_pct)  # before cropping
        if self.squash:
            resized = [h, w]
        elif h == w:
            resized = [ih]  # the shorter side
        else:
            scale = max(ih / image.height, iw / image.width)
            resized = [round(image.height * scale), round(image.width * scale)]
        image = F.center_crop(F.resize(image, resized, F.InterpolationMode(self.interpolation)), [h, w])
        picture = F.to_dtype(F.pil_to_tensor(image), torch.float32, scale=True)
        if self.channels == 1:
            x = F.to_dtype(F.pil_to_tensor(image.convert("L")), torch.float32, scale=True)
            return F.normalize(x, [sum(self.mean) / len(self.mean)], [sum(self.std) / len(self.std)]), _hwc(picture)
        return F.normalize(picture, list(self.mean), list(self.std)), _hwc(picture)

    def but(
        self,
        size: tuple[int, int] | None = None,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        channels: int | None = None,
    ) -> Preprocess:
        """The same with some of it given.  Raises FxlrpError for a size, mean or std that cannot be."""
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) not in (1, 3):
                raise FxlrpError(f"--{name} takes one number or three, as in 0.5,0.5,0.5; got {len(values)}.")
            if values is not None and not all(map(math.isfinite, values)):
                raise FxlrpError(f"--{name} takes finite numbers, as in 0.5,0.5,0.5.")
        if std is not None and min(std) <= 0:
            raise FxlrpError("--std takes numbers above 0: pictures are divided by them.")
        if size is not None and min(size) <= 0:
            raise FxlrpError("--size takes pixels, as in 224 or 240x320.")
        given: dict[str, Any] = {"size": size, "mean": mean, "std": std, "channels": channels}
        new = replace(self, **{name: value for name, value in given.items() if value is not None})
        return replace(new, guessed=self.guessed and (size is None or mean is None or std is None))


def described(module: nn.Module) -> tuple[Preprocess | None, list[str] | None]:
    """The preprocessing and class names a module carries in `pretrained_cfg` or `default_cfg`, as timm's do."""
    cfg = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    if not isinstance(cfg, Mapping) or "input_size" not in cfg:
        return None, None
    size = cfg["input_size"]
    # a model built for another size than its weights' config says so in its patch embedding
    if isinstance(actual := getattr(getattr(module, "patch_embed", None), "img_size", None), tuple):
        size = (size[0], *actual)
    names = cfg.get("label_names")
    return (
        Preprocess(
            (int(size[-2]), int(size[-1])),
            tuple(cfg.get("mean") or Preprocess.mean),
            tuple(cfg.get("std") or Preprocess.std),
            cfg.get("crop_pct") or Preprocess.crop_pct,
            _filter(cfg.get("interpolation")),
            cfg.get("crop_mode") == "squash",
        ),
        list(names) if names else None,
    )


def from_torchvision(weights: Any) -> Preprocess | None:
    """What a member of a torchvision weights enum was trained with."""
    how = weights.transforms()
    if not hasattr(how, "crop_size"):
        return None
    crop, resize = how.crop_size[0], how.resize_size[0]
    return Preprocess((crop, crop), tuple(how.mean), tuple(how.std), crop / resize, how.interpolation.value)


def from_processor(config: Mapping[str, Any]) -> Preprocess:
    """What a Hugging Face preprocessor_config.json says."""

    def sides(size: Any) -> tuple[int, int]:
        if isinstance(size, Mapping):
            size = (size["height"], size["width"]) if "height" in size else size["shortest_edge"]
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    size = sides(config.get("size", 224))
    crop_pct, squash = config.get("crop_pct") or 1.0, "crop_pct" not in config
    if config.get("do_center_crop") and "crop_size" in config:
        crop = sides(config["crop_size"])
        size, crop_pct, squash = crop, crop[0] / size[0], False
    normal = config.get("do_normalize", True)
    return Preprocess(
        size,
        tuple(config.get("image_mean") or Preprocess.mean) if normal else (0.0,) * 3,
        tuple(config.get("image_std") or Preprocess.std) if normal else (1.0,) * 3,
        crop_pct,
        _filter(config.get("resample")),
        squash,
    )


def _filter(name: Any) -> str:
    """A PIL filter's name from its name or number; bicubic for those that name none."""
    if isinstance(name, int):
        name = Image.Resampling(name).name.lower()
    return name if name in ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos") else "bicubic"


def channels_of(module: nn.Module) -> int:
    """The channels a model's first convolution takes.  Raises FxlrpError unless it is 1 or 3, what pictures have."""
    taken = [m.in_channels for m in module.modules() if isinstance(m, (nn.Conv2d, nn.LazyConv2d))]
    if not taken or taken[0] == 3:
        return 3
    if taken[0] == 1:
        return 1
    if 3 in taken:  # the first in the module need not be the first to run
        return 3
    raise FxlrpError(f"The model's first convolution takes {taken[0]} channels; pictures have 3, or 1 in grey.")


def open_picture(path: Path) -> Image.Image:
    """The picture in a file, in 8 bits.  Raises FxlrpError if there is none."""
    try:
        image = Image.open(path)
        image.load()
    except Exception as error:  # PIL's readers raise more than OSError for files that are damaged or huge
        raise FxlrpError(f"{path} is not a picture that can be read; give a .png, .jpg or other picture.") from error
    return _eight_bits(image) if image.mode.startswith(("I", "F")) else image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of more bits than 8, which PIL would clip at 255."""
    values = np.nan_to_num(np.asarray(ImageOps.exif_transpose(image), dtype=np.float64))
    top = float(values.max())
    white = 65535 if image.mode.startswith("I;16") else 1 if image.mode == "F" and top <= 1 else max(top, 255)
    return Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8))


def find_pictures(inputs: Iterable[str]) -> list[Path]:
    """The files that files, folders and globs name, each once, folders and globs in order of name, without heatmaps.

    Raises FxlrpError for a file that is not there, and for a folder or glob without pictures.
    """
    found: dict[Path, None] = {}
    for name in inputs:
        path = Path(name)
        if path.is_file():
            found[path] = None
            continue
        places = list(path.iterdir()) if path.is_dir() else [Path(p) for p in glob.glob(name, recursive=True)]
        places = [p for p in places if p.suffix.lower() in SUFFIXES and not p.name.endswith("_fxlrp.png")]
        pictures = sorted(p for p in places if p.is_file())
        if not pictures:
            if path.is_dir():
                raise FxlrpError(f"There is no picture in the folder {name} ({', '.join(sorted(SUFFIXES))}).")
            if glob.has_magic(name):
                raise FxlrpError(f"No picture matches {name}; give files, folders or other globs.")
            raise FxlrpError(f"There is no file {name}.")
        found |= dict.fromkeys(pictures)
    return list(found)


def output_files(pictures: list[Path], output: Path | None) -> list[Path]:
    """Where to write each picture's heatmap: `output` itself for one, NAME_fxlrp.png in it or here for several.

    Raises FxlrpError for one file for several pictures, a kind of file that no picture is written as, or an input.
    """
    if output is not None and output.suffix and not output.is_dir():
        if len(pictures) > 1:
            raise FxlrpError(f"-o {output} is one file for {len(pictures)} pictures; give a folder.")
        if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise FxlrpError(f"-o {output}: a picture is written as .png, .jpg or .webp.")
        return _not_among(pictures, [output])
    files: dict[Path, None] = {}
    for picture in pictures:
        names = [picture.stem, *(f"{picture.stem}-{n}" for n in range(2, len(pictures) + 1))]
        named = ((output or Path()) / f"{name}_fxlrp.png" for name in names)
        files[next(file for file in named if file not in files)] = None
    return _not_among(pictures, list(files))


def _not_among(pictures: list[Path], files: list[Path]) -> list[Path]:
    inputs = {picture.resolve() for picture in pictures}
    if file := next((file for file in files if file.resolve() in inputs), None):
        raise FxlrpError(f"{file} is an input and would be overwritten; give another place with -o.")
    return files


def _hwc(picture: Tensor) -> Tensor:
    return picture.permute(1, 2, 0).contiguous()
