"""Pictures: preprocessing equals the libraries' own, and inputs expand to the files they name."""

import io
import json
import random
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image, PngImagePlugin
from timm.data import create_transform, resolve_data_config
from torch import nn

from fxlrp import Attribution, FxlrpError
from fxlrp.inputs import Preprocess, find_pictures, open_picture, output_files
from fxlrp.inputs.limits import MOST_INPUT, MOST_PIXELS
from fxlrp.inputs.pictures import FORMATS, channels_of, described, from_processor, from_torchvision
from fxlrp.show.parts import parts_of


def noise(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", [(300, 201), (90, 100), (224, 500)])
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "test_vit"])
def test_same_as_timm(name: str, shape: tuple[int, int]) -> None:
    model = timm.create_model(name)
    preprocess, _ = described(model)
    assert preprocess is not None
    theirs = create_transform(**resolve_data_config(model=model))(noise(*shape))
    torch.testing.assert_close(preprocess(noise(*shape))[0], theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("weights", ["ResNet18_Weights", "Swin_T_Weights", "EfficientNet_B0_Weights"])
def test_same_as_torchvision(weights: str) -> None:
    member = getattr(torchvision.models, weights).DEFAULT
    preprocess = from_torchvision(member)
    assert preprocess is not None
    torch.testing.assert_close(preprocess(noise(300, 201))[0], member.transforms()(noise(300, 201)), rtol=0, atol=1e-5)


def test_same_as_transformers() -> None:
    from transformers import ConvNextImageProcessor, ViTImageProcessor

    for make, config in (
        (ViTImageProcessor, {"size": {"height": 48, "width": 64}}),
        (ConvNextImageProcessor, {"size": {"shortest_edge": 224}, "crop_pct": 0.875}),
    ):
        processor = make(**config)
        theirs = processor(noise(300, 201), return_tensors="pt")["pixel_values"][0]
        ours = from_processor(json.loads(processor.to_json_string()))(noise(300, 201))[0]
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().mean() < 0.02  # they resize tensors, we pictures: roundings differ


def test_what_is_seen_is_the_input_unnormalised() -> None:
    preprocess = Preprocess(size=(40, 60), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    x, seen = preprocess(noise(50, 50))
    assert x.shape == (3, 40, 60)
    back = x * torch.tensor(preprocess.std)[:, None, None] + torch.tensor(preprocess.mean)[:, None, None]
    torch.testing.assert_close(back.permute(1, 2, 0), seen)


def test_grey() -> None:
    x, seen = Preprocess(size=(8, 8), channels=1)(Image.new("RGB", (20, 20), (0, 255, 0)))
    assert x.shape == (1, 8, 8)
    assert seen.shape == (8, 8, 3)
    assert seen[0, 0].tolist() == [0, 1, 0]
    assert channels_of(nn.Sequential(nn.Conv2d(1, 4, 3))) == 1
    assert channels_of(nn.Linear(4, 4)) == 3
    with pytest.raises(FxlrpError, match="takes 4 channels; pictures have 3"):
        channels_of(nn.Sequential(nn.Conv2d(4, 4, 3)))


def test_config_of_the_module() -> None:
    cfg = {
        "input_size": (3, 64, 48),
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "crop_pct": 1.0,
        "label_names": ("a", "b"),
    }
    module = nn.Linear(1, 1)
    module.pretrained_cfg = cfg  # type: ignore[assignment]
    preprocess, names = described(module)
    assert preprocess == Preprocess((64, 48), (0.5,) * 3, (0.25,) * 3, 1.0)
    assert names == ["a", "b"]
    assert described(nn.Linear(1, 1)) == (None, None)
    bigger = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=1)
    found, _ = described(bigger)
    assert found is not None
    assert found.size == (96, 96)


def test_overrides() -> None:
    guess = Preprocess(guessed=True)
    half = (0.5, 0.5, 0.5)
    assert guess.but((32, 32)).guessed
    assert not guess.but((32, 32), half, half).guessed
    assert guess.but(mean=half).mean == half
    nan, inf = float("nan"), float("inf")
    for wrong in (
        *({"size": (0, 3)}, {"mean": (0.5, 0.5)}, {"std": (0.0, 1.0, 1.0)}),
        *({"mean": (nan, 0.0, 0.0)}, {"std": (1.0, 1.0, nan)}, {"std": (inf,)}),
    ):
        with pytest.raises(FxlrpError, match=f"--{next(iter(wrong))}"):
            guess.but(**wrong)  # type: ignore[arg-type]


def test_weights_without_a_crop_have_no_preprocessing_here() -> None:
    assert from_torchvision(SimpleNamespace(transforms=object)) is None


def test_find_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.txt", "b_fxlrp.png"):
        noise(4, 4).save(tmp_path / name, format="png")
    (tmp_path / "empty").mkdir()
    a, b, c = (tmp_path / name for name in ("a.JPG", "b.png", "c.txt"))
    assert find_pictures([str(tmp_path)]) == [a, b]
    assert find_pictures([str(tmp_path / "*.png"), str(tmp_path)]) == [b, a]
    assert find_pictures([str(c)]) == [c]
    assert find_pictures([str(tmp_path / "b_fxlrp.png")]) == [tmp_path / "b_fxlrp.png"]  # named, not found
    for missing, said in (("x.png", "There is no file"), ("*.gif", "No picture matches"), ("empty", "in the folder")):
        with pytest.raises(FxlrpError, match=said):
            find_pictures([str(tmp_path / missing)])


def test_open_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("text")
    noise(64, 64).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:500])
    for name in ("a.png", "b.png"):
        with pytest.raises(FxlrpError, match="not a picture that can be read"):
            open_picture(tmp_path / name)


