import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MistralForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging as transformers_logging

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.loading import load_causal_lm, load_classifier

SMALL: dict[str, Any] = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def saved(model: PreTrainedModel, folder: Path, **config: object) -> Path:
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    vocabulary = {"<unk>": 0, "</s>": 2} | {f"w{n}": n for n in range(3, 16)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)
    return folder


def llama(folder: Path, seed: int = 0, **config: Any) -> Path:
    torch.manual_seed(seed)
    return saved(LlamaForCausalLM(LlamaConfig(**{**SMALL, "eos_token_id": 2, **config})), folder)


def refused(folder: Path, message: str, load: Any = load_causal_lm) -> None:
    with pytest.raises(ModelLoadError, match=message) as caught:
        load(str(folder))
    assert "\n" not in str(caught.value)


def test_a_loaded_model_is_frozen_and_described(tmp_path: Path) -> None:
    loaded = load_causal_lm(str(llama(tmp_path / "m")))
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert (loaded.context_length, loaded.eos_ids, loaded.embedding_rows) == (64, {2}, 16)
    assert loaded.source == str(tmp_path / "m")
    assert loaded.tokenizer.is_fast


def test_dtype_is_the_checkpoints_or_the_one_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    folder = saved(LlamaForCausalLM(LlamaConfig(**SMALL)).bfloat16(), tmp_path / "m")
    assert load_causal_lm(str(folder)).dtype == torch.bfloat16
    wide = load_causal_lm(str(folder), dtype="float32")
    assert wide.dtype == torch.float32 == next(wide.model.parameters()).dtype


def test_fingerprint_follows_the_weights_and_not_the_time(tmp_path: Path) -> None:
    first = load_causal_lm(str(llama(tmp_path / "a"))).fingerprint
    assert load_causal_lm(str(llama(tmp_path / "b"))).fingerprint == first
    assert load_causal_lm(str(llama(tmp_path / "c", seed=1))).fingerprint != first
    assert load_causal_lm(str(llama(tmp_path / "d", rms_norm_eps=1e-3))).fingerprint != first
    assert len(first) == 16


def test_every_eos_id_counts(tmp_path: Path) -> None:
    folder = llama(tmp_path / "m", eos_token_id=2)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 7]}')
    assert load_causal_lm(str(folder)).eos_ids == {2, 5, 7}
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert load_causal_lm(str(folder)).eos_ids == {2, 5}


def test_context_of_gpt2(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=16, n_embd=16, n_layer=1, n_head=2, n_positions=40, eos_token_id=2)
    assert load_causal_lm(str(saved(GPT2LMHeadModel(config), tmp_path / "m"))).context_length == 40


def test_blockwise_attention_cuts_the_context_and_a_sliding_window_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def context(model: PreTrainedModel, name: str) -> int:
        return load_causal_lm(str(saved(model, tmp_path / name))).context_length

    with caplog.at_level(logging.WARNING, logger="trimtab"):
        assert context(MistralForCausalLM(MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=8)), "a") == 64
        assert not caplog.records
        local = GPTNeoConfig(
            vocab_size=16,
            hidden_size=16,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            max_position_embeddings=64,
            window_size=24,
            eos_token_id=2,
            bos_token_id=1,
        )
        assert context(GPTNeoForCausalLM(local), "b") == 24
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "context cut from 64 to its attention window of 24 tokens"
    ]


def test_models_that_cannot_be_a_base(tmp_path: Path) -> None:
    t5 = T5Config(vocab_size=16, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0)
    refused(saved(T5ForConditionalGeneration(t5), tmp_path / "t5"), r"\(t5\) is an encoder-decoder")
    mamba = MambaConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, state_size=4)
    refused(saved(MambaForCausalLM(mamba), tmp_path / "mamba"), r"\(mamba\) has layers without a plain key-value")
    bert = saved(BertLMHeadModel(BertConfig(**SMALL, is_decoder=True)), tmp_path / "bert", is_decoder=False)
    refused(bert, r"\(bert\) is an encoder")
    classifier = saved(LlamaForSequenceClassification(LlamaConfig(**SMALL, pad_token_id=2)), tmp_path / "rm")
    refused(classifier, "is a LlamaForSequenceClassification: a base model needs a causal LM head")


def test_checkpoints_that_lack_something(tmp_path: Path) -> None:
    refused(
        llama(tmp_path / "lm"),
        "lacks the weights score.weight of a LlamaForSequenceClassification",
        load_classifier,
    )
    folder = llama(tmp_path / "deep")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    refused(folder, r"lacks the weights model\.layers\.2\.")
    (folder / "config.json").write_text("{")
    refused(folder, "could not be loaded: .*config.json")
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    refused(folder, "could not be loaded: .*unheard_of")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{")
    refused(folder, "could not be loaded")


def test_classifiers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    bert = saved(BertForSequenceClassification(BertConfig(**SMALL)), tmp_path / "bert")
    assert load_classifier(str(bert)).context_length == 64
    roberta = RobertaForSequenceClassification(RobertaConfig(**SMALL, pad_token_id=1))
    loaded = load_classifier(str(saved(roberta, tmp_path / "roberta")))
    assert loaded.context_length == 62  # positions count from pad_token_id + 1
    loaded.model(input_ids=torch.full((1, 62), 3))
    windowed = MistralConfig(**SMALL, num_key_value_heads=1, sliding_window=8, pad_token_id=2)
    mistral = saved(MistralForSequenceClassification(windowed), tmp_path / "mistral")
    assert load_classifier(str(mistral)).context_length == 64  # runs its own windows, outside the page cache


def test_loading_is_quiet_and_leaves_progress_bars_as_they_were(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = llama(tmp_path / "m")
    capfd.readouterr()
    load_causal_lm(str(folder))
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.is_progress_bar_enabled()


@pytest.mark.demo
def test_the_demo_model_loads_fast() -> None:
    load_causal_lm("demo")
    start = time.perf_counter()
    loaded = load_causal_lm("demo")
    assert time.perf_counter() - start < 3
    assert (loaded.dtype, loaded.context_length, loaded.eos_ids) == (torch.bfloat16, 8192, {2})
