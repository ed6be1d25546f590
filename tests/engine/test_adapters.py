"""Adapter folders as PEFT saves them: what is read, how it is scaled, and what is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import VOCAB, tiny_model
from torch import Tensor
from transformers import PreTrainedModel

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.adapters import load_lora
from trimtab.engine.packing import pack
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.variants import RowTerms

HIDDEN = 48
Factors = dict[str, tuple[Tensor, Tensor]]


def save_lora(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(plain | config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def peft_names(factors: Factors, name: str = "") -> dict[str, Tensor]:
    """The tensors under the names that PEFT gives them."""
    return {
        f"base_model.model.{path}.lora_{side}{name}.weight": tensor
        for path, pair in factors.items()
        for side, tensor in zip("AB", pair, strict=True)
    }


Q, V = "model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.v_proj"


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny_model("llama")


@pytest.fixture
def pair(llama: PreTrainedModel) -> Factors:
    generator = torch.Generator().manual_seed(0)
    outputs = {path: llama.get_submodule(path).out_features for path in (Q, V)}
    return {
        path: (torch.randn(4, HIDDEN, generator=generator), torch.randn(outer, 4, generator=generator))
        for path, outer in outputs.items()
    }


@pytest.mark.parametrize(
    ("config", "scales"),
    [
        ({}, (6 / 4, 6 / 4)),
        ({"use_rslora": True}, (6 / 2, 6 / 2)),
        ({"alpha_pattern": {"q_proj": 20}}, (20 / 4, 6 / 4)),
        ({"alpha_pattern": {"layers.2.self_attn.v_proj": 1, "proj": 9}}, (6 / 4, 1 / 4)),
        ({"alpha_pattern": {r"^model\.layers\.\d\.self_attn\.[qv]_proj": 2, "v_proj": 3}}, (2 / 4, 2 / 4)),
        ({"r": 16, "rank_pattern": {"q_proj": 4, "v_proj": 4}, "use_rslora": True}, (6 / 2, 6 / 2)),
    ],
)
@pytest.mark.parametrize("name", ["", ".default"])
def test_scaling(
    tmp_path: Path, llama: PreTrainedModel, pair: Factors, name: str, config: dict[str, Any], scales: tuple[float, ...]
) -> None:
    adapter = load_lora(save_lora(tmp_path, peft_names(pair, name), **config), llama)
    assert adapter.head is None
    assert adapter.factors.keys() == {Q, V}
    for path, scale in zip((Q, V), scales, strict=True):
        assert torch.equal(adapter.factors[path][0], pair[path][0])
        torch.testing.assert_close(adapter.factors[path][1], pair[path][1] * scale, rtol=1e-6, atol=0)


def test_factors_of_a_transposed_weight_are_read_as_they_are(tmp_path: Path) -> None:
    # GPT-2 keeps (in, out) and PEFT says fan_in_fan_out, but A stays (r, in) and B (out, r).
    model, path, ids = tiny_model("gpt2"), "transformer.h.1.attn.c_attn", torch.tensor([[5, 6, 7], [5, 6, 7]])
    down, up = torch.randn(4, HIDDEN) * 0.2, torch.randn(3 * HIDDEN, 4) * 0.2
    changed = tiny_model("gpt2")
    changed.get_submodule(path).weight += (up @ down).t() * 1.5
    pack(model)
    terms = RowTerms(model)
    folder = save_lora(tmp_path, peft_names({path: (down, up)}), fan_in_fan_out=True)
    terms.add_adapter("one", load_lora(folder, model))
    terms.begin([PLAIN, Variant(adapter="one")])
    got, want = (each(input_ids=ids, use_cache=False).logits for each in (model, changed))
    torch.testing.assert_close(got[1], want[1], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got[0], want[0], atol=0.01)


@pytest.mark.parametrize(
    "key", ["score.weight", "score.modules_to_save.weight", "score.modules_to_save.default.weight"]
)
def test_a_score_head_comes_apart(tmp_path: Path, llama: PreTrainedModel, pair: Factors, key: str) -> None:
    head = torch.linspace(-1, 1, 2 * HIDDEN).view(2, HIDDEN)
    tensors = peft_names(pair) | {f"base_model.model.{key}": head.half()}
    adapter = load_lora(save_lora(tmp_path, tensors, modules_to_save=["classifier", "score"]), llama)
    assert adapter.head is not None
    assert torch.equal(adapter.head, head.half().float())
    assert adapter.factors.keys() == {Q, V}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "is a IA3 adapter, and only LORA"),
        ({"use_dora": True}, "uses use_dora"),
        ({"lora_bias": True}, "uses lora_bias"),
        ({"trainable_token_indices": [3]}, "uses trainable_token_indices"),
        ({"target_parameters": ["experts.down_proj"]}, "uses target_parameters"),
        ({"bias": "lora_only"}, "trained biases .bias='lora_only'."),
        ({"modules_to_save": ["score", "embed_tokens"]}, "replaces whole modules .embed_tokens."),
        ({"init_lora_weights": "pissa_niter_4"}, "starts from 'pissa_niter_4'"),
        ({"r": 8}, "has rank 4 at .* says 8"),
        ({"rank_pattern": {"v_proj": 2}}, f"has rank 4 at {V} .* says 2"),
    ],
)
def test_configs_that_are_refused(
    tmp_path: Path, llama: PreTrainedModel, pair: Factors, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelLoadError, match=f"^adapter folder {tmp_path} {message}.*: "):
        load_lora(save_lora(tmp_path, peft_names(pair), **config), llama)


BASE_KEY = "base_model.model."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {f"{BASE_KEY}{Q}.lora_A.weight": torch.ones(4, 64)},
            "has A .4, 64. and B .48, 4. for .*, which maps 48 to 48",
        ),
        ({f"{BASE_KEY}{Q}.lora_B.weight": torch.ones(48, 3)}, "has A .4, 48. and B .48, 3."),
        ({f"{BASE_KEY}{Q}.lora_B.weight": None}, "has only one of lora_A and lora_B"),
        ({f"{BASE_KEY}{Q}.lora_B.weight": torch.full((48, 4), torch.nan)}, "holds NaN or infinity"),
        (
            {f"{BASE_KEY}model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(4, 48)},
            "adapts model.layers.9.mlp.up_proj",
        ),
        ({f"{BASE_KEY}model.embed_tokens.lora_embedding_A": torch.ones(4, VOCAB)}, "changes .*embed_tokens"),
        ({f"{BASE_KEY}{Q}.lora_magnitude_vector.weight": torch.ones(48)}, "changes .*lora_magnitude_vector"),
        ({f"{BASE_KEY}score.weight": torch.ones(1, 64)}, "has a score head of shape .1, 64. for hidden states of 48"),
        ({f"{BASE_KEY}score.bias": torch.ones(1)}, "changes base_model.model.score.bias"),
    ],
)
def test_weights_that_are_refused(
    tmp_path: Path, llama: PreTrainedModel, pair: Factors, change: dict[str, Tensor | None], message: str
) -> None:
    tensors = {key: tensor for key, tensor in (peft_names(pair) | change).items() if tensor is not None}
    with pytest.raises(ModelLoadError, match=f"^adapter folder {tmp_path} {message}.*: "):
        load_lora(save_lora(tmp_path, tensors), llama)


def test_folders_that_are_refused(tmp_path: Path, llama: PreTrainedModel, pair: Factors) -> None:
    with pytest.raises(ModelLoadError, match=r"no readable adapter_config\.json: pass the folder"):
        load_lora(tmp_path, llama)
    with pytest.raises(ModelLoadError, match="holds no lora_A and lora_B weights"):
        load_lora(save_lora(tmp_path, {}), llama)
    file = save_lora(tmp_path, peft_names(pair)) / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelLoadError, match="its header says"):
        load_lora(tmp_path, llama)
    file.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match=r"no adapter_model\.safetensors: save it with safe_serialization=True"):
        load_lora(tmp_path, llama)
