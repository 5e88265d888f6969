"""Pictures: preprocessing equals the libraries' own, and inputs expand to the files they name."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import nn

from fxlrp import Attribution, FxlrpError
from fxlrp.inputs import Preprocess, find_class, find_pictures, imagenet_labels, load_labels, open_picture, output_files
from fxlrp.inputs.pictures import channels_of, described, from_processor, from_torchvision


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


def test_labels(tmp_path: Path) -> None:
    files = {
        "a.txt": "cat\n\ndog\n",
        "a.json": '["cat", "dog"]',
        "b.json": '{"1": "dog", "0": "cat"}',
        "c.json": '{"0": ["n1", "cat"], "1": ["n2", "dog"]}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        assert load_labels(tmp_path / name) == ["cat", "dog"]
    (tmp_path / "d.json").write_text("3")
    with pytest.raises(FxlrpError, match="holds no labels"):
        load_labels(tmp_path / "d.json")
    with pytest.raises(FxlrpError, match="There is no file"):
        load_labels(tmp_path / "e.txt")
    with pytest.raises(FxlrpError, match="is a folder; class names are in a file"):
        load_labels(tmp_path)


def test_find_class() -> None:
    labels = imagenet_labels()
    assert labels is not None
    assert len(labels) == 1000
    assert find_class("281", None) == 281
    assert find_class("Tabby", labels) == find_class("tabby, tabby cat", labels) == 281
    with pytest.raises(FxlrpError, match=r"did you mean.*goldfish"):
        find_class("goldfsh", labels)
    with pytest.raises(FxlrpError, match="There is no class qqqq; give a number, or other names with --labels"):
        find_class("qqqq", labels)
    with pytest.raises(FxlrpError, match="without class names"):
        find_class("cat", None)


def test_attribution_with_a_picture(tmp_path: Path) -> None:
    x = torch.rand(2, 3, 8, 8)
    a = Attribution(x, x, x, None, inputs=(x,))
    given = noise(8, 8)
    for same in (np.asarray(given) / 255, np.asarray(given), given, torch.from_numpy(np.array(given))):
        np.testing.assert_allclose(a.panels(same, side=8)[0] * 255, np.asarray(given))
    for wrong in (np.zeros((8, 8)), "a.png", Path("a.png"), np.asarray(given) * 1.0, torch.rand(3, 8, 8)):
        with pytest.raises(FxlrpError, match=r"give an array \[H, W, 3\]"):
            a.panels(wrong)
    with pytest.raises(FxlrpError, match="index=2 is out of range; give one of the 2 samples"):
        a.panels(index=2)
    (tmp_path / "file").touch()
    for path, said in (("none", "ends in .png"), ("file/a.png", "cannot be written"), ("a.psd", "ends in .png")):
        with pytest.raises(FxlrpError, match=said):
            a.save(tmp_path / path)
