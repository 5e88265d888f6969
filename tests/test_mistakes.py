"""What people get wrong, or see wrongly, one test for each kind, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner, Result

import fxlrp
from fxlrp.cli import app

EXAMPLES = Path(fxlrp.__file__).parent / "examples"
NETS = """
from torch import nn

def fixed():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))

class Several(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3), END)
"""


def run(*args: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, f"exit code {result.exit_code}: {result.output}{result.exception!r}"
    return result


def sentence(*args: object) -> str:
    """The error of a command that can't be, its only one."""
    result = run(*args, code=2)
    said = [line for line in result.stderr.splitlines() if line and not line.startswith(("pictures: ", "note: "))]
    assert len(said) == 1
    assert said[0].startswith("error: ")
    return said[0]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a picture and a file of networks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Image.new("RGB", (20, 20), "red").save("a.png")
    for name in "ab":
        Path("two").mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), "blue").save(f"two/{name}.png")
    Path("nets.py").write_text(NETS.replace("END", "nn.Sigmoid()"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("explain m.pt", "There is nothing to explain: give pictures"),
        ("explain m.pt a.png --html why.png", "a page is a file that ends in .html"),
        ("compare m.pt a.png --html why.pdf", "a page is a file that ends in .html"),
        ("generate m.pt hello --html why", "a page is a file that ends in .html"),
        ("explain m.pt a.png --rules abslpr", "no rulebook 'abslpr'"),
        ("doctor m.pt --rules gamma:gama=1", "no parameter 'gama'"),
        ("inspect m.pt --rules gamma:gamma=x", "is no number"),
        ("compare m.pt a.png --rules gamma,zplu", "no rulebook 'zplu'"),
        ("compare m.pt a.png -o maps.csv", "no extension that a comparison is written as"),
        ("explain m.pt a.png --colours viridi", "no colours 'viridi'"),
        ("inspect m.pt --size big", "--size takes pixels"),
        ("explain m.pt a.png --mean 1;2", "--mean takes numbers"),
        ("explain m.pt a.png --labels no.txt", "There is no file no.txt"),
        ("export m.pt -o x.foo", "x.foo should end in .pt2 or .onnx"),
        ("export m.pt -o a.png/x.pt2", "is no folder that can be written to"),
        ("evaluate m.pt two -o a.png/out", "is no folder that can be written to"),
        ("evaluate m.pt two --masks masks", "There is no folder masks"),
        ("explain two hello --text-file no.txt", "There is no file no.txt"),
        ("inspect m.pt no.png", "There is no file no.png"),
        ("doctor m.pt no.csv", "There is no file no.csv"),
        ("circuit m.pt no.png", "There is no file no.png"),
        ("concepts m.pt two --at x --explain two", "two holds 2 pictures"),
        ("map m.pt nodir -o maps", "There is no nodir; DATA is a folder"),
        ("evaluate m.pt nodir", "There is no nodir; DATA is a folder"),
        ("tune m.pt nodir", "There is no nodir; DATA is a folder"),
        ("compare m.pt two", "two holds 2 pictures, and one is asked about here: name it, as two/a.png"),
        ("evaluate m.pt . --methods abslrp,gradcan", "no method 'gradcan'"),
        ("evaluate m.pt . --methods gamma:gama=1", "no parameter 'gama'"),
        (
            "explain nets.py a.png",
            "say which function or class in it makes the model, nets.py:fixed or nets.py:Several",
        ),
        ("explain m.pt a.png --arch nets.py", "makes the model, nets.py:fixed or nets.py:Several"),
    ],
)
def test_options_that_can_not_be_are_told_before_the_model_is_loaded(args: str, said: str) -> None:
    """There is no m.pt, which would be told otherwise."""
    assert said in sentence(*args.split())


@pytest.mark.parametrize("command", ["explain {} a.png", "inspect {}", "doctor {}", "export {}", "compare {} a.png"])
def test_a_size_that_the_model_refuses_names_the_option(command: str) -> None:
    said = sentence(*command.format("nets.py:fixed").split(), "--size", 20)
    assert "The model itself refuses these inputs (mat1 and mat2 shapes cannot be multiplied" in said
    assert "--size" in said
    if command.startswith("inspect"):
        run(*command.format("nets.py:fixed").split(), "--size", 16)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    run("export", "nets.py:fixed", "-o", "e.pt2", "--size", 16)
    return Path("e.pt2")


