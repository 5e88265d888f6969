"""# Inside the network, and where relevance goes

`at` reads relevance at modules; `trace` weighs it at every node, so that what is lost is found.
"""

from pathlib import Path

import fxlrp
from fxlrp.inputs import load_model, open_picture

examples = Path(fxlrp.__file__).parent / "examples"
loaded = load_model(str(examples / "model.pt"))
x = loaded.preprocess(open_picture(examples / "pictures" / "ring_star.png"))[0][None]

explainer = fxlrp.convert(loaded.module)
a = explainer(x, target=1, at=["layer1", "layer2"])
print({name: tuple(r.shape) for name, r in a.latent.items()})
traced = explainer(x, target=1, trace=True)
print(traced.conservation().table())
print(explainer.report(x, target=1).tree(1))
a.save("out/recipes/inside.html")
