"""Inside the network, measured: conditions beside zennit-crp, on the models of the zoos, their cost, and more.

python -m benchmarks.inside crp                 # equality with zennit-crp (extra `bench`), float64
python -m benchmarks.inside zoo --limit 30      # conditions at a middle module of the models of coverage's sample
python -m benchmarks.inside cost                # 32 conditions on ResNet-50, beside the relevance half of a pass
python -m benchmarks.inside stars               # do the concepts that matter for a class point at its objects?
python -m benchmarks.inside patching            # estimates by rulebook beside the exact effects
python -m benchmarks.inside prune               # half of the shapes network's weights, by relevance or magnitude
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp

EXAMPLES = Path(__file__).parents[1] / "examples"


def crp(args: argparse.Namespace) -> None:
    """The conditional maps of zennit-crp and ours on VGG-16 and ResNet-18 with seeded weights, in float64."""
    import torchvision
    from crp.attribution import CondAttribution
    from zennit import composites
    from zennit.torchvision import ResNetCanonizer

    for name, layer, canonizers in (("vgg16", "features.28", []), ("resnet18", "layer3", [ResNetCanonizer()])):
        torch.manual_seed(0)
        model = getattr(torchvision.models, name)(num_classes=10).double().eval()
        _seen_noise(model)
        theirs_of = fused(getattr(torchvision.models, name)(num_classes=10).double().eval(), model)
        x = torch.randn(1, 3, args.size, args.size).double()
        for rules, kind in (
            ("epsilon-plus", composites.EpsilonPlus),
            ("epsilon-plus-flat", composites.EpsilonPlusFlat),
        ):
            parts = fxlrp.convert(model, rules=rules).parts(layer, x, target=3, contrast=None)
            channels = [i for i, _ in parts.ranked(most=5)] + [0, 1, 2]
            given = [{layer: [c]} for c in channels] + [{layer: channels[:3]}]
            ours = fxlrp.convert(model, rules=rules)(x, target=3, contrast=None, given=given).relevance[0].sum(1)
            asked = [{**condition, "y": [3]} for condition in given]
            composite = kind(canonizers=canonizers)
            data = x.clone().requires_grad_()
            found = CondAttribution(theirs_of)(data, asked, composite)
            theirs = found.heatmap
            apart = (ours - theirs).abs().amax((1, 2)) / theirs.abs().amax((1, 2))
            pairs = zip(ours.flatten(1), theirs.flatten(1), strict=True)
            alike = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in pairs]
            print(f"{name} {layer} {rules}: largest difference {apart.max():.1e}, correlation ≥ {min(alike):.10f}")


def _seen_noise(model: nn.Module) -> None:
    """Gives batch norms the statistics of noise, so that they do something."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 64, 64).double())
    model.eval()


def fused(empty: nn.Module, model: nn.Module) -> nn.Module:
    """The model with its batch norms folded into the convolutions before them, for tools that can't fold them in torch
    2.11 and later, which refuses a batch norm without ε."""
    empty.load_state_dict(model.state_dict())
    for parent in list(empty.modules()):
        before: tuple[str, nn.Module] | None = None
        for name, module in list(parent.named_children()):
            if isinstance(module, nn.BatchNorm2d) and before and isinstance(before[1], nn.Conv2d):
                setattr(parent, before[0], torch.nn.utils.fusion.fuse_conv_bn_eval(before[1], module))
                setattr(parent, name, nn.Identity())
            before = name, module
    return empty.eval()


def zoo(args: argparse.Namespace) -> None:
    """Conditions at a middle module of every n-th model of coverage's sample: do halves add up, are rows apart?"""
    from benchmarks import zoo as models

    entries = models.sample([e for name in models.ZOOS for e in models.entries(name)])
    step = max(1, len(entries) // args.limit) if args.limit else 1
    tried = good = 0
    for entry in entries[args.start :: step]:
        try:
            built = models.build(entry)
        except (models.NotTried, Exception) as reason:
            print(f"  {entry.zoo} {entry.name}: not tried, {models.one_line(reason)}", flush=True)
            continue
        tried += 1
        start = time.perf_counter()
        try:
            said = _conditions(built.model, built.args, built.kwargs)
        except Exception as error:
            said = f"failed: {type(error).__name__} {models.one_line(error)}"
        good += not said.startswith("failed")
        print(f"  {entry.zoo} {entry.name}: {said} ({time.perf_counter() - start:.0f} s)", flush=True)
    print(f"{good} of {tried} models")


def _conditions(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> str:
    """How far halves are from the whole, and rows of a batch from samples alone; what went wrong, if anything did."""
    from benchmarks.examine import _mixes, _output, _sample, _target

    expected, alone = _output(model, args, kwargs), [_output(model, *_sample(i, args, kwargs)) for i in (0, 1)]
    if _mixes(expected, alone) or (isinstance(expected, list) and not isinstance(expected[0], Tensor)):
        args, kwargs = _sample(0, args, kwargs)
        expected, alone = alone[0], []
    explainer = fxlrp.convert(model, args or kwargs)
    target = _target(expected)
    nodes = [n for n in explainer.report().nodes if n.kind != "inactive" and n.module and not n.op.startswith("sym_")]
    place = nodes[len(nodes) // 2].module if nodes else _middle(explainer)
    question: dict[str, Any] = {"target": target, "contrast": None}
    count = explainer.parts(place, *args, **question, **kwargs).relevance.shape[1]
    halves = [{place: list(range(count // 2))}, {place: list(range(count // 2, count))}]
    given = [*halves, *[{place: list(range(count))}] * 3]  # as many as no picture has colours
    a = explainer(*args, **question, given=given, **kwargs)
    maps = a.each
    if not all(bool(r.isfinite().all()) for r in maps):
        return f"failed: not finite at {place}"
    size = max(float(r.abs().max()) for r in maps) or 1.0
    sums = zip(a.of(0).each, a.of(1).each, a.of(2).each, strict=True)
    parts = max(float((first + second - both).abs().max()) for first, second, both in sums) / size
    rows = 0.0
    for i in range(len(alone)):
        asked = target[i : i + 1] if isinstance(target, Tensor) else target
        one_args, one_kwargs = _sample(i, args, kwargs)
        ones = explainer(*one_args, target=asked, contrast=None, given=given, **one_kwargs).each
        rows = max(rows, *(float((a[0] - r[i]).abs().max()) / size for a, r in zip(ones, maps, strict=True)))
    wrong = parts > 1e-3 or rows > 1e-2
    return f"{'failed: ' if wrong else ''}{count} channels at {place}, halves apart {parts:.0e}, rows {rows:.0e}"


def _middle(explainer: fxlrp.Explainer) -> str:
    """The node in the middle of a graph whose modules are not known."""
    nodes = [n.name for n in explainer.report().nodes if n.kind != "inactive"]
    return nodes[len(nodes) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(WHAT))
    parser.add_argument("--size", type=int, default=64, help="side of a picture")
    parser.add_argument("--limit", type=int, default=0, help="at most so many models, evenly")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    WHAT[args.what](args)


WHAT = {"crp": crp, "zoo": zoo}

if __name__ == "__main__":
    main()