def test_what_an_exported_explainer_can_not_be_asked(exported: Path) -> None:
    for more in (["--at", "0"], ["--position", "1"]):
        said = sentence("explain", exported, "a.png", *more)
        assert f"not {more[0][2:]}: ask the model that it was exported from" in said
    for command in ("doctor", "inspect"):
        assert "an explainer already; take the model it was made from" in sentence(command, exported)


def chances(find: Callable[[], object]) -> list[float]:
    found = json.loads(str(find()))
    sample = found["samples"][0] if "samples" in found else found["pictures"][0]
    return [c["probability"] for c in sorted(sample["classes"], key=lambda c: c["class"])]


def test_classes_that_do_not_exclude_each_other_have_probabilities_of_their_own() -> None:
    """As the model returns them; so has what is saved and read again, an exported explainer, and a data set's rows."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    torch.save(nn.Sequential(model, nn.Sigmoid()).eval(), "m.pt")
    asked = ("a.png", "--size", 16, "--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
    x = (torch.tensor([1.0, 0, 0]) - 0.5).div(0.5)[:, None, None].expand(1, 3, 16, 16)
    expected = pytest.approx(model(x).sigmoid()[0].tolist(), abs=1e-4)
    assert chances(lambda: run("explain", "m.pt", *asked, "--json").stdout) == expected
    run("explain", "m.pt", *asked, "-o", "a.safetensors")
    fxlrp.load("a.safetensors").save("again.json")
    assert chances(Path("again.json").read_text) == expected
    run("export", "m.pt", "-o", "e.pt2", *asked[1:])
    assert chances(lambda: run("explain", "e.pt2", "a.png", "--json").stdout) == expected
    run("map", "m.pt", *asked, "-o", "maps")
    row = next(iter(fxlrp.data.read("maps")))
    assert [s for _, s in sorted(zip(row["classes"], row["scores"], strict=True))] == expected


def test_what_is_printed_of_one_and_of_several() -> None:
    """One row is no "1 rows", what was read and written fits 80 columns, and no sentence is broken."""
    torch.save(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), "tab.pt")
    Path("t.csv").write_text("age,size\n3,1\n1,2\n")
    one, both = (run("explain", "tab.pt", "t.csv", "--target", 1, *more) for more in (["--row", 0], []))
    assert "t.csv: 1 row of 2 numbers" in one.stderr
    assert "t.csv: 2 rows of 2 numbers" in both.stderr
    assert "  counted most: " in one.stdout
    (deep := Path("a folder with a long name/" * 3)).mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20), "red").save(deep / name)
    said = run("explain", "nets.py:fixed", deep, "--size", 16, "-o", "maps", "--html", "why.html").stdout.splitlines()
    assert f"read from {deep}, written to maps" in said
    assert any(line.startswith(" a.png ") and "a_fxlrp.png" in line for line in said)
    assert "explained against the others by probability; red spoke for the class, blue against it" in said
    assert "<title>fixed: why class " in Path("why.html").read_text()
    said = run("map", "nets.py:fixed", deep, "--size", 16, "--limit", 1, "-o", "kept").stdout.splitlines()
    assert "wrote kept: 1 row" in said


@pytest.mark.parametrize("command", ["inspect", "doctor"])
def test_a_model_of_tables_or_texts_is_examined_by_an_input(command: str) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), "tab.pt")
    Path("t.csv").write_text("name,age,size\nAnn,3,1\nBob,1,2\n")
    assert "What takes no pictures is given an INPUT, as a .csv or .npy" in sentence(command, "tab.pt")
    said = run(command, "tab.pt", "t.csv", "--columns", "age,size").stdout
    assert {"inspect": "3 nodes by rulebook", "doctor": "3: 2 rule, 1 structural"}[command] in said
    if command == "inspect":
        assert "relevance that arrives" in run(command, EXAMPLES / "text", "a fine film", "--mass").stdout
    for more in (["--size", 8], ["--row", 5]):
        sentence(command, "tab.pt", "t.csv", "--columns", "age,size", *more)


def test_it_runs_as_a_module() -> None:
    command, place = [sys.executable, "-m", "fxlrp", "--version"], Path(fxlrp.__file__).parents[1]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=place)
    assert done.stdout == f"fxlrp {fxlrp.__version__}\n"
