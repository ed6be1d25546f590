"""Tiny random models of many architectures, and folders that load like any checkpoint."""

from pathlib import Path

import torch
from toy import byte_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

VOCAB = 272
_SIZES = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "vocab_size": VOCAB,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": 256,
    "tie_word_embeddings": False,  # a tied random model repeats its last token
}
_GPT2 = {
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "n_positions": 256,
    "vocab_size": VOCAB,
    "bos_token_id": 256,
    "eos_token_id": 256,
}
_WINDOWED = ["sliding_attention", "full_attention", "sliding_attention"]
CONFIGS: dict[str, dict[str, object]] = {
    "llama": _SIZES,
    "mistral": {**_SIZES, "sliding_window": 11, "head_dim": 8},
    "qwen2": _SIZES,
    "qwen3": {**_SIZES, "head_dim": 16},
    "olmo2": _SIZES,
    "phi3": _SIZES,
    "gemma": {**_SIZES, "head_dim": 8},
    "granite": {**_SIZES, "logits_scaling": 3.0, "attention_multiplier": 0.2},
    "gemma2": {**_SIZES, "head_dim": 8, "sliding_window": 6, "attn_logit_softcapping": None},
    "gemma3_text": {**_SIZES, "head_dim": 8, "sliding_window": 9, "layer_types": _WINDOWED},
    "gpt2": {**_GPT2, "tie_word_embeddings": False},
    "gpt_neox": {**_SIZES, "num_key_value_heads": 6, "use_parallel_residual": True},
}


def tiny_model(architecture: str, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random causal language model with logits spread enough that greedy answers vary."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(architecture, **CONFIGS[architecture])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.15)
    return model


def tiny_folder(folder: Path, architecture: str = "llama", *, seed: int = 0) -> Path:
    """Save a tiny model with a byte tokenizer and a chat template, as `from_pretrained` wants it."""
    tiny_model(architecture, seed=seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder
