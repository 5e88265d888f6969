"""Write the pictures and their masks, the labels and the pickled network, from the trained networks."""

from pathlib import Path

import models
import numpy as np
import shapes
import torch
from PIL import Image
from safetensors.torch import load_file

HERE = Path(__file__).parent
SEEDS = [20_000_000 + n for n in (54, 218, 307, 338, 406, 430)]  # chosen by eye; no training or test has seen them


def trained(name: str) -> torch.nn.Module:
    """The network `models.<name>` with its trained weights."""
    model = getattr(models, name)()
    model.load_state_dict(load_file(HERE / f"{name}.safetensors"))
    return model


if __name__ == "__main__":
    for folder in ("pictures", "masks"):
        (HERE / folder).mkdir(exist_ok=True)
    networks = {name: trained(name) for name in ("cnn", "vit")}
    for seed in SEEDS:
        image, labels, masks = shapes.picture(seed)
        name = "_".join(shapes.CLASSES[label] for label in labels)
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        for key, model in networks.items():
            p = model(x).softmax(1)[0]
            assert set(p.topk(len(labels)).indices.tolist()) == set(labels), f"{key} is wrong on {name}"
            print(name, key, *(f"{value:.2f}" for value in p[list(labels)].tolist()))
        index = sum((mask * (label + 1) for mask, label in zip(masks, labels, strict=True)), start=np.zeros(()))
        Image.fromarray(image).save(HERE / "pictures" / f"{name}.png")
        Image.fromarray(index.astype(np.uint8)).save(HERE / "masks" / f"{name}.png")
    (HERE / "labels.txt").write_text("\n".join(shapes.CLASSES) + "\n")
    torch.save(networks["cnn"], HERE / "model.pt")
