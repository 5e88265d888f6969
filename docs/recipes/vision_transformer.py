"""# A vision transformer without the grid

A transformer cuts the picture into patches, and its map shows where. The mean over four slightly moved copies (ResLRP+,
Berend et al. 2026) does not.
"""

from pathlib import Path

import fxlrp

EXAMPLES = Path(fxlrp.__file__).parent / "examples"
labels = (EXAMPLES / "labels.txt").read_text().split()
picture, weights = EXAMPLES / "pictures" / "ring_star.png", EXAMPLES / "deep_vit.safetensors"

for shifts in (1, 4):
    a = fxlrp.explain(
        weights, picture, arch=f"{EXAMPLES}/models.py:deep_vit", target="ring", labels=labels, shifts=shifts
    )
    a.save(f"out/recipes/vision_transformer_{shifts}.png")
