"""What is asked of vLLM and of our own engine alike: prompts, and ways to steer them."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

QUESTIONS: Final = (
    "Say something nice about rain.",
    "Name three uses for an old newspaper.",
    "Why is the sky blue?",
    "Tell me a short story about a lighthouse keeper who could not sleep.",
)
TOKENS: Final = 24
LONGEST: Final = 256
"""tokens of a prompt and its answer"""


@dataclass(frozen=True)
class Case:
    """One way to decode greedily."""

    name: str
    decoding: dict[str, Any] | None = None
    penalties: dict[str, float] = field(default_factory=dict)
    alike: bool = False
    """its answers are those of plain decoding"""


CASES: Final = (
    Case("plain", alike=True),
    Case("weight 0", {"strategy": "genarm", "arm": "random", "alpha": 0.0}, alike=True),
    Case("random guide", {"strategy": "genarm", "arm": "random", "alpha": 2.0}),
    Case("itself without the prompt", {"strategy": "contrastive", "amateur": "itself", "amateur_sees_prompt": False}),
    Case("power mean", {"strategy": "mod", "weights": {"base": 0.5, "random": 0.5}, "alpha": 1.0}),
    Case("three models", {"strategy": "proxy_tuning", "expert": "itself", "antiexpert": "random", "alpha": 1.5}),
    Case("candidates", {"strategy": "genarm", "arm": "random", "alpha": 4.0, "steer": [
        {"method": "candidates", "top_k": 3, "top_p": 0.9}]}),
    Case("penalties", None, {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3}),
    Case("mixture and penalties", {"strategy": "genarm", "arm": "random", "alpha": 2.0}, {"repetition_penalty": 1.2}),
)  # fmt: skip


def configure(place: Path, base: Path) -> Path:
    """Write a small random guide with the base's tokenizer, and the configuration of both sides; returns its path."""
    import shutil

    import torch
    import yaml
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    words = AutoConfig.from_pretrained(base)
    config = AutoConfig.for_model(
        "llama",
        vocab_size=words.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2 * LONGEST,
        eos_token_id=words.eos_token_id,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.15)
    model.save_pretrained(place / "random")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(base / name, place / "random" / name)
    guides = {
        "random": {"role": "lm", "model": str(place / "random"), "dtype": "float32", "pool_tokens": 1024},
        "itself": {"role": "lm", "model": str(base), "dtype": "float32", "pool_tokens": 2048},
        "brevity": {"role": "program", "kind": "length", "direction": "shorter"},
    }
    file = place / "trimtab.yaml"
    file.write_text(yaml.safe_dump({"engine": {"model": str(base), "dtype": "float32", "guides": guides}}))
    return file
