"""# What a network's channels stand for

Relevance that passes one channel alone, the pictures in which each channel is most relevant, and which block hands
relevance to which.
"""

from pathlib import Path

import fxlrp
from fxlrp.inputs import find_pictures, load_model
from fxlrp.inputs.samples import Pictures
from fxlrp.inside.showing import show_concepts

examples = Path(fxlrp.__file__).parent / "examples"
loaded = load_model(str(examples / "model.pt"))
data = Pictures(find_pictures([str(examples / "pictures")]), loaded)
explainer = fxlrp.convert(loaded.module)
x, star = data[0][None], 4

parts = explainer.parts("layer3", x, target=star)
print(parts.table(most=5))
best = [i for i, _ in parts.ranked(most=3)]
a = explainer(x, target=star, given=[{"layer3": [i]} for i in best])
print(a.relevance.shape)  # [1, 3, 3, 64, 64]: a map for each of the three

found = fxlrp.concepts(explainer, data, at="layer3", out="out/recipes/concepts")
show_concepts(explainer, found, data, "out/recipes/concepts.html", explain=data[0], target=star)

edges = explainer.edges(x, target=star)
print(edges.table(most=5))
edges.save("out/recipes/circuit.html")
