"""One call explains everything: models by name, file or module, pictures, texts and tensors; classes by their names."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import randomize
from PIL import Image
from torch import Tensor, nn

import fxlrp
from fxlrp import Attribution, FxlrpError, convert
from fxlrp.explaining import BATCH, every_side
from fxlrp.inputs import Preprocess, load_model, open_picture
from fxlrp.text import TextAttribution

EXAMPLES = Path(__file__).parents[1] / "examples"
LABELS = (EXAMPLES / "labels.txt").read_text().split()
PICTURE, MODEL = EXAMPLES / "pictures" / "ring_star.png", EXAMPLES / "model.pt"


@pytest.fixture(scope="module")
def expected() -> Attribution:
    """What the parts say, one by one."""
    loaded = load_model(str(MODEL))
    x = loaded.preprocess(open_picture(PICTURE))[0][None]
    return convert(loaded.module)(x, target=LABELS.index("star"), contrast=LABELS.index("ring"))


@pytest.mark.every(3)
@pytest.mark.parametrize("given", ["path", "text", "image", "array"])
@pytest.mark.parametrize("of", ["file", "loaded", "module", "explainer"])
def test_pictures_and_models_in_every_form(given: str, of: str, expected: Attribution) -> None:
    image = Image.open(PICTURE).convert("RGB")
    picture = {"path": PICTURE, "text": str(PICTURE), "image": image, "array": np.asarray(image)}[given]
    loaded = load_model(str(MODEL))
    model = {
        "file": MODEL, "loaded": loaded, "module": loaded.module, "explainer": convert(loaded.module)
    }[of]  # fmt: skip
    a = fxlrp.explain(model, picture, target="star", contrast="ring", labels=LABELS, preprocess=loaded.preprocess)
    assert torch.equal(a.relevance, expected.relevance)
    assert str(a).startswith("Attribution of star, ")
    assert "against ring" in str(a)
    assert a.pictures[0].shape == (64, 64, 3)


def test_several_pictures_at_once(expected: Attribution) -> None:
    other = EXAMPLES / "pictures" / "disc_triangle.png"
    other = other if other.exists() else sorted((EXAMPLES / "pictures").glob("*.png"))[0]
    a = fxlrp.explain(MODEL, [PICTURE, other], target="star", contrast="ring", labels=LABELS)
    torch.testing.assert_close(a.relevance[:1], expected.relevance)
    assert len(a.pictures) == 2
    both = fxlrp.explain(MODEL, PICTURE, target=["star", "ring"], labels=LABELS)
    assert both.target.tolist() == [[LABELS.index("star"), LABELS.index("ring")]]
    with pytest.raises(FxlrpError, match=f"at most {BATCH} pictures"):
        fxlrp.explain(MODEL, [PICTURE] * (BATCH + 1))


def test_the_picture_is_kept_at_its_own_resolution(tmp_path: Path) -> None:
    """What the model sees of a wide picture: the square in its middle that is left after resizing."""
    pixels = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    prepare = Preprocess((32, 32), crop_pct=0.8)
    seen = prepare.seen(Image.fromarray(pixels))
    assert seen.shape == (240, 242, 3)  # 0.8 of the shorter side; 32 of the 66 pixels that the longer becomes
    np.testing.assert_array_equal(seen, pixels[30:270, 129:371])
    large = prepare.seen(Image.fromarray(pixels.repeat(8, 0).repeat(8, 1)))
    assert max(large.shape) == 1024
    squashed = Preprocess((32, 32), squash=True, crop_pct=1.0).seen(Image.fromarray(pixels))
    assert squashed.shape == (300, 500, 3)
    small = Preprocess((64, 64), crop_pct=2.0).seen(Image.fromarray(pixels))  # black around it
    assert small.shape == (64, 64, 3)
    assert not small[0].any()


def test_guessed_preprocessing_is_said() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    with pytest.warns(UserWarning, match="does not say what pictures it takes"):
        a = fxlrp.explain(net, PICTURE)
    assert a.relevance.shape == (1, 3, 224, 224)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        a = fxlrp.explain(net, PICTURE, preprocess=Preprocess((32, 48), (0.5,), (0.5,)))
    assert a.relevance.shape == (1, 3, 32, 48)


def test_tensors_go_to_the_model_as_they_are() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x @ y.mT

    x, y = torch.randn(2, 3, 4).double(), torch.randn(2, 5, 4).double()
    a = fxlrp.explain(Two().eval(), x, y=y, position=1, target=2, rules="gradient-input", contrast=None)
    b = convert(Two().eval(), rules="gradient-input")(x, y=y, position=1, target=2, contrast=None)
    for one, other in zip(a.relevance, b.relevance, strict=True):
        assert torch.equal(one, other)


def test_texts(tmp_path: Path) -> None:
    folder = EXAMPLES / "text"
    a = fxlrp.explain(folder, "a dull film", target="negative")
    assert isinstance(a, TextAttribution)
    assert [word for word, _ in a.words] == ["a", "dull", "film"]
    several = fxlrp.explain(folder, ["a dull film", "a fine one"])
    assert [len(t.words) for t in several] == [3, 3]
    fxlrp.explain(folder, ["a dull film", "a fine one"], html=tmp_path / "texts.html")
    assert (tmp_path / "texts.html").read_text().count('class="text"') == 2
    with pytest.raises(FxlrpError, match="at, shifts and box are of pictures"):
        fxlrp.explain(folder, "a dull film", shifts=4)
    module = load_model(str(folder)).module
    with pytest.raises(FxlrpError, match="tokenizer="):
        fxlrp.explain(module, "a dull film")


def test_what_can_not_be() -> None:
    for model, inputs, said in (
        (MODEL, (), "nothing to explain"),
        (3, (PICTURE,), "A int is no model"),
        (MODEL, ("none.png",), "There is no file none.png"),
        (MODEL, (np.zeros((4, 4), np.uint8),), r"give \[H, W, 3\] of uint8"),
        ("nowhere.pt", (PICTURE,), "There is no file nowhere.pt"),
    ):
        with pytest.raises(FxlrpError, match=said):
            fxlrp.explain(model, *inputs)
    with pytest.raises(FxlrpError, match="sta"):
        fxlrp.explain(MODEL, PICTURE, target="sta", labels=LABELS)


def test_every_side_of_an_answer() -> None:
    """The class asked for first, then the likeliest; against what was asked, nothing, and by other rulebooks."""
    net = randomize(nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    explainer, x = convert(net), torch.rand(1, 3, 9, 9).double()
    a = explainer(x, target=2, contrast=0)
    sides = every_side(explainer, a, ((x,), {}), at=["0"])
    assert [(s.rules, s.contrast) for s in sides] == [
        ("abslrp-hybrid", 0), ("abslrp-hybrid", None), ("abslrp", "others"), ("attnlrp", "others"),
    ]  # fmt: skip
    others = [k for k in a.logits[0].argsort(descending=True).tolist() if k not in (0, 2)]
    assert all(s.target.tolist() == [[2, *others[:2]]] for s in sides)
    torch.testing.assert_close(sides[0].relevance[:, 0], a.relevance)
    torch.testing.assert_close(sides[2].relevance[:, 0], explainer.by("abslrp")(x, target=2).relevance)
    assert sides[0].latent["0"].shape == (1, 3, 5, 7, 7)
    assert sides[0].trace is not None
    score = explainer(x, target=lambda out: out.sum(1))
    assert every_side(explainer, score, ((x,), {})) == [score]


def test_a_page_from_one_call(tmp_path: Path, open_page) -> None:
    fxlrp.explain(MODEL, PICTURE, target="star", labels=LABELS, at=["layer2"], html=tmp_path / "why.html")
    assert (tmp_path / "why.html").stat().st_size < 3_000_000
    page = open_page(tmp_path / "why.html")
    buttons = page.locator("button").all_inner_texts()
    assert buttons[:2] == ["star", "ring"]
    assert buttons[-3:] == ["abslrp-hybrid", "abslrp", "attnlrp"]
    assert page.locator(".inside canvas").count() == 1
    flow = page.locator("details pre")
    assert "relevance that arrives" in flow.text_content()
    assert "layer2" in flow.text_content()
    page.get_by_role("button", name="attnlrp").click()
    assert page.locator(".asked").inner_text() == "against the others · attnlrp"