def header(width: int, height: int, kind: str) -> bytes:
    """A file of a few bytes that says that a huge picture follows."""
    held = io.BytesIO()
    Image.new("L", (1, 1)).save(held, kind)
    said = bytearray(held.getvalue())
    if kind == "PNG":
        said[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        said[29:33] = zlib.crc32(said[12:29]).to_bytes(4, "big")
    elif kind == "BMP":
        said[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    else:  # of GIF the screen, and the frame
        for place in (6, said.index(b"\x2c") + 5):
            said[place : place + 4] = width.to_bytes(2, "little") + height.to_bytes(2, "little")
    return bytes(said)


@pytest.mark.parametrize("size", [(10_100, 10_000), (13_500, 13_500), (40_000, 40_000), (1, 70_000), (0, 5)])
@pytest.mark.parametrize("kind", ["PNG", "BMP", "GIF"])
def test_a_huge_picture_is_refused_by_what_its_header_says(kind: str, size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(header(*((min(s, 65_535) for s in size) if kind == "GIF" else size), kind))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(FxlrpError, match=r"a\.\w+ (has|is not a picture)") as caught:
            open_picture(path)
    assert "pixels" in str(caught.value) or min(size) < 2


def test_formats_that_nobody_asked_for_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was started"))
    for kind in ("EPS", "PPM", "PCX", "ICNS", "TGA"):
        Image.new("RGB", (64, 64)).save(tmp_path / "a.png", kind)
        with pytest.raises(FxlrpError, match="not a picture that can be read; give a PNG, JPEG"):
            open_picture(tmp_path / "a.png")
    for kind in FORMATS:
        noise(8, 8).save(tmp_path / "a", kind)
        assert open_picture(tmp_path / "a").size == (8, 8)


def test_of_several_frames_the_first(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), (40 * i, 0, 0)) for i in range(1, 4)]
    for name in ("a.gif", "a.png", "a.tiff", "a.webp"):
        frames[0].save(
            tmp_path / name, save_all=True, append_images=frames[1:], **({"lossless": True} if name == "a.webp" else {})
        )
        assert open_picture(tmp_path / name).getpixel((0, 0)) == (40, 0, 0), name


def test_text_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    texts = PngImagePlugin.PngInfo()
    for i in range(100):
        texts.add_text(f"a{i}", "a" * 10**6, zip=True)
    noise(8, 8).save(tmp_path / "a.png", pnginfo=texts)
    with pytest.raises(FxlrpError, match="not a picture that can be read"):
        open_picture(tmp_path / "a.png")


def test_a_turned_picture_is_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(4, 8).save(tmp_path / "a.png", exif=exif)
    upright = open_picture(tmp_path / "a.png")
    assert upright.size == (4, 8)
    assert Preprocess(size=(8, 4), crop_pct=1.0)(upright)[1].shape == (8, 4, 3)


@pytest.mark.parametrize(("width", "height"), [(1, 30_000), (30_000, 1), (3, 60_000)])
def test_long_and_thin_pictures_are_not_resized_to_gigabytes(width: int, height: int) -> None:
    thin = Image.new("RGB", (width, height))
    for how in (Preprocess(), Preprocess((224, 240)), Preprocess((4096, 4096))):
        with pytest.raises(FxlrpError, match=f"The picture of {width}x{height} pixels would be resized to"):
            how(thin)
    assert Preprocess(squash=True)(thin)[0].shape == (3, 224, 224)
    assert Preprocess((8, 8))(Image.new("RGB", (1, 3000)))[0].shape == (3, 8, 8)


def test_rows_are_resized_first() -> None:
    tall = Image.new("L", (1, 50_000))
    with pytest.raises(FxlrpError, match="on the way"):
        Preprocess((8, 40_000), squash=True)(tall)
    assert Preprocess((8, 8), squash=True)(tall)[0].shape == (3, 8, 8)


WRONG: dict[str, list[Any]] = {
    "size": [0, (224,), (0, 3), (-1, 3), (1.5, 2), ("a", "b"), (10**5, 10**5), (True, True), None, "224", (1, 10**400)],
    "mean": [(), (0.5, 0.5), (float("nan"),) * 3, (float("inf"),), ("a",), 0.5, None, (10**400,), (True,)],
    "std": [(), (0.0, 1.0, 1.0), (1e-50,), (-1.0,), (float("nan"),), (float("inf"),), "abc", [[1.0]] * 3],
    "crop_pct": [0, -1, 1e-9, float("nan"), float("inf"), "a", [1.0], 10**400, True, {}],
    "interpolation": ["", "quick", 3, [], "nearest-exact"],
    "squash": ["no", 1],
    "channels": [2, 0, "3"],
    "guessed": ["no"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_preprocessing_that_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(FxlrpError, match=f"Pictures cannot be prepared with {name} ") as caught:
        Preprocess(**{name: value})
    assert len(str(caught.value)) < 250


def test_sizes_up_to_the_limit() -> None:
    assert Preprocess((4096, 4096)).size == (4096, 4096)
    assert Preprocess([32, 48], [0.5], [0.5], interpolation="lanczos") == Preprocess(
        (32, 48), (0.5,), (0.5,), interpolation="lanczos"
    )  # type: ignore[arg-type]
    with pytest.raises(FxlrpError, match="--size takes pixels, at most 16,777,216"):
        Preprocess().but((4096, 4097))
    assert MOST_INPUT < MOST_PIXELS
    with pytest.raises(FxlrpError, match="would be resized"):
        Preprocess((4096, 4096), crop_pct=0.1)(noise(8, 8))


def configured(cfg: Any) -> nn.Module:
    module = nn.Linear(1, 1)
    module.pretrained_cfg = cfg
    return module


def test_hostile_configs_of_modules() -> None:
    fine = {"input_size": (3, 8, 8), "mean": None, "std": None, "crop_pct": None, "interpolation": None}
    assert described(configured(fine)) == (Preprocess((8, 8)), None)
    assert described(configured({**fine, "interpolation": "random", "label_names": ()})) == (Preprocess((8, 8)), None)
    for change in (
        *({"input_size": v} for v in (None, 3, "abc", (), (3,), (3, 0, 8), (3, 10**6, 10**6), ("a", "b", "c"), {})),
        *({"mean": v} for v in ((), (1, 2), torch.zeros(3), "abc", 0)),
        *({"std": v} for v in ((0, 0, 0), torch.zeros(3))),
        *({"crop_pct": v} for v in (0, 1e-9, "1", torch.zeros(2))),
        *({"interpolation": v} for v in ("quick", 17, (), torch.zeros(2))),
        *({"label_names": v} for v in ("abc", 3, [None], ["\ud800"], {10**9: "a"}, torch.zeros(2), [["a", []]])),
    ):
        with pytest.raises(FxlrpError):
            described(configured({**fine, **change}))
    module = configured(fine)
    module.patch_embed = nn.Identity()
    module.patch_embed.img_size = ("a", 10**9)  # type: ignore[assignment]
    with pytest.raises(FxlrpError, match="prepared with size"):
        described(module)


def test_every_config_of_timms_is_accepted() -> None:
    names = [tag for name in timm.list_models() for tag in timm.list_pretrained(name) or [name]]
    configs = [cfg.to_dict() for name in names if (cfg := timm.models.get_pretrained_cfg(name)) is not None]
    assert len(configs) > 1000
    assert all(described(configured(cfg))[0] is not None for cfg in configs)


@pytest.mark.parametrize(
    ("config", "size"),
    [
        ({}, (224, 224)),
        ({"size": None, "crop_pct": None, "image_mean": None}, (224, 224)),
        ({"size": 32}, (32, 32)),
        ({"size": [32, 48]}, (32, 48)),
        ({"size": {"height": 32, "width": 48}}, (32, 48)),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, (32, 32)),
        ({"size": {"longest_edge": 64}}, (64, 64)),
        ({"size": {"shortest_edge": 65536, "longest_edge": 2**24}, "patch_size": 16, "merge_size": 2}, (256, 256)),
        ({"size": {"shortest_edge": 64}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}}, (32, 32)),
        ({"size": 64, "do_center_crop": True, "crop_size": None}, (64, 64)),
        ({"feature_size": 80, "sampling_rate": 16_000}, (224, 224)),  # for sound
    ],
)
def test_sizes_of_processors(config: dict[str, Any], size: tuple[int, int]) -> None:
    assert from_processor(config).size == size


@pytest.mark.parametrize(
    "config",
    [
        *([], None, 3, "abc"),
        *(
            {"size": v}
            for v in ({}, {"height": 3}, {"height": "a", "width": []}, [], [1], "a", -1, 0, 10**9, [[1, 2], 3])
        ),
        *({"size": 64, "do_center_crop": True, "crop_size": v} for v in (0, -1, "a", [], {}, 10**6)),
        {"size": 4000, "do_center_crop": True, "crop_size": 1},
        *({"resample": v} for v in (99, -1, 10**400, [], {}, "quick")),
        *({"crop_pct": v} for v in (0, -1, 1e-300, "a", {})),
        *({"image_mean": v} for v in (3, "abc", {}, [1, 2], [None] * 3)),
        *({"image_std": v} for v in ([0, 0, 0], [1e-320], "abc")),
    ],
)
def test_hostile_processors(config: Any) -> None:
    with pytest.raises(FxlrpError):
        from_processor(config)


def pictures_to_damage() -> dict[str, bytes]:
    """A small picture in each format and some of its kinds, with metadata."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("a", "text " * 50, zip=True)
    texts.add_itxt("b", "text", "en", "b", zip=True)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    plain, grey16 = noise(24, 20), Image.fromarray(np.arange(480, dtype=np.uint16).reshape(24, 20) * 99)
    kinds: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "a.png": (plain, {"pnginfo": texts, "exif": exif}),
        "16.png": (grey16, {}),
        "p.png": (plain.quantize(), {"transparency": b"\0\1"}),
        "a.jpg": (plain, {"exif": exif}),
        "b.jpg": (plain.convert("CMYK"), {"progressive": True}),
        "a.webp": (plain, {"exif": exif}),
        "a.gif": (plain, {"save_all": True, "append_images": [plain.rotate(90)]}),
        "a.tif": (plain, {"compression": "tiff_lzw"}),
        "b.tif": (grey16, {"compression": "tiff_deflate"}),
        "lab.tif": (plain.convert("LAB"), {}),
        "a.bmp": (plain, {}),
    }
    held = {name: io.BytesIO() for name in kinds}
    for name, (image, options) in kinds.items():
        image.save(held[name], {"jpg": "JPEG", "tif": "TIFF"}.get(name[-3:], name.split(".")[-1].upper()), **options)
    return {name: file.getvalue() for name, file in held.items()}


def damaged(content: bytes, rng: random.Random) -> bytes:
    """The bytes with one thing wrong: bits turned, some changed, cut out, doubled, or cut off."""
    said, at = bytearray(content), rng.randrange(len(content))
    width = rng.choice((1, 2, 4, 30))
    change: list[Callable[[], Any]] = [
        lambda: said.__setitem__(at, said[at] ^ 1 << rng.randrange(8)),
        lambda: said.__setitem__(slice(at, at + width), rng.randbytes(width)),
        lambda: said.__setitem__(slice(at, at + width), rng.choice((b"\0", b"\xff")) * width),
        lambda: said.__delitem__(slice(at, at + width)),
        lambda: said.__setitem__(slice(at, at), said[at : at + width]),
        lambda: said.__delitem__(slice(at, None)),
    ]
    for _ in range(rng.choice((1, 1, 3))):
        rng.choice(change)()
        if at >= len(said):
            break
    return bytes(said)


def with_right_sums(content: bytes) -> bytes:
    """A PNG whose chunks' checksums are right again, so that damage gets past them."""
    out, at = bytearray(content[:8]), 8
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        out += content[at:end] + zlib.crc32(content[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(out)


def test_damaged_pictures_are_read_or_refused(tmp_path: Path) -> None:
    rng, read, refused = random.Random(0), 0, 0
    for name, content in pictures_to_damage().items():
        for _ in range(60):
            wrong = damaged(content, rng)
            (tmp_path / name).write_bytes(with_right_sums(wrong) if name.endswith("png") else wrong)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    x, _ = Preprocess((16, 16))(open_picture(tmp_path / name))
                assert x.isfinite().all()
                read += 1
            except FxlrpError:
                refused += 1
    assert min(read, refused) > 50


RAMP = np.linspace(0, 1, 256).reshape(16, 16)
DEEP = {
    "I;16": ((RAMP * 65535).astype(np.uint16), "png"),
    "I": ((RAMP * 100_000).astype(np.int32), "tiff"),
    "F": (RAMP.astype(np.float32), "tiff"),
}


@pytest.mark.parametrize("mode", DEEP)
def test_more_than_eight_bits(mode: str, tmp_path: Path) -> None:
    values, kind = DEEP[mode]
    Image.fromarray(values).save(tmp_path / f"deep.{kind}")
    assert Image.open(tmp_path / f"deep.{kind}").mode == mode
    seen = np.asarray(open_picture(tmp_path / f"deep.{kind}").convert("RGB"))
    assert np.abs(seen[..., 0] / 255 - RAMP).max() <= 1 / 255


def test_output_files(tmp_path: Path) -> None:
    pictures = [Path("a/cat.png"), Path("b/cat.jpg"), Path("dog.png")]
    assert output_files(pictures, tmp_path) == [tmp_path / f"{n}_fxlrp.png" for n in ("cat", "cat-2", "dog")]
    assert output_files(pictures[:1], None) == [Path("cat_fxlrp.png")]
    assert output_files(pictures[:1], Path("out.png")) == [Path("out.png")]
    with pytest.raises(FxlrpError, match="give a folder"):
        output_files(pictures, Path("out.png"))
    with pytest.raises(FxlrpError, match="written as"):
        output_files(pictures[:1], Path("out.tx"))
    (tmp_path / "link.png").symlink_to(Path("dog.png").resolve())
    for inputs, output in ((pictures[2:], tmp_path / "link.png"), ([Path("cat.png"), Path("cat_fxlrp.png")], None)):
        with pytest.raises(FxlrpError, match="is an input and would be overwritten"):
            output_files(inputs, output)


def test_attribution_with_a_picture(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    a = Attribution(x, x, x, None, inputs=(x,))
    given = noise(8, 8)
    for same in (np.asarray(given) / 255, np.asarray(given), given, torch.from_numpy(np.array(given))):
        np.testing.assert_allclose(parts_of(a, picture=same)[0].values * 255, np.asarray(given))
    for wrong in (np.zeros((8, 8)), "a.png", Path("a.png"), np.asarray(given) * 1.0, torch.rand(3, 8, 8)):
        with pytest.raises(FxlrpError, match=r"give an array \[H, W, 3\]"):
            a.plot(picture=wrong)
    with pytest.raises(FxlrpError, match="index=2 is out of range; give one of the 2 samples"):
        a.plot(index=2)
    (tmp_path / "file").touch()
    for path, said in (("none", "ends in .png"), ("file/a.png", "cannot be written"), ("a.psd", "ends in .png")):
        with pytest.raises(FxlrpError, match=said):
            a.save(tmp_path / path)
