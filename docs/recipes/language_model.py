"""# A language model

What made it write each word? Here a GPT-2 of random weights and a tokenizer of a few words; yours come from a folder.
"""

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

import fxlrp.text

words = ["<s>", "once", "upon", "a", "time", "there", "was", "queen", "king", "and"]
tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<s>")), unk_token="<s>"
)
tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
torch.manual_seed(0)
config = transformers.GPT2Config(vocab_size=len(words), n_embd=32, n_layer=2, n_head=2, n_positions=32, eos_token_id=0)
model = transformers.GPT2LMHeadModel(config).eval()

written = fxlrp.text.generate(model, tokenizer, "once upon a time there was", max_new_tokens=4)
written.show()
written.to_html("out/recipes/language_model.html")
