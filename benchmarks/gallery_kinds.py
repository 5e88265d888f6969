"""Draw the gallery's pictures of what the examples' networks say: a star, a box, a pixel, a molecule, words, a story.

    python -m benchmarks.gallery_kinds [--kit DIR] [--out docs/images]

The networks are those of `examples/`, trained there; with a kit the texts are read by its MiniLM (SST-2), and its LLaMA
of stories writes.  Beside the rulebooks stand captum's IntegratedGradients and LayerGradCam, asked for the same score.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import IntegratedGradients, LayerAttribution, LayerGradCam
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn

import fxlrp
import fxlrp.text
from benchmarks.localization import models  # noqa: F401 — puts `examples/` where its modules are found
from benchmarks.recipes import keep
from benchmarks.text_faithfulness import integrated_gradients
from fxlrp.boxes import boxes_in
from fxlrp.cli.options import COMPARED_RULES
from fxlrp.inputs import LoadedModel, load_model, open_picture
from fxlrp.show.colours import colour_map
from fxlrp.show.figure import compare
from fxlrp.show.parts import framed, heat_of, laid_out, parts_of
from fxlrp.text.attribution import TextAttribution, side_by_side

EXAMPLES = Path(__file__).parents[1] / "examples"
RULES, PEERS = (fxlrp.DEFAULT, "attnlrp"), ("gradcam", "integrated-gradients")
REVIEW = "It isn't a gripping film, but the two leads are wonderful together."
BEGINNING = "Once upon a time, there was a little girl named Lily. She had a red"


class Asked(nn.Module):
    """A network whose only output [B, K] is what was asked, as other libraries want it."""

    def __init__(self, net: nn.Module, ask: Callable[..., Tensor], **where: Any) -> None:
        super().__init__()
        self.net, self.ask, self.where = net, ask, where

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(self.net, x, **self.where)


def score_of_cell(net: Any, x: Tensor, label: int, cell: int) -> Tensor:
    """How sure a detector is of a class at a cell [B, 1]."""
    return net.maps(x)[0].sigmoid()[:, label].flatten(1)[:, cell : cell + 1]


def scores_of_pixel(net: nn.Module, x: Tensor, row: int, column: int) -> Tensor:
    """The scores of a pixel [B, K]."""
    return net(x)[:, :, row, column]


def atoms_one_by_one(net: nn.Module, x: Tensor, edges: Tensor) -> Tensor:
    """The scores [B, K] of molecules of the same bonds, whose atoms are [B, N, 4]."""
    return torch.cat([net(one, edges) for one in x])


def example(name: str) -> LoadedModel:
    """A trained network of `examples/` that says where things are."""
    loaded = load_model(str(EXAMPLES / f"{name}.safetensors"), arch=f"{EXAMPLES / 'models.py'}:{name}")
    loaded.module.float()
    return loaded


def beside(asked: Asked, layer: nn.Module, x: Tensor, target: int) -> list[Tensor]:
    """The peers' maps [H, W] of a question; layer: of Grad-CAM, the coarse map before the head."""
    small = LayerGradCam(asked, layer).attribute(x, target)
    by_cells = LayerAttribution.interpolate(small, tuple(x.shape[-2:]), "bilinear")
    return [m[0].sum(0).detach() for m in (by_cells, IntegratedGradients(asked).attribute(x, target=target))]


def boxes(names: Sequence[str]) -> list[tuple[str, np.ndarray, list[Tensor]]]:
    """Of each picture the surest boxes: the question, the picture with the box, and the maps."""
    loaded, rows = example("detector"), []
    for name in names:
        image = open_picture(EXAMPLES / "pictures" / f"{name}.png")
        x = loaded.preprocess(image)[0][None]
        with torch.no_grad():
            found = boxes_in(loaded.module(x), (64, 64)) or []
        for k, box in enumerate(found[:2]):
            maps = [fxlrp.explain(loaded, image, box=k, rules=rules).heatmap()[0] for rules in RULES]

            with torch.no_grad():
                cell = int(loaded.module.maps(x)[0][0, box.label].argmax())
            asked = Asked(loaded.module, score_of_cell, label=box.label, cell=cell).eval()
            shown = framed(np.asarray(image), box.corners)
            rows.append((box.named(loaded.labels or ()), shown, maps + beside(asked, loaded.module.hidden, x, 0)))
    return rows


def pixels(places: Sequence[tuple[str, tuple[int, int]]]) -> list[tuple[str, np.ndarray, list[Tensor]]]:
    """The same of pixels, each of a picture, which is marked."""
    loaded, rows = example("segmenter"), []
    for name, (row, column) in places:
        image = open_picture(EXAMPLES / "pictures" / f"{name}.png")
        x = loaded.preprocess(image)[0][None]
        every = [fxlrp.explain(loaded, image, position=(row, column), rules=rules) for rules in RULES]
        asked = Asked(loaded.module, scores_of_pixel, row=row, column=column).eval()
        marked = np.asarray(image).copy()
        marked[row - 1 : row + 2, column - 1 : column + 2] = 0
        marked[row, column] = 255
        maps = [a.heatmap()[0] for a in every] + beside(asked, loaded.module.down[-1], x, int(every[0].target[0]))
        rows.append((f"{loaded.labels[int(every[0].target[0])]} at ({row}, {column})", marked, maps))
    return rows


