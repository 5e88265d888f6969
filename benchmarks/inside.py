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
import importlib
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fxlrp
from fxlrp.boxes import boxes_in

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

    entries = models.sample([e for name in args.zoo.split(",") for e in models.entries(name)])
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
    boxes = boxes_in(expected, args[0].shape[-2:]) if isinstance(expected, list) else None
    target = boxes[0].question["target"] if boxes else _target(expected)  # of a detector the surest box's score
    question: dict[str, Any] = {"target": target, "contrast": None}
    weighed = explainer.report(*args, **question, **kwargs).nodes
    active = [n for n in weighed if n.kind != "inactive" and n.arrives is not None and n.arrives.size]
    nodes = [n for n in active if n.module and not n.op.startswith("sym_")]
    layers = [
        n for n in active if n.op.startswith(("conv", "linear"))
    ]  # where modules are not known: they have channels
    place = nodes[len(nodes) // 2].module if nodes else layers[len(layers) // 2].name
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


def cost(args: argparse.Namespace) -> None:
    """Time of 32 conditions on ResNet-50 over that of the relevance half of a pass; one process, medians of three."""
    import statistics

    import timm

    model, x = timm.create_model("resnet50").eval(), torch.randn(1, 3, args.size, args.size)
    explainer = fxlrp.convert(model)

    def timed(**question: Any) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            explainer(x, target=1, **question)
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    with torch.no_grad():
        model(x)
        start = time.perf_counter()
        for _ in range(3):
            model(x)
        forward = (time.perf_counter() - start) / 3
    half = timed() - forward
    for layer in ("layer2", "layer3", "layer4"):
        several = timed(given=[{layer: [c]} for c in range(32)]) - forward
        print(f"32 conditions at {layer}: {several / half:.1f} times the relevance half of a pass ({half:.2f} s)")


def shapes(count: int, start: int) -> tuple[Tensor, Tensor, list[Any]]:
    """Pictures of examples/shapes.py as the network takes them, which classes are in each, and the pictures."""
    made = importlib.import_module("examples.shapes")
    several = [made.picture(i) for i in range(start, start + count)]
    x = torch.stack([torch.from_numpy(p.image).permute(2, 0, 1).float() / 127.5 - 1 for p in several])
    present = torch.zeros(count, len(made.CLASSES))
    for row, p in zip(present, several, strict=True):
        row[list(p.labels)] = 1
    return x, present, several


def stars(args: argparse.Namespace) -> None:
    """Of each class, in pictures where the network sees it: how much of the five most relevant concepts' conditional
    relevance lies in the object's bounding box (the inside-total ratio of Kohlbrenner et al., 1910.09840, whose boxes
    these are), on the object itself, and on it with a margin of one cell of the first convolution's map, 2 pixels."""
    from fxlrp.inputs import load_model

    module = load_model(str(EXAMPLES / "model.pt")).module
    x, _, pictures = shapes(400, 20000)
    with torch.no_grad():
        seen = module(x).argmax(1)
    captured = fxlrp.convert(module)
    names = importlib.import_module("examples.shapes").CLASSES
    for rules in (fxlrp.DEFAULT, "abslrp", "epsilon-plus", "gradient-input"):
        explainer = captured.by(rules)
        for layer in ("layer1", "layer2", "layer3", "layer4"):
            found: dict[str, list[list[float]]] = {name: [] for name in ("star", *names)}
            for k, p in enumerate(pictures):
                cls = int(seen[k])
                if cls not in p.labels or len(found[names[cls]]) >= (args.limit or 8):
                    continue
                top = [i for i, _ in explainer.parts(layer, x[k : k + 1], target=cls).ranked(most=5)]
                maps = explainer(x[k : k + 1], target=cls, given=[{layer: [c]} for c in top]).relevance[0].sum(1)
                mask = torch.from_numpy(p.masks[p.labels.index(cls)]).float()
                wide = nn.functional.max_pool2d(mask[None, None], 5, 1, 2)[0, 0]
                positive = maps.clamp(min=0)
                places = (box(mask), mask, wide)
                found[names[cls]].append([float((positive * m).sum() / positive.sum()) for m in places])
            star = torch.tensor(found["star"]).mean(0).tolist()
            every = torch.tensor([shares for several in found.values() for shares in several]).mean(0).tolist()
            print(
                "{} {}: star {:.2f} in its box, {:.2f} on it, {:.2f} with 2 pixels around; "
                "every class {:.2f}, {:.2f}, {:.2f}".format(rules, layer, *star, *every),
                flush=True,
            )


def box(mask: Tensor) -> Tensor:
    """The rectangle around what a mask [H, W] marks, as a mask."""
    y, x = mask.nonzero().unbind(1)
    out = torch.zeros_like(mask)
    out[y.min() : y.max() + 1, x.min() : x.max() + 1] = 1
    return out


def patching(args: argparse.Namespace) -> None:
    """The correlation of estimates with the exact effect of patching, by rulebook."""
    from fxlrp.inputs import load_model
    from fxlrp.text.command import load_tokenizer

    x, _, _ = shapes(2 * (args.limit or 8), 30000)
    half = len(x) // 2
    nets: dict[str, tuple[Any, Any, Any]] = {}
    for name in ("cnn", "vit"):
        spec = str(EXAMPLES / f"{name}.safetensors")
        module = load_model(spec, arch=f"{EXAMPLES / 'models.py'}:{name}", trust=True).module
        nets[f"shapes {name}"] = module, x[:half], x[half:]
    kit = EXAMPLES.parents[1] / "shared" / "kit" / "models"
    for path, pairs in ((EXAMPLES / "text", REVIEWS), *((p, TEXTS[key]) for key in TEXTS for p in kit.glob(key))):
        module = load_model(str(path)).module
        try:
            tokenizer = load_tokenizer(str(path))
        except fxlrp.FxlrpError:  # none of Hugging Face's: ids, with one of them exchanged
            ids = torch.randint(3, module.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(0))
            nets[path.name] = module, {"input_ids": ids}, {"input_ids": ids.index_fill(1, torch.tensor([4]), 7)}
            continue
        for good, bad in pairs:  # the first that have as many tokens
            both = [tokenizer(text, return_tensors="pt")["input_ids"] for text in (good, bad)]
            if both[0].shape == both[1].shape:
                nets[path.name] = module, *({"input_ids": ids} for ids in both)
                break
    for name, (module, clean, corrupted) in nets.items():
        captured = fxlrp.convert(module)
        for by in args.by.split(","):
            row = []
            for rules in ("gradient-input", "attnlrp", "cp-lrp", fxlrp.DEFAULT, "abslrp"):
                found = fxlrp.patching(captured.by(rules), clean, corrupted, by=by, exact=True, depth=args.depth)
                row.append(f"{rules} {found.correlation:.3f}")
            print(f"{name} by {by}: {', '.join(row)}", flush=True)


REVIEWS = [("good", "bad"), ("a good film", "a bad film")]
TEXTS = {
    "minilm*": [("the movie was great .", "the movie was awful ."), ("a warm story", "a cold story")],
    "stories*": [("Tom has a red ball", "Tom has a big ball")],
}


def prune(args: argparse.Namespace) -> None:
    """Accuracy of the shapes network with a part of its weights taken out, by magnitude or by relevance: its mean over
    the samples, or the mean of its size."""
    import copy

    from fxlrp.inputs import load_model

    module = load_model(str(EXAMPLES / "model.pt")).module
    x, present, _ = shapes(64, 40000)
    tests, there, _ = shapes(args.limit or 400, 50000)

    def accuracy(net: nn.Module) -> float:
        with torch.no_grad():
            return float(there.gather(1, net(tests).argmax(1, keepdim=True)).mean())

    print(f"whole: {accuracy(module):.3f}")
    parameters = dict(module.named_parameters())
    weights = {n: p.detach().abs() for n, p in parameters.items() if p.ndim > 1}
    scores = {"magnitude": weights, "magnitude by layer": {n: p / p.sum() for n, p in weights.items()}}
    target = (module(x).detach() * present - 1e9 * (1 - present)).argmax(1)
    pairs = list(zip(x.split(16), target.split(16), strict=True))
    for rules in ("epsilon", "epsilon-plus", fxlrp.DEFAULT, "abslrp"):
        found = fxlrp.convert(module, rules=rules).weights(pairs, target="label", each=True)
        scores |= {f"{rules} mean": {n: r.abs() for n, r in found.weight.items()}, f"{rules} size": found.weight_size}
    for part in (0.3, 0.5, 0.7):
        row = []
        for name, score in scores.items():
            net = copy.deepcopy(module)
            least = torch.cat([s.flatten() for s in score.values()]).kthvalue(
                int(part * sum(s.numel() for s in score.values()))
            )
            with torch.no_grad():
                for n, p in net.named_parameters():
                    if n in score:
                        p *= score[n] > least.values
            row.append(f"{name} {accuracy(net):.3f}")
        print(f"{part:.0%} of the weights out: {', '.join(row)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(WHAT))
    parser.add_argument("--size", type=int, default=64, help="side of a picture")
    parser.add_argument("--zoo", default="torchvision,timm,transformers", help="of `zoo`, which, by commas")
    parser.add_argument("--limit", type=int, default=0, help="at most so many models, evenly")
    parser.add_argument("--start", type=int, default=0, help="the first of them")
    parser.add_argument("--by", default="place,tokens", help="what is patched at once")
    parser.add_argument("--depth", type=int, help="of the modules that are patched")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    WHAT[args.what](args)


WHAT = {"crp": crp, "zoo": zoo, "cost": cost, "stars": stars, "patching": patching, "prune": prune}

if __name__ == "__main__":
    main()
