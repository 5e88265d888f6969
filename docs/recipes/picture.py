"""# A picture, from every side

One call loads the network, prepares the picture, explains it and writes a page. Class names may be used where the
labels are known.
"""

from pathlib import Path

import fxlrp

EXAMPLES = Path(fxlrp.__file__).parent / "examples"
labels = (EXAMPLES / "labels.txt").read_text().split()

a = fxlrp.explain(
    EXAMPLES / "model.pt",
    EXAMPLES / "pictures" / "ring_star.png",
    target="star",
    labels=labels,
    at=["layer2"],  # a module whose map the page shows, too
    html="out/recipes/picture.html",
)
print(a)
a.save("out/recipes/picture.png")
