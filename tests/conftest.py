"""Small models and inputs the tests share.  One thread: the suite runs beside others."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

torch.set_num_threads(1)
FORKING = ("gae/test_evaluate.py", "gae/test_known.py", "gae/test_text_evaluate.py")
with suppress(ImportError):  # a fork would inherit the lock that the thread of tqdm holds
    from tqdm import tqdm

    tqdm.monitor_interval = 0
sys.path.insert(0, str(Path(__file__).parents[1]))  # the tests import examples/


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run what takes hours too")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "whole: one of many alike, which runs with --whole alone")
    config.addinivalue_line("markers", "every(n): of the cases of a test, every n-th; the others with --whole alone")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(name in item.nodeid for name in FORKING))  # before autograd has threads
    if not config.getoption("--whole"):
        left_out = [item for item in items if item.get_closest_marker("whole")] + _every_fourth(items) + _every(items)
        dropped = set(left_out)
        items[:] = [item for item in items if item not in dropped]
        config.hook.pytest_deselected(items=left_out)


def _every_fourth(items: list[pytest.Item]) -> list[pytest.Item]:
    """Of situations tried by every rulebook, a quarter: each by every fourth, and each rulebook with a quarter."""
    left_out: list[pytest.Item] = []
    known: dict[tuple, dict] = {}
    for item in items:
        params = dict(getattr(getattr(item, "callspec", None), "params", {}))
        if item.path.parent.name != "situations" or "rules" not in params or len(params) < 2:
            continue
        function = item.nodeid.split("[")[0]
        rules, case = params.pop("rules"), str(params)
        places = [known.setdefault((function, axis), {}) for axis in ("rules", "case")]
        i, j = (place.setdefault(value, len(place)) for place, value in zip(places, (rules, case), strict=True))
        if (i + j) % 4:
            left_out.append(item)
    return left_out


def _every(items: list[pytest.Item]) -> list[pytest.Item]:
    """The cases of tests marked every(n) but for every n-th."""
    count: Counter[str] = Counter()
    left_out: list[pytest.Item] = []
    for item in items:
        if marker := item.get_closest_marker("every"):
            function = item.nodeid.split("[")[0]
            if count[function] % marker.args[0]:
                left_out.append(item)
            count[function] += 1
    return left_out


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def browser() -> Iterator:
    """Chromium, if there is one."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("there is no chromium (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=path,
            chromium_sandbox=os.geteuid() != 0,  # it refuses to sandbox root
        )
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser) -> Iterator:
    """Opens an HTML file; whatever goes wrong there, or is fetched, fails the test."""
    wrong: list[str] = []
    page = browser.new_page()

    def visit(path: Path):
        address = path.as_uri()
        page.on("request", lambda r: None if r.url == address or r.url.startswith("data:") else wrong.append(r.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text))
        page.goto(address)
        return page

    yield visit
    page.close()
    assert not wrong


def randomize(model: nn.Module) -> nn.Module:
    """Eval mode, float64, and no zero or one left in the norms' parameters and statistics."""
    model = model.double().eval()
    with torch.no_grad():
        for name, t in [*model.named_parameters(), *model.named_buffers()]:
            if t.is_floating_point() and t.ndim <= 1:
                t.add_(0.2 * torch.randn_like(t)).abs_() if "var" in name else t.add_(0.2 * torch.randn_like(t))
            elif t.is_floating_point() and not t.any():
                t.normal_(std=0.1)
    return model


class SmallCNN(nn.Module):
    """In-place, functional and reused ops, a residual, a concatenation and a gate: what hook-based tools trip over."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.act = nn.ReLU(inplace=True)
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.act(y)
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return self.head(torch.cat([y, x], 1).mean((-2, -1)))


@pytest.fixture
def cnn() -> nn.Module:
    return randomize(SmallCNN())
