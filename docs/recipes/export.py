"""# A file that needs no fxlrp

`export` writes the graph that holds forward and relevance pass alike; torch runs it.
"""

from pathlib import Path

import torch

import fxlrp
from fxlrp.inputs import load_model, open_picture

examples = Path(fxlrp.__file__).parent / "examples"
loaded = load_model(str(examples / "model.pt"))
x = loaded.preprocess(open_picture(examples / "pictures" / "ring_star.png"))[0][None]

explainer = fxlrp.convert(loaded.module, x)
file = explainer.export("out/recipes/explainer.pt2")

module = torch.export.load(str(file)).module()  # from here on, torch alone
logits, relevance = module(x, torch.tensor([1]))
torch.testing.assert_close(relevance, explainer(x, target=1).relevance, rtol=1e-3, atol=1e-6)
fxlrp.explain(explainer, x, target=1).save("out/recipes/export.png")
