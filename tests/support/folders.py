"""Folders and files of tiny guides: classifiers, adapters, heads, vectors, and a model with tokens of its own."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from toy import byte_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from trimtab.engine.guides.heads import ValueHead

WIDTH = 48
"""of the tiny models' hidden states"""
RANK = 3
GUIDE_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }};{% endfor %}"
    "{% if add_generation_prompt %}[reply] {% endif %}"
)
WORDS = (
    "the boat turned slowly and the small tab moved the large rudder while the wind was calm",
    "a captain asked the crew for tea and they answered that there was none left on board",
    "she wrote a letter to the lighthouse keeper and he read it aloud to the gulls",
)


def classifier_folder(
    folder: Path, *, seed: int, labels: int = 1, scale: float = 0.5, template: str = GUIDE_TEMPLATE
) -> Path:
    """A causal classifier whose pad token is its EOS, with a chat template of its own."""
    torch.manual_seed(seed)
    config = tiny_model("llama").config
    config.num_labels = labels
    model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.15)
    model.score.weight.normal_(std=scale)
    model.save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


def adapter_folder(folder: Path, base: Path, *, seed: int, score: bool = False) -> Path:
    """A low-rank adapter of every layer's value and down projections, as PEFT saves it; `score` adds a head."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, weight in load_file(base / "model.safetensors").items():
        if name.endswith(("v_proj.weight", "down_proj.weight")):
            path = "base_model.model." + name.removesuffix(".weight")
            outer, inner = weight.shape
            tensors[path + ".lora_A.weight"] = torch.randn(RANK, inner, generator=generator) * 0.2
            tensors[path + ".lora_B.weight"] = torch.randn(outer, RANK, generator=generator) * 0.2
    if score:
        tensors["base_model.model.score.weight"] = torch.randn(1, WIDTH, generator=generator) * 0.5
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["v_proj", "down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged_folder(folder: Path, base: Path, adapter: Path) -> Path:
    """The base with an adapter in its weights: W + alpha / r * B A."""
    model = AutoModelForCausalLM.from_pretrained(base)
    factors = load_file(adapter / "adapter_model.safetensors")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            path = "base_model.model." + name.removesuffix(".weight")
            if path + ".lora_A.weight" in factors:
                parameter += 2.0 * factors[path + ".lora_B.weight"] @ factors[path + ".lora_A.weight"]
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def head_file(path: Path, *, width: int, seed: int, scale: float = 1.0) -> Path:
    """A value head of two layers."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((16, WIDTH), (width, 16))
    weights = [torch.randn(shape, generator=generator) * scale / shape[1] ** 0.5 for shape in shapes]
    ValueHead(weights, [torch.randn(shape[0], generator=generator) * 0.1 for shape in shapes]).save(path)
    return path


def vector_file(path: Path, *, seed: int, layers: Sequence[int] = (0, 1)) -> Path:
    """A control vector with a direction for each of `layers`."""
    generator = torch.Generator().manual_seed(seed)
    save_file({f"direction.{layer}": torch.randn(WIDTH, generator=generator) for layer in layers}, path)
    return path


def merging_tokenizer(vocab: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE that merges: it spells most words otherwise than the base's byte tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<end>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=GUIDE_TEMPLATE)


def foreign_folder(folder: Path, *, seed: int, positions: int = 256) -> Path:
    """A language model with tokens of its own: merged words, and another EOS."""
    tokenizer = merging_tokenizer()
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        "llama",
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        vocab_size=len(tokenizer),
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.25)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def teach_letters(folder: Path, letters: str, *, loudness: float) -> Path:
    """Let the language model in `folder` say nothing but tokens of `letters`, and its EOS."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    known = [bool(text) and set(text) <= set(letters) for text in map(tokenizer.decode, range(len(tokenizer)))]
    rows = model.lm_head.weight
    with torch.no_grad():
        for token in range(len(rows)):
            rows[token] *= loudness if token < len(known) and (known[token] or token == tokenizer.eos_token_id) else 0.0
    model.save_pretrained(folder)
    return folder
