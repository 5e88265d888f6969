"""# A picture and a text: CLIP

Why do these two fit? The score of a pair is one number, and both sides are explained by it at once: the pixels, and the
tokens. Here with random weights; `CLIPModel.from_pretrained(…)` and its processor make yours.
"""

import torch
import transformers

import fxlrp

torch.manual_seed(0)
vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}  # fmt: skip
text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 49}  # fmt: skip
config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
model = transformers.CLIPModel(config).eval()

ids = torch.tensor([[1, 7, 12, 30, 49], [1, 9, 22, 3, 49]])  # two texts
pixels = torch.randn(1, 3, 32, 32)
explainer = fxlrp.convert(model, output="logits_per_image")
a = explainer(input_ids=ids, pixel_values=pixels, target=0, contrast=1)  # the first text, and not the second
print({name: list(r.shape) for name, r in a.named.items()})
a.save("out/recipes/clip.png")
