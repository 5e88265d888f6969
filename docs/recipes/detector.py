"""# A detector

Which pixels made it find this box? Understood are the dicts of boxes, scores and labels that torchvision's detectors
return, and the logits and boxes of transformers'. Here a small one that was trained on the example pictures.
"""

from pathlib import Path

import fxlrp
from fxlrp.inputs import load_model

examples = Path(fxlrp.__file__).parent / "examples"
detector = load_model(str(examples / "detector.safetensors"), arch=f"{examples / 'models.py'}:detector")
picture = examples / "pictures" / "ring_star.png"

star = fxlrp.explain(detector, picture, box=0)  # the box with the highest score
ring = fxlrp.explain(detector, picture, box=1)
print(star, ring, sep="\n")
star.save("out/recipes/detector.png")

on_the_left = [float(a.heatmap()[0, :, :32].clamp(min=0).sum() / a.heatmap().clamp(min=0).sum()) for a in (star, ring)]
assert on_the_left[0] > 0.7 > 0.3 > on_the_left[1]  # where the star is, and the ring is not
