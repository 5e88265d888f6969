"""The command line, run as a user runs it: what is printed, what is written, and one sentence for each mistake."""

import inspect
import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

from fxlrp import DEFAULT, Attribution, FxlrpError, convert, explain, rulebooks, text
from fxlrp.adapters.captum import FxLRP
from fxlrp.adapters.quantus import explain as quantus_explain
from fxlrp.cli import app, options
from fxlrp.cli.loading import split_names
from fxlrp.inputs import load_model, open_picture
from fxlrp.show.files import save

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"exit code {result.exit_code}: {result.output}{result.exception!r}"
    return result


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole module of 4 classes at 64 pixels, and two pictures."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    net = timm.create_model("resnet10t", num_classes=4).eval()
    net.pretrained_cfg.update(input_size=(3, 64, 64), label_names=["cat", "dog, hound", "owl", "fox"])
    torch.save(net, folder / "net.pt")
    torch.save(nn.Sequential(nn.Conv2d(4, 2, 3), nn.Flatten()), folder / "four.pt")
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AvgPool2d(62), nn.Flatten()), folder / "grey.pt")
    torch.save(net.half(), folder / "half.pt")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (80, 100, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    return folder


def test_explain(files: Path) -> None:
    said = run("explain", files / "net.pt", files / "a.png").output
    for name in ("cat", "dog, hound", "owl", "fox"):
        assert name in said
    assert "explained" in said
    assert "against the others" in said
    assert "rulebook abslrp-hybrid:" in said
    assert "wrote a_fxlrp.png" in said
    picture = Image.open("a_fxlrp.png")
    assert picture.width > 2.3 * picture.height  # original, heatmap, overlay


def test_target_and_contrast(files: Path) -> None:
    pictures = {}
    for target, contrast in (("hound", "none"), ("1", "none"), ("hound", "fox"), ("owl", "softmax")):
        said = run(
            *("explain", files / "net.pt", files / "a.png", "-o", "out/x.png"),
            *("--target", target, "--contrast", contrast, "--device", "cpu"),
        ).output
        assert f"explained {'owl' if target == 'owl' else 'dog, hound'}, " in said
        assert {"none": "no contrast", "fox": "against fox", "softmax": "by probability"}[contrast] in said
        pictures[target, contrast] = np.array(Image.open("out/x.png"))
    assert np.array_equal(pictures["hound", "none"], pictures["1", "none"])
    for other in (("hound", "fox"), ("owl", "softmax")):
        assert not np.array_equal(pictures["hound", "none"], pictures[other])


def test_how_a_figure_looks(files: Path) -> None:
    shown = {}
    for more in ((), ("--dpi", 50), ("--opacity", 0), ("--colours", "lightness")):
        run("explain", files / "net.pt", files / "a.png", "-o", "x.png", *more)
        shown[more] = Image.open("x.png").copy()
    assert shown["--dpi", 50].width == shown[()].width // 2
    pictures = [np.array(shown[more]) for more in ((), ("--opacity", 0), ("--colours", "lightness"))]
    assert not any(np.array_equal(a, b) for a, b in itertools.pairwise(pictures))
    run("explain", files / "net.pt", files / "a.png", "--opacity", 2, code=2)


def test_several_pictures(files: Path) -> None:
    said = run("explain", files / "net.pt", f"{files}/*.png", "-o", "maps").output
    assert "written to maps" in said
    assert said.count("_fxlrp.png") == 2
    assert said.count("%") <= 4  # a row for each
    assert sorted(p.name for p in Path("maps").iterdir()) == ["a_fxlrp.png", "b_fxlrp.png"]


def test_a_broken_picture_among_many(files: Path) -> None:
    (files / "deep" / "class").mkdir(parents=True)
    for name in ("c.png", "class/d.png"):
        shutil.copy(files / "a.png", files / "deep" / name)
    (files / "deep" / "broken.png").write_text("no picture")
    result = run("explain", files / "net.pt", files / "deep", "-o", "maps", code=2)
    assert "error: 1 of 3 pictures were left out: " in result.stderr
    assert "broken.png is not a picture that can be read" in result.stderr
    assert sorted(p.name for p in Path("maps").iterdir()) == ["c_fxlrp.png", "d_fxlrp.png"]
    found = json.loads(run("explain", files / "net.pt", files / "deep", "-o", "maps", "--json", code=2).stdout)
    assert ["error" in row for row in found["pictures"]] == [True, False, False]
    assert found["pictures"][1]["explained"][0]["target"].startswith("fox") or found["pictures"][1]["classes"]


def test_more_pictures_than_fit_a_screen(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxlrp.cli.answering.SHOWN", 4)
    (files / "many").mkdir()
    for i in range(4):
        shutil.copy(files / "a.png", files / "many" / f"{i}.png")
        (files / "many" / f"broken{i}.png").write_text("no picture")
    result = run("explain", files / "net.pt", files / "many", "-o", "maps", code=2)
    assert re.findall(r"^ (\S+\.png)", result.stdout, re.MULTILINE) == ["0.png", "1.png", "broken0.png", "broken1.png"]
    assert "and 4 more; --json prints all" in result.stdout
    assert "\n\n" not in result.stderr  # no bar where there is no terminal


def test_json_alone_and_quiet(files: Path) -> None:
    result = run("explain", files / "net.pt", files / "a.png", "--json", "--html", "a.html")
    found = json.loads(result.stdout)
    assert found["page"] == "a.html"
    assert found["pictures"][0]["wrote"] == "a_fxlrp.png"
    assert abs(sum(c["probability"] for c in found["pictures"][0]["classes"]) - 1) < 1e-6
    assert run("explain", files / "net.pt", files / "a.png", "--quiet").stdout == ""
    assert run("explain", files / "net.pt", files / "a.png").stdout != ""


def test_a_place_that_can_not_be_written_is_told_before_the_model_is_loaded(files: Path) -> None:
    (files / "file").touch()
    said = run("explain", "none.pt", files / "a.png", "-o", files / "file" / "a.png", code=2).output
    assert "is no folder that can be written to" in said


def test_an_exported_explainer_keeps_its_rules(files: Path) -> None:
    run("export", files / "net.pt", "-o", "e.pt2", "--size", 64, "--rules", "gamma")
    for more in (["--rules", "epsilon"], ["--strict"], ["--shifts", 2]):
        said = run("explain", "e.pt2", files / "a.png", *more, code=2).output
        assert "was exported by gamma, which can't be changed" in said
    said = run("explain", "e.pt2", files / "a.png", "-o", "e.json").output
    assert json.loads(Path("e.json").read_text())["rules"] == "gamma"


def test_preprocessing_options(files: Path) -> None:
    """ImageNet's are guessed aloud; given ones are used."""
    said = run("explain", files / "grey.pt", files / "a.png", "--size", 64).output
    assert "does not say what pictures it takes: 64x64" in said
    said = run("explain", files / "grey.pt", files / "a.png", "--size", "64x64", "--mean", "0.5", "--std", "0.5").output
    assert "does not say" not in said


def test_labels_file(files: Path) -> None:
    Path("four.txt").write_text("one\ntwo\nthree\nfour\n")
    assert "three" in run("explain", files / "net.pt", files / "a.png", "--labels", "four.txt").output


def test_one_logit(files: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.AvgPool2d(62), nn.Flatten()), "one.pt")
    said = run("explain", "one.pt", files / "a.png", "--size", 64).output
    x = load_model("one.pt").preprocess.but((64, 64))(open_picture(files / "a.png"))[0][None]
    score = float(torch.load("one.pt", weights_only=False)(x))
    assert f"explained the score, {score:.4g}; no contrast" in said
    assert "%" not in said.split("explained")[1]


def test_half_precision_is_explained_in_single(files: Path) -> None:
    assert "half precision" in run("explain", files / "half.pt", files / "a.png").output


def test_state_dict(files: Path) -> None:
    torch.save(torch.load(files / "net.pt", weights_only=False).state_dict(), "w.pt")
    said = run("explain", "w.pt", files / "a.png", "--arch", "timm:resnet10t", "--size", "64").output
    assert "class 3" in said


def test_exported(files: Path) -> None:
    net = torch.load(files / "net.pt", weights_only=False)
    torch.export.save(torch.export.export(net, (torch.rand(1, 3, 64, 64),)), "net.pt2")
    assert "wrote a_fxlrp.png" in run("explain", "net.pt2", files / "a.png").output


def test_inspect(files: Path) -> None:
    said = run("inspect", files / "net.pt").output
    assert "linear.default" in said
    assert "0 generic" in said
    assert said.count("relu.default") < run("inspect", files / "net.pt", "--nodes").output.count("relu.default")
    assert "nodes by rulebook" in run("inspect", "torchvision:squeezenet1_1", "--random-weights", "--size", "64").output


def test_generic_ops_are_warned_of(tmp_path: Path) -> None:
    Path("net.py").write_text(
        "import torch\nclass Net(torch.nn.Module):\n"
        "    def forward(self, x): return torch.lgamma(x).flatten(1)[:, :9]\n"
    )
    assert "have no rule of their own: " in run("inspect", "net.py:Net", "--size", "8").output
    assert "lgamma" in run("inspect", "net.py:Net", "--size", "8", "--strict", code=2).output


def test_rules() -> None:
    said = run("rules").output
    for name in rulebooks():
        assert name in said


def test_demo() -> None:
    said = run("demo", "-o", "out").output
    assert said.count("wrote out/demo_") == 2
    first, second = (np.array(Image.open(p)) for p in sorted(Path("out").iterdir()))
    assert not np.array_equal(first, second)


MISTAKES = {
    "missing file": (["explain", "none.pt", "{files}/a.png"], "There is no file none.pt"),
    "missing picture": (["explain", "{files}/net.pt", "none.png"], "There is no file none.png"),
    "not an image": (["explain", "{files}/net.pt", "{files}/net.pt"], "not a picture that can be read"),
    "channels": (["explain", "{files}/four.pt", "{files}/a.png"], "takes 4 channels; pictures have 3"),
    "target": (["explain", "{files}/net.pt", "{files}/a.png", "--target", "4"], "out of range"),
    "target by name": (["explain", "{files}/net.pt", "{files}/a.png", "--target", "ow"], "did you mean owl"),
    "contrast": (["explain", "{files}/net.pt", "{files}/a.png", "--contrast", "all"], "There is no class all"),
    "size": (["inspect", "{files}/net.pt", "--size", "big"], "--size takes pixels"),
    "mean": (["explain", "{files}/net.pt", "{files}/a.png", "--mean", "a"], "--mean takes numbers"),
    "labels": (["explain", "{files}/net.pt", "{files}/a.png", "--labels", "{files}/two.txt"], "has 2 names"),
    "rulebook": (["inspect", "{files}/net.pt", "--rules", "none"], "none"),
    "device": (["inspect", "{files}/net.pt", "--device", "tpu"], "--device is cpu or cuda"),
    "architecture": (["inspect", "timm:resnet10"], "did you mean timm:resnet10t"),
    "picture as a model": (["inspect", "{files}/a.png"], "is not a model file fxlrp can read"),
    "input as output": (["explain", "{files}/net.pt", "{files}/a.png", "-o", "{files}/a.png"], "would be overwritten"),
    "no folder": (
        ["explain", "{files}/net.pt", "{files}/a.png", "-o", "{files}/two.txt/x.png"],
        "is no folder that can be",
    ),
    "no place": (["explain", "{files}/net.pt", "{files}/a.png", "-o", "/proc/x.png"], "cannot be written"),
    "demo into a file": (["demo", "-o", "{files}/two.txt"], "cannot be written"),
    "factory with arguments": (["inspect", "{files}/net.py:net"], "missing 1 required positional argument"),
    "one file for two": (["explain", "{files}/net.pt", "{files}/*.png", "-o", "x.png"], "give a folder"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes(what: str, files: Path) -> None:
    (files / "two.txt").write_text("one\ntwo\n")
    (files / "net.py").write_text("def net(width): pass\n")
    args, said = MISTAKES[what]
    result = run(*(arg.format(files=files) for arg in args), code=2)
    assert result.output.startswith("error: ") or "\nerror: " in result.output
    assert said in result.output
    lines = [line for line in result.stderr.splitlines() if not line.startswith("pictures: ")]
    assert len(lines) == 1
    assert "Traceback" not in result.output


@pytest.mark.parametrize(("package", "extra", "args"), [
    ("timm", "vision", ("explain", "timm:resnet18", "a.png", "--random-weights")),
    ("transformers", "text", ("explain", "hf:{examples}/text", "a good film")),
    ("transformers", "text", ("generate", "{examples}/text", "a good film")),
    ("gradio", "app", ("app", "net.pt")),
])  # fmt: skip
def test_a_package_that_is_missing_is_named_with_its_extra(
    package: str, extra: str, args: tuple[str, ...], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "fxlrp.cli.app_in_browser", raising=False)
    said = run(*(arg.format(examples=EXAMPLES) for arg in args), code=2).stderr
    assert f"needs {package}, which is not installed: pip install 'fxlrp[{extra}]'." in said


def test_a_module_of_a_package_that_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("fxlrp.inputs.allowlist.import_module", none)
    monkeypatch.setattr("fxlrp.inputs.allowlist.find_spec", lambda name: None)
    said = run("explain", EXAMPLES / "model.pt", EXAMPLES / "pictures" / "ring_star.png", code=2).stderr
    assert "needs timm, which is not installed: pip install 'fxlrp[vision]'." in said


def test_debug_shows_where(files: Path) -> None:
    result = CliRunner().invoke(app, ["inspect", "none.pt", "--debug"])
    assert isinstance(result.exception, FxlrpError)


def test_unexpected_errors_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    luck = Mock(side_effect=RuntimeError("no\nluck"))
    monkeypatch.setattr("fxlrp.cli.terminal.described", luck)
    said = run("rules", code=1).output
    assert "unexpected error: RuntimeError: no; run again with --debug" in said
    luck.side_effect = PermissionError(13, "Permission denied", "x")
    assert run("rules", code=2).output.startswith("error: Cannot read or write, Permission denied: 'x'; give another")


def test_as_a_program(files: Path) -> None:
    """A pickle that runs code, refused: one sentence on stderr, nothing on stdout, no traceback."""
    torch.save({"model": torchvision.transforms.Resize(4)}, "odd.pt")
    command = [sys.executable, "-c", "from fxlrp.cli import main; main()", "explain", "odd.pt", str(files / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, env=None, cwd=Path.cwd())
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: odd.pt is a pickle that wants more")
    assert done.stderr.count("\n") == 1
    assert "fxlrp 0." in run("--version").output


def test_a_map_that_is_zero_is_told(files: Path) -> None:
    """By absLRP nothing is left where all contributions are negative."""
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(1.0)
    torch.save(net.eval(), files / "flat.pt")
    said = run("explain", files / "flat.pt", files / "a.png", "--contrast", "none", "--size", "32").output
    assert "warning: The map of sample 0 is zero, though its score is not: relevance ends at conv2d" in said


def test_one_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands, convert, the adapters and the text functions explain by fxlrp.DEFAULT, to the bit."""
    examples = Path(__file__).parents[1] / "examples"
    picture = examples / "pictures" / "ring_star.png"
    shown: list[Attribution] = []
    monkeypatch.setattr(
        "fxlrp.cli.answering.save", lambda a, *args, **kwargs: (shown.append(a), save(a, *args, **kwargs))[1]
    )
    run("explain", examples / "model.pt", picture)
    run("explain", examples / "model.pt", picture, "--shifts", 4)
    loaded = load_model(str(examples / "model.pt"))
    x = loaded.preprocess(open_picture(picture))[0][None]
    torch.testing.assert_close(shown[0].relevance, convert(loaded.module)(x).relevance, rtol=0, atol=0)
    torch.testing.assert_close(shown[1].relevance, convert(loaded.module, shifts=4)(x).relevance, rtol=0, atol=0)
    assert not torch.equal(shown[0].relevance, shown[1].relevance)

    plain = convert(loaded.module)(x, target=2).relevance.detach()
    torch.testing.assert_close(FxLRP(loaded.module).attribute(x, target=2), plain, rtol=0, atol=0)
    by_quantus = quantus_explain(loaded.module, x.numpy(), np.array([2]))
    np.testing.assert_array_equal(by_quantus, plain.numpy())
    assert {p.default for f in (convert, explain, text.explain, text.generate, quantus_explain, FxLRP.__init__)
            for n, p in inspect.signature(f).parameters.items() if n == "rules"} == {DEFAULT}  # fmt: skip
    assert options.EVALUATED.startswith(f"{DEFAULT},")


def test_names_with_several_parameters_are_not_parted(files: Path) -> None:
    assert split_names("gamma:gamma=0.1,epsilon=1,attnlrp, abslrp") == [
        "gamma:gamma=0.1,epsilon=1",
        "attnlrp",
        "abslrp",
    ]
    names = "abslrp-hybrid:convolution=1,sum=0,gradient-input"
    run("compare", files / "net.pt", files / "a.png", "--rules", names, "-o", "both.png")


def test_doctor(files: Path) -> None:
    said = run("doctor", files / "net.pt").output
    assert re.search(r"captured +by torch.export, for batches of any size, in \d+\.\d s", said)
    assert re.search(r"ops +\d+: \d+ rule, \d+ structural", said)
    assert re.search(r"a map +\d+ ms = \d+\.\d gradients", said)
    assert "explainer.compile()" in said
    assert "--shifts 4" not in said
    vit = Path(__file__).parents[1] / "examples" / "vit.safetensors"
    said = run("doctor", vit, "--arch", f"{vit.parent}/models.py:vit").output
    assert "--shifts 4" in said


def test_completion_is_offered() -> None:
    assert "--install-completion" in run("--help").output


@pytest.fixture
def table() -> tuple[Path, torch.Tensor, nn.Module]:
    """A model of two numbers and three classes, and a table with a column of words."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    torch.save(net, "tab.pt")
    Path("t.csv").write_text("name,age,size\nAnn,3,1\nBob,1,2\n")
    return Path("t.csv"), torch.tensor([[3.0, 1], [1, 2]]), net


def test_a_table(table: tuple[Path, torch.Tensor, nn.Module]) -> None:
    file, x, net = table
    assert "'Ann' is no number; name the columns" in run("explain", "tab.pt", file, code=2).stderr
    run("explain", "tab.pt", file, "--columns", "age,size", "-o", "t.npz", "--html", "t.html")
    expected = convert(net)(x)
    np.testing.assert_allclose(np.load("t.npz")["relevance.0"], expected.relevance.detach(), rtol=1e-5)
    assert Path("t.html").read_text().count("age = ") >= 2
    one = run("explain", "tab.pt", file, "--columns", "age,size", "--row", 1, "--json", "-o", "u.csv").stdout
    found = json.loads(one)["calls"]
    assert len(found) == 1
    top = int(expected.relevance[1].abs().argmax())
    assert found[0]["explained"][0]["inputs"]["0"]["strongest"]["at"] == [top]
    said = run("explain", "tab.pt", file, "--columns", "age,size").output
    assert re.search(rf"1 +class \d, [\d.]+ % +{['age', 'size'][top]} \([+-]", said)
    assert "of the first of 2" in said


def test_arrays_and_their_mistakes(table: tuple[Path, torch.Tensor, nn.Module], files: Path) -> None:
    np.save("x.npy", table[1].numpy())
    run("explain", "tab.pt", "x.npy", "-o", "x.json", "--target", 0, "--target", 2)
    targets = [e["target"] for e in json.loads(Path("x.json").read_text())["samples"][0]["explained"]]
    assert [t.partition(",")[0] for t in targets] == ["class 0", "class 2"]
    for more, said in (
        (["--size", 8], "--size goes with models that read pictures"),
        (["--row", 1], "--columns and --row go with a table"),
        ([files / "a.png"], "explain pictures by themselves"),
    ):
        assert said in run("explain", "tab.pt", "x.npy", *more, code=2).stderr
    assert (
        "--row goes with models that read tables"
        in run("explain", "tab.pt", files / "a.png", "--row", 1, code=2).stderr
    )


def test_a_point_of_a_map(files: Path) -> None:
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)), "seg.pt")
    asked = ("explain", "seg.pt", files / "a.png", "--size", 16)
    assert "by --position 0,0 (a point of the map)" in run(*asked, code=2).stderr
    said = run(*asked, "--position", "2,5", "-o", "p.npz").output
    assert re.search(r"explained class \d at \(2, 5\), [\d.]+ %", said)
    assert np.abs(np.load("p.npz")["relevance.0"]).sum((0, 1)).nonzero()[0].tolist() == [1] * 3 + [2] * 3 + [3] * 3
    assert "row and column, as 40,50" in run(*asked, "--position", "here", code=2).stderr


def test_compare_takes_what_explain_takes(table: tuple[Path, torch.Tensor, nn.Module], files: Path) -> None:
    file, x, net = table
    asked = ("compare", "tab.pt", file, "--columns", "age,size", "--row", 0, "--rules", "abslrp,gradient-input,abslrp:")
    run(*asked, "-o", "c.npz", "--target", 1, "--contrast", "none", "--html", "c.html")
    expected = convert(net, rules="gradient-input")(x[:1], target=1, contrast=None).relevance
    np.testing.assert_allclose(np.load("c.npz")["gradient-input.relevance.0"], expected.detach(), rtol=1e-5)
    found = json.loads(run(*asked, "--json").stdout)
    assert set(found["rules"]) == {"abslrp", "gradient-input"}
    said = run("compare", files / "net.pt", files / "a.png", "--rules", "abslrp,gamma", "-o", "c.svg").output
    assert "wrote c.svg" in said


def test_json_of_what_examines_a_model(files: Path) -> None:
    report = json.loads(run("inspect", files / "net.pt", files / "a.png", "--mass", "--json").stdout)
    assert report["counts"]["rule"] == sum(n["kind"] == "rule" for n in report["nodes"])
    assert any("arrives" in n for n in report["nodes"])
    found = json.loads(run("doctor", files / "net.pt", "--json").stdout)
    assert set(found["seconds"]) == {"a forward pass", "a gradient", "a map"}
    assert found["advice"]
