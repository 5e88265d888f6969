"""convert(cache=…): another process explains by the graphs that one has captured, or captures anew and says why."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SmallCNN, randomize
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import fxlrp
import fxlrp.plans
from fxlrp import FxlrpError
from fxlrp.capture.symbols import free_symbols
from fxlrp.cli import app
from fxlrp.identity import Unsteady, fingerprint
from fxlrp.nodes import values_of

KEY = "graph"


class Text(nn.Module):
    """Ids, a mask made of them, a dict as output."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
        self.head = nn.Linear(8, 3)
        self.scale = torch.full((8,), 0.5)  # no buffer: a constant of the graph

    def forward(self, ids: Tensor, factor: float = 1.0) -> dict[str, Any]:
        x = self.block(self.table(ids) * self.scale)
        return {"logits": self.head(x.mean(1) * factor), "count": 2}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(4, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "convolutions": (SmallCNN, lambda: torch.randn(2, 3, 8, 8)),
    "text": (Text, lambda: torch.randint(0, 30, (2, 6))),
    "recurrent": (Recurrent, lambda: torch.randn(2, 5, 4)),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(3)
    model = MODELS[name][0]().eval()
    return model, MODELS[name][1]()


@pytest.fixture
def untraced(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After it is called, tracing is an error."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was traced")

    return lambda: monkeypatch.setattr(fxlrp.plans, "capture", refuse)


@pytest.mark.parametrize("name", MODELS)
def test_a_second_explainer_traces_nothing(name: str, tmp_path: Path, untraced: Callable[[], None]) -> None:
    model, x = made(name)
    first = fxlrp.convert(model, x, cache=tmp_path)
    untraced()
    other, _ = made(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = fxlrp.convert(other, x, cache=tmp_path)
        a, b = first(torch.cat([x, x])), second(torch.cat([x, x]))
    assert torch.equal(a.relevance, b.relevance)
    torch.testing.assert_close(a.output, b.output, rtol=0, atol=0)
    assert str(first.report()) == str(second.report())
    nodes, others = first.graph.graph.nodes, second.graph.graph.nodes
    for n, m in zip(nodes, others, strict=True):
        assert str(n) == str(m)
        for t, u in zip(values_of(n), values_of(m), strict=True):
            assert [bool(free_symbols(size)) for size in t.shape] == [bool(free_symbols(size)) for size in u.shape]
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    assert not torch.equal(second(x).relevance, first(x).relevance)  # weights are the model's own


class OneByOne(nn.Module):
    """A loop over the batch, so that each size of batch has a graph of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(row).relu() + row.mean() for row in x])


def test_graphs_for_one_size_of_batch(tmp_path: Path, untraced: Callable[[], None]) -> None:
    torch.manual_seed(0)
    model, xs = OneByOne().eval(), [torch.randn(n, 4) for n in (2, 3)]
    expected = [fxlrp.convert(model, x)(x).relevance for x in xs]
    first = fxlrp.convert(model, cache=tmp_path)
    assert all(torch.equal(first(x).relevance, r) for x, r in zip(xs, expected, strict=True))
    assert len(list(tmp_path.iterdir())) == 2
    untraced()
    second = fxlrp.convert(model, cache=tmp_path)
    assert all(torch.equal(second(x).relevance, r) for x, r in zip(xs, expected, strict=True))


def test_another_process_finds_it(tmp_path: Path) -> None:
    """Whatever order its sets have."""
    code = f"import sys; sys.path[:] = {sys.path!r}\nfrom test_graph_store import *\nmodel, x = made('text')\n"
    code += "import fxlrp\nfxlrp.convert(model, x, cache=sys.argv[1])\n"
    code += "print(fingerprint(model, {'a', 'b', 'c'}, frozenset((1, 'x'))))"
    seen = []
    for seed in ("1", "2"):
        command = [sys.executable, "-c", code, str(tmp_path)]
        env = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent), "PATH": ""}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        seen.append((done.stdout, sorted(path.name for path in tmp_path.iterdir())))
    assert seen[0] == seen[1]
    assert len(seen[0][1]) == 1


def changes() -> dict[str, Callable[[Text], None]]:
    def attribute(model: Text) -> None:
        model.block.norm_first = False

    def width(model: Text) -> None:
        model.head = nn.Linear(8, 4)

    def constant(model: Text) -> None:
        model.scale = model.scale * 2

    def hook(model: Text) -> None:
        model.head.register_forward_hook(lambda module, args, out: out * 2)

    def method(model: Text) -> None:
        model.forward = lambda ids: {"logits": model.head(model.table(ids).amax(1)), "count": 2}  # type: ignore

    def layer(model: Text) -> None:
        model.head = nn.Sequential(model.head, nn.Tanh())  # type: ignore[assignment]

    return {f.__name__: f for f in (attribute, width, constant, hook, method, layer)}


@pytest.mark.parametrize("name", changes())
def test_a_model_that_differs_has_another_file(name: str, tmp_path: Path) -> None:
    model, x = made("text")
    before = fingerprint(model)
    assert fingerprint(made("text")[0]) == before
    fxlrp.convert(model, x, cache=tmp_path)
    changes()[name](model)
    assert fingerprint(model) != before
    explainer = fxlrp.convert(model, x, cache=tmp_path)
    assert torch.equal(explainer(x).relevance, fxlrp.convert(model, x)(x).relevance)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_code_of_a_class_is_part_of_it() -> None:
    def kind(line: str) -> nn.Module:
        scope: dict[str, Any] = {"nn": nn, "__name__": "users"}
        exec(f"class Own(nn.Module):\n  def forward(self, x):\n    return {line}", scope)
        return scope["Own"]()

    assert fingerprint(kind("x + 1")) == fingerprint(kind("x + 1"))
    assert len({fingerprint(kind(line)) for line in ("x + 1", "x + 2", "x.exp()", "x.log()", "(lambda: x)()")}) == 5


def test_what_else_stands_in_the_file_of_a_class_is_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    seen = set()
    for line in ("x + 1", "x + 2"):
        code = "from torch import nn\nclass Own(nn.Module):\n  def forward(self, x):\n    return helper(x)\n"
        (tmp_path / "users_own.py").write_text(f"{code}def helper(x):\n  return {line}\n")
        monkeypatch.delitem(sys.modules, "users_own", raising=False)
        seen.add(fingerprint(importlib.import_module("users_own").Own()))
    assert len(seen) == 2


class Two(nn.Module):
    def __init__(self, **attributes: Any) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def test_weights_count_by_their_shapes_and_by_which_are_one() -> None:
    model, tied, shared = Two(), Two(), Two()
    tied.second.weight = tied.first.weight
    shared.second = shared.first
    assert fingerprint(model) == fingerprint(Two())
    assert len({fingerprint(m) for m in (model, tied, shared, Two(second=nn.Linear(3, 4)))}) == 4


class Slots:
    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ([torch.zeros(2)], [torch.ones(2)]),  # a constant of the graph
        (Slots(1), Slots(2)),
        (torch.strided, torch.sparse_coo),
        (range(3), range(4)),
        ({"a": (1, ...)}, {"a": (1, None)}),
        (torch.device("cpu"), torch.device("meta")),
    ],
)
def test_attributes_count_by_their_values(one: Any, other: Any) -> None:
    assert fingerprint(Two(its=one)) == fingerprint(Two(its=copy.deepcopy(one)))
    assert fingerprint(Two(its=one)) != fingerprint(Two(its=other))


@pytest.mark.parametrize("make", [threading.Lock, lambda: (i for i in ()), lambda: torch.jit.script(nn.Linear(2, 2))])
def test_what_has_no_state_that_could_be_seen(make: Callable[[], Any]) -> None:
    with pytest.raises(Unsteady, match=r"model\.second\.its, a "):
        fingerprint(Two(second=Two(its=make())))


def test_defaults_and_closures_of_hooks_are_part_of_it() -> None:
    def hooked(factor: float, by_default: float) -> nn.Module:
        layer = nn.Linear(2, 2)
        layer.register_forward_hook(lambda module, args, out, by=by_default: out * factor * by)
        return layer

    assert fingerprint(hooked(1.0, 2.0)) == fingerprint(hooked(1.0, 2.0))
    assert len({fingerprint(hooked(*given)) for given in ((1.0, 2.0), (2.0, 2.0), (1.0, 3.0))}) == 3


def test_a_call_that_differs_has_another_file(tmp_path: Path) -> None:
    model, x = made("text")
    explainer = fxlrp.convert(model, (x,), cache=tmp_path)
    explainer(x, factor=2.0)
    assert len(list(tmp_path.iterdir())) == 2
    again = fxlrp.convert(model, cache=tmp_path)
    assert torch.equal(again(x, factor=2.0).relevance, explainer(x, factor=2.0).relevance)


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes what a file says of its graph."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()[KEY])
        constants = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(about)
    save_file(constants, path, metadata={KEY: json.dumps(about)})


def calls(about: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in about["nodes"] if "call" in node]


FOREIGN: dict[str, Callable[[dict[str, Any]], None]] = {
    "a function of Python": lambda about: calls(about)[0].update(call="os.system", args=["echo no"]),
    "an op that reads files": lambda about: calls(about)[0].update(call="torch.ops.aten.from_file.default"),
    "another name": lambda about: about.update(key="0" * 64),
    "another format": lambda about: about.update(format=0),
    "no weight of the model": lambda about: next(n for n in about["nodes"] if n.get("weight")).update(weight="w"),
    "another node": lambda about: calls(about)[-1].update(args=[{"node": "none"}]),
    "another kind of argument": lambda about: calls(about)[0].update(args=[{"torch": "load"}]),
    "an op that makes much": lambda about: calls(about)[0].update(
        call="torch.ops.aten.zeros.default", args={"tuple": [[2**20, 2**20]]}, kwargs={"dict": {}}
    ),
    "another shape": lambda about: next(n for n in about["nodes"] if "shape" in n).update(shape=[2, 3, 9, 9]),
}


@pytest.mark.parametrize("name", [*FOREIGN, "half of it", "a pickle"])
def test_a_foreign_or_broken_file_is_not_run(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    model, x = made("convolutions")
    expected = fxlrp.convert(model, x, cache=tmp_path)(x)
    (path,) = tmp_path.iterdir()
    if name in FOREIGN:
        rewritten(path, FOREIGN[name])
    elif name == "a pickle":
        torch.save({"a": Path("x")}, path)
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    why = "out of proportion" if "makes much" in name else ""
    with pytest.warns(UserWarning, match=f"is no graph of this model that fxlrp wrote .*{why}"):
        explainer = fxlrp.convert(model, x, cache=tmp_path)
    assert torch.equal(explainer(x).relevance, expected.relevance)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fxlrp.convert(model, x, cache=tmp_path)  # it was written anew
    assert "no" not in capfd.readouterr().out


def test_an_outdated_file_is_noticed_by_its_output(tmp_path: Path) -> None:
    """What a digest can't see, such as the code of a function of another file, is seen by the model's own output."""
    model, x = made("convolutions")
    expected = fxlrp.convert(model, x, cache=tmp_path)(x)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()

    def other_activation(about: dict[str, Any]) -> None:
        for node in calls(about):
            node["call"] = node["call"].replace("relu", "tanh")

    rewritten(path, other_activation)
    assert torch.equal(fxlrp.convert(model, x, cache=tmp_path)(x).relevance, expected.relevance)
    assert path.read_bytes() == whole


def test_models_that_no_digest_tells_apart_are_captured_in_each_process(tmp_path: Path) -> None:
    model, x = made("convolutions")
    with (tmp_path / "log").open("w") as log:
        model.log = log  # type: ignore[assignment]
        with pytest.raises(Unsteady, match=r"model\.log, a _io\.TextIOWrapper"):
            fingerprint(model)
        with pytest.warns(UserWarning, match=r"the model has model\.log, a _io\.TextIOWrapper"):
            explainer = fxlrp.convert(model, x, cache=tmp_path / "graphs")
        assert explainer(x).relevance.any()


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        return g


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Rounded.apply(x))


def test_graphs_that_are_more_than_ops_are_not_written(tmp_path: Path) -> None:
    x = 3 * torch.randn(2, 4)
    with pytest.warns(UserWarning, match="this model's graph can't be written"):
        explainer = fxlrp.convert(Custom().eval(), x, cache=tmp_path)
    assert explainer(x).relevance.any()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FxlrpError, match="is no folder that can be made"):
        fxlrp.convert(SmallCNN().eval(), cache=tmp_path / "file")


def test_double_precision_and_rulebooks(tmp_path: Path, untraced: Callable[[], None]) -> None:
    model, x = randomize(SmallCNN()), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    first = fxlrp.convert(model, x, cache=tmp_path)
    untraced()
    for rules in fxlrp.rulebooks():
        second = fxlrp.convert(model, x, rules=rules, cache=tmp_path)
        assert torch.equal(second(x).relevance, first.by(rules)(x).relevance)


def test_the_command_line_keeps_them(tmp_path: Path, untraced: Callable[[], None]) -> None:
    examples = Path(__file__).parents[2] / "examples"
    given = ["explain", examples / "model.pt", examples / "pictures" / "ring_star.png", "--cache", tmp_path / "graphs"]
    for output in ("a.npz", "b.npz"):
        done = CliRunner().invoke(app, [*map(str, given), "-o", str(tmp_path / output)])
        assert done.exit_code == 0, done.output
        untraced()
    assert len(list((tmp_path / "graphs").iterdir())) == 1
    a, b = (np.load(tmp_path / name) for name in ("a.npz", "b.npz"))
    assert all(np.array_equal(a[key], b[key]) for key in a.files)
