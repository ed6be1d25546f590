"""What fits a GPU, and what is said when it does not: arithmetic over files, without a GPU."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import CONFIGS, tiny_folder, tiny_model
from transformers import (
    AutoConfig,
    BertForSequenceClassification,
    DynamicCache,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from trimtab.engine.device import find_device
from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.config import LanguageConfig, RewardModelConfig, ValueConfig
from trimtab.engine.memory import (
    LIBRARIES,
    Footprint,
    footprint,
    kv_bytes,
    memory_errors,
    plan_device,
    plan_memory,
    survey,
)
from trimtab.engine.rewards.program import Length
from trimtab.engine.settings import EngineSettings

GIB = 1 << 30
BASE = Footprint("base", weights=14 * GIB, per_token=128 << 10, workspace=GIB)
GUIDE = Footprint("arm", weights=2 * GIB, per_token=32 << 10, workspace=GIB)
OWN = Footprint("own", weights=GIB, per_token=64 << 10, workspace=0, pool_tokens=16_384)


def test_pools_share_what_weights_and_workspace_leave() -> None:
    plan = plan_memory(80 * GIB, [BASE, GUIDE, OWN], fraction=0.9, page_size=16)
    left = 72 * GIB - 17 * GIB - (2 * GIB + LIBRARIES) - (16_384 + 16) * (64 << 10)
    assert (plan.allowed, plan.weights, plan.per_token) == (72 * GIB, 17 * GIB, 160 << 10)
    assert plan.tokens % 16 == 0
    taken = (plan.tokens + 16) * plan.per_token  # with the page that padding writes to
    assert left - 16 * plan.per_token < taken <= left


@pytest.mark.parametrize(("fraction", "page_size"), [(0.5, 16), (0.9, 1), (1.0, 64)])
def test_every_model_gets_room_for_the_same_tokens(fraction: float, page_size: int) -> None:
    plan = plan_memory(80 * GIB, [BASE, GUIDE], fraction=fraction, page_size=page_size)
    pools = [(plan.tokens + page_size) * model.per_token for model in (BASE, GUIDE)]
    assert plan.weights + plan.workspace + sum(pools) <= plan.allowed <= 80 * GIB * fraction


def test_a_wanted_size_is_taken_when_it_fits() -> None:
    assert plan_memory(80 * GIB, [BASE], fraction=0.9, page_size=16, wanted=4096).tokens == 4096
    with pytest.raises(ModelLoadError, match=r"1,000,000 are wanted: set a smaller engine\.pool_tokens"):
        plan_memory(80 * GIB, [BASE], fraction=0.9, page_size=16, wanted=1_000_000)


def test_the_smallest_pool_is_a_thousand_tokens() -> None:
    needed = BASE.weights + BASE.workspace + LIBRARIES + (1024 + 16) * BASE.per_token
    assert plan_memory(needed, [BASE], fraction=1.0, page_size=16).tokens == 1024
    with pytest.raises(ModelLoadError, match="so 1,008 tokens fit and 1,024 are wanted"):
        plan_memory(needed - 1, [BASE], fraction=1.0, page_size=16)


def test_two_that_share_a_gpu_get_the_same_whoever_loads_first() -> None:
    first = plan_memory(48 * GIB, [BASE], fraction=0.9, page_size=16, share=24 * GIB)
    assert first.allowed == int(21.6 * GIB)
    assert "21.6 GiB of 48.0 GiB free (engine.gpu_share: 24.0 GiB); weights" in first.line
    taken = first.weights + first.workspace + (first.tokens + 16) * first.per_token
    second = plan_memory(48 * GIB - taken, [BASE], fraction=0.9, page_size=16, share=24 * GIB)
    assert (second.allowed, second.tokens) == (first.allowed, first.tokens)


def test_a_share_that_is_not_free_is_none() -> None:
    plan = plan_memory(20 * GIB, [BASE], fraction=0.9, page_size=16, share=24 * GIB)
    assert plan.allowed == 18 * GIB
    assert "gpu_share" not in plan.line
    told = r"48\.0 GiB are free \(engine\.gpu_share: 12\.0 GiB\) and .* allows 10\.8 GiB"
    with pytest.raises(ModelLoadError, match=told):
        plan_memory(48 * GIB, [BASE], fraction=0.9, page_size=16, share=12 * GIB)


@pytest.mark.parametrize(("share", "allowed"), [(1.0, 36 * GIB), (0.5, int(21.6 * GIB))])
def test_the_share_is_of_the_whole_gpu(monkeypatch: pytest.MonkeyPatch, share: float, allowed: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (40 * GIB, 48 * GIB))
    monkeypatch.setattr("trimtab.engine.memory.survey", lambda _: [BASE])
    settings = EngineSettings(memory_fraction=0.9, gpu_share=share)
    assert plan_device(settings, torch.device("cuda")).allowed == allowed


def test_what_does_not_fit_is_one_line_with_numbers_and_settings() -> None:
    with pytest.raises(ModelLoadError) as caught:
        plan_memory(16 * GIB, [BASE, GUIDE], fraction=0.9, page_size=16)
    told = str(caught.value)
    assert "\n" not in told
    assert all(number in told for number in ("16.0 GiB", "14.4 GiB", "160.0 KiB", "so 0 tokens fit"))
    assert all(name in told for name in ("pool_tokens", "memory_fraction", "dtype", "guides"))


@pytest.mark.parametrize("architecture", sorted(CONFIGS))
def test_bytes_per_token_are_those_of_a_real_cache(architecture: str) -> None:
    model, cache = tiny_model(architecture), DynamicCache()
    model(input_ids=torch.arange(5)[None], past_key_values=cache, use_cache=True)
    real = sum(layer.keys[:, :, :1].nbytes + layer.values[:, :, :1].nbytes for layer in cache.layers)
    assert kv_bytes(model.config.get_text_config(), 4) == real


def test_one_key_head_serves_all_queries_of_falcon() -> None:
    config = AutoConfig.for_model("falcon", num_attention_heads=8, hidden_size=64, num_hidden_layers=2)
    assert config.multi_query
    assert kv_bytes(config, 2) == 2 * 2 * 8 * 2


@pytest.mark.parametrize(("dtype", "size"), [("auto", 4), ("bfloat16", 2)])
def test_weights_count_in_the_dtype_they_are_loaded_in(tmp_path: Path, dtype: str, size: int) -> None:
    folder = tiny_folder(tmp_path)
    found = footprint("base", folder, dtype, tokens=512)  # type: ignore[arg-type]
    assert found.weights == size * sum(weight.numel() for weight in tiny_model("llama").parameters())
    assert found.per_token == 3 * 2 * 2 * 8 * size
    assert found.workspace > 0


def test_guides_with_weights_of_their_own_are_counted(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    config = LlamaConfig(**{**CONFIGS["llama"], "num_labels": 1})
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "taste")
    settings = EngineSettings(
        model=str(base),
        guides={
            "arm": LanguageConfig(model=str(base), pool_tokens=64),
            "taste": RewardModelConfig(model=str(tmp_path / "taste"), max_batch_tokens=8192),
        },
    )
    found = {each.name: each for each in survey(settings)}
    assert list(found) == ["base", "arm", "taste"]
    assert found["arm"].pool_tokens == 64
    assert found["arm"].per_token == found["taste"].per_token > 0
    assert found["taste"].workspace != found["arm"].workspace


def test_adapters_and_heads_take_what_their_files_do(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"down": torch.zeros(10, 10)}, adapter / "adapter_model.safetensors")
    save_file({"head": torch.zeros(100)}, tmp_path / "head.safetensors")
    settings = EngineSettings(
        model=str(tiny_folder(tmp_path / "base")),
        guides={
            "arm": LanguageConfig(model=str(adapter)),
            "value": ValueConfig(model=str(tmp_path / "head.safetensors")),
            "short": Length(direction="shorter"),
        },
    )
    found = {each.name: each for each in survey(settings)}
    assert list(found) == ["base", "arm", "value"]
    assert all(400 < found[name].weights < 600 and found[name].per_token == 0 for name in ("arm", "value"))


def test_an_encoder_keeps_no_pages(tmp_path: Path) -> None:
    config = AutoConfig.for_model(
        "bert", hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=30
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    found = footprint("taste", tmp_path, "auto", tokens=16, scores=True)
    assert found.per_token == 0
    assert found.weights > 0


def test_running_out_while_loading_is_one_line() -> None:
    plan = plan_memory(80 * GIB, [BASE], fraction=0.9, page_size=16)
    told = r"weights 14\.0 GiB.*set a smaller engine\.pool_tokens"
    with pytest.raises(ModelLoadError, match=told) as caught, memory_errors(torch.device("cpu"), plan):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has")
    assert "\n" not in str(caught.value)


def test_devices_that_are_not_there_name_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device("cpu").type == "cpu"
    with pytest.raises(ModelLoadError, match="unknown device 'gpu': use auto, cpu"):
        find_device("gpu")
    with pytest.raises(ModelLoadError, match="'mps' is not supported"):
        find_device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert find_device("auto").type == "cpu"
    with pytest.raises(ModelLoadError, match=r"'cuda'.*install a CUDA build of torch.*device: cpu"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ModelLoadError, match="'cuda:9' does not exist: this machine has cuda:0 to cuda:1"):
        find_device("cuda:9")
