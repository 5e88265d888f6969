"""# Other methods, and one of your own

A rulebook is a table from op to rule. `explainer.by` explains by another without capturing the model again.
"""

from dataclasses import replace
from pathlib import Path

import torch

import fxlrp
from fxlrp.inputs import load_model, open_picture
from fxlrp.rules import Rule
from fxlrp.show.files import save_comparison

examples = Path(fxlrp.__file__).parent / "examples"
loaded = load_model(str(examples / "model.pt"))
x, seen = loaded.preprocess(open_picture(examples / "pictures" / "ring_star.png"))

explainer = fxlrp.convert(loaded.module)
maps = {
    name: explainer.by(name)(x[None], target=1) for name in ("abslrp-hybrid", "abslrp", "gamma:gamma=0.1", "attnlrp")
}


def half(g: torch.Tensor, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """A ReLU that passes on half of its relevance."""
    return g * z / x.where(x != 0, torch.ones_like(x)) / 2


mine = fxlrp.rulebooks()["abslrp-hybrid"].extend([(Rule(half), torch.ops.aten.relu.default)], name="half at each ReLU")
maps["mine"] = explainer.by(mine)(x[None], target=1)
maps = {name: replace(a, labels=tuple(loaded.labels or ()), pictures=(seen,)) for name, a in maps.items()}
save_comparison(maps, "out/recipes/rulebooks.png")
