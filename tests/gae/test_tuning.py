"""fxlrp.gae.tune: the numbers of the default rulebook, searched on half of a user's pictures."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import randomize
from torch import Tensor, nn
from typer.testing import CliRunner

from fxlrp import DEFAULT, FxlrpError
from fxlrp.cli import app
from fxlrp.gae import tune
from fxlrp.gae.tuning import name_of
from fxlrp.rules.registry import parameters_of


class Net(nn.Module):
    """A convolution, a sum, a dense layer: one of each that a number is of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head((x + self.second(x)).relu().mean((2, 3)))


def pictures(count: int = 10) -> list[tuple[Tensor, None, Tensor]]:
    masks = torch.zeros(count, 16, 16, dtype=torch.bool)
    masks[:, 4:12, 4:12] = True
    return [(x, None, mask) for x, mask in zip(torch.randn(count, 3, 16, 16), masks, strict=True)]


@pytest.fixture
def net() -> nn.Module:
    return randomize(Net()).float()


def liking(**parameters: Any) -> Any:
    """A measure in the place of the masking curves, by which maps are the better the nearer to those of a rulebook."""
    wanted: dict[int, Tensor] = {}

    def curves(model: nn.Module, x: Tensor, target: Tensor, heat: Tensor, **_: Any) -> dict[str, list[float]]:
        from fxlrp import convert

        key = hash(x.numpy().tobytes())
        if key not in wanted:
            wanted[key] = convert(model, rules=name_of({**defaults(), **parameters}))(x, target=target).heatmap()
        return {"abpc": (-(heat - wanted[key]).abs().flatten(1).sum(1)).tolist()}

    return curves


def defaults() -> dict[str, Any]:
    return {key: parameters_of(DEFAULT)[key] for key in ("sum", "convolution", "dense", "contrast")}


@pytest.mark.parametrize("parameters", [{"sum": 2.0}, {"convolution": 0.25}, {"dense": 0.25}, {"contrast": "others"}])
def test_what_is_best_is_found(net: nn.Module, parameters: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    (key, value), *_ = parameters.items()
    monkeypatch.setattr("fxlrp.gae.tuning.curves", liking(**parameters))
    monkeypatch.setattr("fxlrp.gae.tuning.GRID", {k: (v, value) if k == key else (v,) for k, v in defaults().items()})
    tuned = tune(net, [x for x, *_ in pictures()], batch_size=3)
    assert tuned.rules == name_of({**defaults(), **parameters})
    assert tuned.is_better
    assert list(tuned.held_out) == [DEFAULT, tuned.rules]
    assert all(len(scores["abpc"]) == 5 for scores in (*tuned.tried.values(), *tuned.held_out.values()))
    assert "pointing" not in tuned.tried[DEFAULT]


def test_halves_share_no_picture(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def curves(model: nn.Module, x: Tensor, target: Tensor, heat: Tensor, **_: Any) -> dict[str, list[float]]:
        seen.extend(x)
        return {"abpc": [0.0] * len(x)}

    monkeypatch.setattr("fxlrp.gae.tuning.curves", curves)
    tuned = tune(net, [x for x, *_ in pictures(9)], batch_size=2)
    assert tuned.rules == DEFAULT  # nothing is better than another
    searched, held_out = (len(scores[DEFAULT]["abpc"]) for scores in (tuned.tried, tuned.held_out))
    assert (searched, held_out) == (5, 4)
    last = {hash(x.numpy().tobytes()) for x in seen[-held_out:]}
    first = {hash(x.numpy().tobytes()) for x in seen[:-held_out]}
    assert len(first) == searched
    assert len(last) == held_out
    assert not first & last


def test_what_the_model_does_not_have_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 4), nn.ReLU(), nn.Linear(4, 3)).eval()
    tuned = tune(dense, pictures(4))
    assert not any("sum" in name or "convolution" in name for name in tuned.tried)
    assert any("dense" in name for name in tuned.tried)


def test_a_run_goes_on_and_other_pictures_are_refused(
    net: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fxlrp.gae.tuning.GRID", {"sum": (0.0, 1.0), "dense": (0.02, 0.25), "contrast": ("softmax", None)}
    )
    data, measured = pictures(8), []

    def progress(name: str, scores: Any, held_out: bool) -> None:
        measured.append(name)
        if len(measured) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tune(net, data, out=tmp_path, progress=progress)
    whole = tune(net, data)
    kept = (tmp_path / "pieces.jsonl").read_text().count("\n")
    assert tune(net, data, out=tmp_path) == whole
    assert (tmp_path / "pieces.jsonl").read_text().count("\n") > kept
    monkeypatch.setattr("fxlrp.gae.tuning.curves", None)  # nothing is measured again
    assert tune(net, data, out=tmp_path) == whole
    with pytest.raises(FxlrpError, match="other pictures"):
        tune(net, pictures(8), out=tmp_path)
    with torch.no_grad():
        net.head.bias += 1
    with pytest.raises(FxlrpError, match="another model"):
        tune(net, data, out=tmp_path)


def test_too_few_pictures_and_training_mode(net: nn.Module) -> None:
    with pytest.raises(FxlrpError, match="4 are needed"):
        tune(net, pictures(3))
    with pytest.raises(FxlrpError, match="eval"):
        tune(net.train(), pictures(4))


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxlrp.gae.tuning.GRID", {"sum": (0.0, 1.0)})
    examples = Path(__file__).parents[2] / "examples"
    args = ["tune", str(examples / "model.pt"), str(examples / "pictures"), "--masks", str(examples / "masks")]
    result = CliRunner().invoke(app, [*args, "--limit", "4", "--steps", "3", "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert re.search(r"searched on +abpc +pointing +relevance mass", result.output)
    assert re.search(r"held out +abpc", result.output)
    assert re.search(r"--rules abslrp-hybrid:|keep the default|Nothing tried is better", result.output)
