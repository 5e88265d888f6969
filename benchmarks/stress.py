"""Stress: many threads and many calls, which should leave equal numbers and as much memory as before.

    python -m benchmarks.stress threads --threads 16 --models 20
    python -m benchmarks.stress memory --converts 50 --shapes 60 --calls 500

The first explains with models of torchvision and of its own, first and later calls, in threads that start at once and
share the explainers, beside threads that run the plain models.  The second explains with a small CNN and a small
transformer.  Both fail if anything is wrong.
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

import fxlrp

NAMES = [
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "shufflenet_v2_x0_5",
    "mnasnet0_5",
    "efficientnet_b0",
    "densenet121",
    "regnet_y_400mf",
    "regnet_x_400mf",
    "googlenet",
    "resnext50_32x4d",
    "alexnet",
    "vgg11_bn",
    "swin_t",
]


PLAIN = 4
"""How many threads run the plain models meanwhile."""


class Branches(nn.Module):
    """Branches on values, keeps what it computed, and has a module of two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.again = self.first
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        self.cache["y"] = y = self.again(self.first(x).relu())
        return y * 2 if y.sum() > 1e6 else y


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.layers = transformer()

    def forward(self, ids: Tensor) -> Tensor:
        return self.layers(self.embedding(ids))


class Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def transformer() -> nn.Module:
    return nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), Mean(), nn.Linear(8, 3))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5)
    )


def networks(count: int) -> list[tuple[str, nn.Module, Tensor]]:
    """Models of different kinds, with inputs."""
    torch.manual_seed(0)
    own: list[tuple[str, nn.Module, Tensor]] = [
        ("cnn", cnn(), torch.randn(2, 3, 12, 12)),
        ("branches", Branches(), torch.randn(1, 8)),
        ("transformer", transformer(), torch.randn(2, 5, 8)),
        ("tokens", Tokens(), torch.randint(0, 50, (2, 6))),
        ("recurrent", Recurrent(), torch.randn(2, 5, 8)),
    ]
    options = {"googlenet": {"aux_logits": False, "init_weights": False}}
    zoo = [
        (name, torchvision.models.get_model(name, **options.get(name, {})), torch.randn(1, 3, 64, 64))
        for name in NAMES[: max(count - len(own), 0)]
    ]
    return [(name, model.eval(), x) for name, model, x in [*own, *zoo][:count]]


def threads(count: int, models: int) -> list[str]:
    """What went wrong while `count` threads explained and `PLAIN` others ran the plain models."""
    made = networks(models)
    with torch.no_grad():
        outputs = [model(x).clone() for _, model, x in made]
    expected = [fxlrp.convert(model)(x).relevance for _, model, x in made]
    shared = [fxlrp.convert(model) for _, model, _ in made]
    wrong: list[str] = []
    before = sys.stdout, sys.stderr, logging.root.manager.disable, list(warnings.filters), nn.Module.__call__
    start, done, calls = threading.Barrier(count), threading.Event(), [0, 0]

    def near(a: Tensor, b: Tensor) -> bool:
        return type(a) is Tensor and bool((a - b).abs().max() <= 1e-4 * b.abs().max())

    def explain(first: int) -> None:
        start.wait()
        for k in range(2 * len(made)):
            i = (first + k) % len(made)
            name, _, x = made[i]
            try:
                a = shared[i](x)
                if not (near(a.relevance, expected[i]) and near(a.output, outputs[i])):
                    wrong.append(f"{name}: other numbers")
            except Exception:
                wrong.append(f"{name}: {traceback.format_exc()}")
            calls[0] += 1

    def run(first: int) -> None:
        i = first
        while not done.is_set():
            name, model, x = made[i % len(made)]
            try:
                with torch.no_grad():
                    fine = near(model(x), outputs[i % len(made)])
                if not fine or any(type(w) is not nn.Parameter for w in model.parameters()):
                    wrong.append(f"plain {name}: other numbers or weights")
                if (sys.stdout, sys.stderr, logging.root.manager.disable) != before[:3]:
                    wrong.append(f"plain {name}: stdout, stderr or logging are others")
            except Exception:
                wrong.append(f"plain {name}: {traceback.format_exc()}")
            calls[1] += 1
            i += 1
            time.sleep(0.5)

    began = time.time()
    explaining = [threading.Thread(target=explain, args=(k,)) for k in range(count)]
    running = [threading.Thread(target=run, args=(k,)) for k in range(PLAIN)]
    for thread in (*explaining, *running):
        thread.start()
    for thread in explaining:
        thread.join()
    done.set()
    for thread in running:
        thread.join()
    after = sys.stdout, sys.stderr, logging.root.manager.disable, list(warnings.filters), nn.Module.__call__
    if after != before:
        wrong.append("the process is not as before")
    print(
        f"{count} threads × {len(made)} models: {calls[0]} explanations beside {calls[1]} plain calls in "
        f"{time.time() - began:.0f} s, {len(wrong)} wrong"
    )
    return wrong


def memory(converts: int, shapes: int, calls: int, start: int) -> list[str]:
    """What of memory grew by more than a tenth after the first `start` converts, shapes and calls."""

    def used() -> float:
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

    wrong: list[str] = []
    for name, make, example in (
        ("cnn", cnn, lambda n: torch.randn(2, 3, 10 + n, 12)),
        ("transformer", transformer, lambda n: torch.randn(2, 3 + n, 8)),
    ):
        explainer = fxlrp.convert(make().eval())
        for what, count in (("converts", converts), ("shapes", shapes), ("calls", calls)):
            at_start = 0.0
            for i in range(count):
                if i == start:
                    at_start = used()
                if what == "converts":
                    fxlrp.convert(make().eval())(example(2))
                else:
                    explainer(example(i if what == "shapes" else 2))
            at_end = used()
            print(f"{name}, {count} {what}: {at_start:.0f} MiB after {start}, {at_end:.0f} MiB at the end")
            if at_end > 1.1 * at_start:
                wrong.append(f"{name}: {what} take memory")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    for kind, options in (
        ("threads", {"threads": 16, "models": 20}),
        ("memory", {"converts": 50, "shapes": 60, "calls": 500, "start": 20}),
    ):
        of_kind = kinds.add_parser(kind)
        for option, default in options.items():
            of_kind.add_argument(f"--{option}", type=int, default=default)
    asked = vars(parser.parse_args())
    torch.set_num_threads(1)
    kind = asked.pop("kind")
    wrong = threads(asked["threads"], asked["models"]) if kind == "threads" else memory(**asked)
    sys.exit("\n".join(wrong[:10]) if wrong else 0)


if __name__ == "__main__":
    main()
