"""# A segmentation

Why does this pixel belong to that class? A network for segmentation is asked by row and column of its map of scores.
Here a small U-Net that was trained on the example pictures.
"""

from pathlib import Path

import fxlrp
from fxlrp.inputs import load_model

examples = Path(fxlrp.__file__).parent / "examples"
unet = load_model(str(examples / "segmenter.safetensors"), arch=f"{examples / 'models.py'}:segmenter")
picture = examples / "pictures" / "ring_star.png"

star = fxlrp.explain(unet, picture, position=(37, 20), html="out/recipes/segmentation.html")  # what it finds there
ring = fxlrp.explain(unet, picture, position=(16, 46), target="ring")
print(star, ring, sep="\n")
star.save("out/recipes/segmentation.png")

on_the_left = [float(a.heatmap()[0, :, :32].clamp(min=0).sum() / a.heatmap().clamp(min=0).sum()) for a in (star, ring)]
assert on_the_left[0] > 0.7 > 0.3 > on_the_left[1]  # where the star is, and the ring is not