def star() -> Figure:
    """README's picture of two things, of which one is asked for, by six rulebooks."""
    loaded, image = load_model(str(EXAMPLES / "model.pt")), EXAMPLES / "pictures" / "ring_star.png"
    books = COMPARED_RULES.split(",")
    return compare({rules: fxlrp.explain(loaded, image, target="star", rules=rules) for rules in books})


def sheet(rows: Sequence[tuple[str, np.ndarray, list[Tensor]]]) -> Figure:
    """A row for each question: the picture, and the map of each method over it."""
    figure = Figure(figsize=(10, 2.15 * len(rows)), layout="constrained", dpi=100)
    for line, (question, picture, maps) in zip(figure.subplots(len(rows), 5, squeeze=False), rows, strict=True):
        tiles = [picture, *(heat_of(m.detach().double().numpy()) for m in maps)]
        for axes, tile, title in zip(line, tiles, (f"why {question}?", *RULES, *PEERS), strict=True):
            axes.imshow(tile, interpolation="nearest")
            axes.set_title(title, fontsize=9)
            axes.set_axis_off()
    return figure


def molecule() -> Figure:
    """What tells that a molecule has a nitro group, by rulebooks and IntegratedGradients."""
    import molecules
    from safetensors.torch import load_file

    net = molecules.Network().eval()
    net.load_state_dict(load_file(EXAMPLES / "molecules.safetensors"))
    drawn = next(m for m in map(molecules.molecule, range(20_000_000, 20_000_100)) if m.label)
    how = {"labels": molecules.CLASSES, "features": drawn.atoms}
    maps = {r: fxlrp.explain(net, drawn.x, drawn.edges, rules=r, **how) for r in (fxlrp.DEFAULT, "abslrp", "attnlrp")}
    peer = IntegratedGradients(Asked(net, atoms_one_by_one, edges=drawn.edges)).attribute(drawn.x[None], target=1)[0]
    maps["integrated-gradients"] = replace(maps["abslrp"], relevance=peer)
    figure = Figure(figsize=(11, 3.1), layout="constrained", dpi=100)
    for axes, (name, a) in zip(figure.subplots(1, len(maps)), maps.items(), strict=True):
        (part,) = parts_of(a)
        nodes, places, joined, _ = laid_out(part)
        r = part.relevance[0][nodes]
        for ends in places[joined]:
            axes.plot(*ends.T, color="0.6", linewidth=0.8, zorder=0)
        top = np.abs(r).max()
        axes.scatter(*places.T, c=r, cmap=colour_map("red-blue"), vmin=-top, vmax=top, s=130, edgecolors="0.4")
        for node, place in zip(nodes, places, strict=True):
            axes.annotate(part.labels[node], place, ha="center", va="center", fontsize=7)
        axes.set_title(name, fontsize=9)
        axes.set_axis_off()
        axes.margins(0.08)
    return figure


def words(kit: Path | None) -> TextAttribution:
    """A review, by rulebooks and IntegratedGradients."""
    from fxlrp.text.command import load_tokenizer

    spec = str(kit / "models" / "minilm-sst2" if kit else EXAMPLES / "text")
    loaded, tokenizer = load_model(spec), load_tokenizer(spec)
    maps = {r: fxlrp.explain(spec, REVIEW, target=1, rules=r) for r in (fxlrp.DEFAULT, "abslrp", "attnlrp")}
    peer = integrated_gradients(loaded.module, tokenizer)(REVIEW, 1)
    (asked,) = maps["abslrp"].asked
    maps["integrated-gradients"] = replace(
        maps["abslrp"], matrix=peer[None].float(), asked=[replace(asked, contrast=None)]
    )
    return side_by_side(maps)


def story(kit: Path) -> TextAttribution:
    """What a LLaMA of a quarter million parameters, trained on stories, writes, and what it went on from."""
    import transformers

    folder = kit / "models" / "stories260k"
    loaded = load_model(str(folder))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=byte_pairs(folder / "tok512.json"))
    return fxlrp.text.generate(loaded.module, tokenizer, BEGINNING, max_new_tokens=5)


def byte_pairs(file: Path) -> Any:
    """A tokenizer from pieces with scores, as llama2.c keeps them: pairs are joined in the order of what they make."""
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    scores = {bytes(piece).decode().replace(" ", "▁"): score for piece, score in json.loads(file.read_text())}
    number = {piece: i for i, piece in enumerate(scores)}
    best = sorted(scores, key=lambda piece: -scores[piece])
    merges = [(p[:i], p[i:]) for p in best for i in range(1, len(p)) if p[:i] in number and p[i:] in number]
    tokenizer = Tokenizer(BPE(number, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    figures: dict[str, Callable[[], Any]] = {
        "star": star,
        "boxes": lambda: sheet(boxes(["ring_star", "heart_cross_square"])),
        "pixels": lambda: sheet(pixels([("ring_star", (37, 20)), ("ring_star", (16, 46))])),
        "molecule": molecule,
        "words": lambda: words(args.kit).plot(),
    }
    figures |= {"story": lambda: story(args.kit).plot()} if args.kit else {}
    for name, figure in figures.items():
        figure().savefig(file := args.out / f"gallery_{name}.png")
        keep(Image.open(file), file)
        print(file)


if __name__ == "__main__":
    main()
