"""# Speech: Whisper

What did it hear when it wrote this token? The spectrogram is explained, and the tokens before. Random weights are used;
`WhisperForConditionalGeneration.from_pretrained(…)` and its processor make yours.
"""

import torch
import transformers

import fxlrp

torch.manual_seed(0)
config = transformers.WhisperConfig(
    vocab_size=60, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=20, max_source_positions=50,
    max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
)  # fmt: skip
model = transformers.WhisperForConditionalGeneration(config).eval()

mel = torch.randn(1, 20, 100)  # as the feature extractor makes it of 16 kHz sound
written = torch.tensor([[1, 17, 33]])
a = fxlrp.explain(model, input_features=mel, decoder_input_ids=written, position=-1)  # the token that comes next
print(a)
print({name: round(float(r.abs().sum()), 3) for name, r in a.named.items()})
a.save("out/recipes/speech.png")
a.to_html("out/recipes/speech.html")
