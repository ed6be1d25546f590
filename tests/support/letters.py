"""A base that writes three letters, each independently of what stands before it."""

from itertools import product
from pathlib import Path
from typing import Final

from tiny import tiny_model
from toy import byte_tokenizer

LETTERS: Final = "abc"
LOGITS: Final = (0.0, 0.7, -0.5)
ANSWERS: Final = ["".join(letters) for letters in product(LETTERS, repeat=3)]
_READ = 32  # of 48 dimensions are those that embeddings fill; the LM head reads the others, and the first


def letters_folder(folder: Path) -> Path:
    """A tiny model whose layers do nothing, so that its hidden state says which token is last and no logit cares.

    It has no EOS: answers are as long as they are. An adapter can make it say anything of letters and places.
    """
    model, tokenizer = tiny_model("llama"), byte_tokenizer()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    embedding, head = model.model.embed_tokens.weight, model.lm_head.weight
    embedding[:, _READ:] = 0.0
    embedding /= embedding[:, 1:].norm(dim=1, keepdim=True)
    embedding[:, 0] = 1.0
    head[:, :_READ] = 0.0
    head[:, 0] = -12.0
    for letter, logit in zip(LETTERS, LOGITS, strict=True):
        head[tokenizer.encode(letter)[0], 0] = logit / 24**0.5  # the norm makes the first dimension sqrt(48 / 2)
    tokenizer.eos_token = None
    for config in (model.config, model.generation_config):
        config.bos_token_id = config.eos_token_id = config.pad_token_id = None
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
