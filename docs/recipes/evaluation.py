"""# How good are the maps?

`evaluate` measures methods on pictures: GAE, masking curves and, with masks, whether relevance lies on the object.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fxlrp
from fxlrp.gae import evaluate
from fxlrp.inputs import load_model, open_picture

examples = Path(fxlrp.__file__).parent / "examples"
loaded = load_model(str(examples / "model.pt"))
files = sorted((examples / "pictures").glob("*.png"))[:4]
x = [loaded.preprocess(open_picture(file))[0] for file in files]
assert np.asarray(Image.open(examples / "masks" / files[0].name)).max() > 0  # what is where, for who has masks

report = evaluate(loaded.module, ["abslrp-hybrid", "attnlrp", "random"], x, steps=4, seed=0)
print({method: str(estimate) for method, estimate in report.means("abpc").items()})
Path("out/recipes").mkdir(parents=True, exist_ok=True)
report.save("out/recipes/evaluation")
assert torch.tensor([e.mean for e in report.means("abpc").values()]).argmin() == 2  # random is last
