"""Guides from their configuration: what each role loads, checked against plain transformers forwards."""

import json
import logging
from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from tiny import VOCAB, tiny_folder, tiny_model
from tokenizers import Tokenizer, models
from torch import Tensor
from toy import byte_tokenizer
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPTNeoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from trimtab.engine.errors import GuideError, ModelLoadError
from trimtab.engine.guides.base import HeadGuide, LanguageGuide, ScorerGuide, TextGuide, VectorGuide
from trimtab.engine.guides.build import build_guides
from trimtab.engine.guides.card import Card, Kind, identity
from trimtab.engine.guides.config import GuideConfig, LanguageConfig, RewardModelConfig, ValueConfig, VectorConfig
from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.guides.loaded import Guides
from trimtab.engine.loading import load_causal_lm
from trimtab.engine.model import Model
from trimtab.engine.pages import PagePool, PageTable
from trimtab.engine.plan import PLAIN, Variant
from trimtab.engine.rewards import Pair
from trimtab.engine.rewards.causal import CausalReward
from trimtab.engine.rewards.program import Length
from trimtab.engine.runner import Chunk, ModelRunner
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import Message, Vocabulary

CONFIG: TypeAdapter[Any] = TypeAdapter(dict[str, GuideConfig])
SETTINGS = EngineSettings(guides={}, pool_tokens=1024, page_size=8)
TEXT = list(b"a text of some length")
PAIR = Pair((Message(role="user", content="Hi"),), "Hello there")
RENDERED: list[int] = byte_tokenizer().encode("<user>Hi\n<assistant>Hello there\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(folder: Path) -> Model:
    loaded = load_causal_lm(str(folder))
    runner = ModelRunner(loaded.model, PagePool(100, SETTINGS.page_size))
    vocabulary = Vocabulary(loaded.tokenizer, runner.vocab_size)
    return Model("base", runner, vocabulary, loaded.context_length, loaded.eos_ids, loaded.fingerprint.encode())


def build(base: Model, settings: EngineSettings = SETTINGS, **guides: Mapping[str, Any]) -> Guides:
    return build_guides(CONFIG.validate_python(guides), base, settings, "cpu")


def classifier(folder: Path, config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """A random classifier, and its folder with the byte tokenizer."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.15)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return model


def llama_classifier(folder: Path, labels: int = 1) -> PreTrainedModel:
    config = tiny_model("llama").config
    config.num_labels = labels
    return classifier(folder, config)


def adapter(folder: Path, *, score: Tensor | None = None) -> Path:
    """A rank 2 adapter of the tiny base's first down projection, as PEFT saves it."""
    torch.manual_seed(5)
    name = "base_model.model.model.layers.0.mlp.down_proj"
    tensors = {f"{name}.lora_A.weight": torch.randn(2, 80), f"{name}.lora_B.weight": torch.randn(48, 2)}
    if score is not None:
        tensors["base_model.model.score.weight"] = score
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["down_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def merged(folder: Path) -> PreTrainedModel:
    """The tiny base with that adapter in its weights."""
    torch.manual_seed(5)
    down, up = torch.randn(2, 80), torch.randn(48, 2)
    model = load_causal_lm(str(folder)).model
    model.model.layers[0].mlp.down_proj.weight += up @ down
    return model


@torch.inference_mode()
def read(model: Model, variant: Variant = PLAIN) -> Tensor:
    """The last hidden state of TEXT (D,) through pages."""
    table = PageTable(model.runner.pool, model.salt)
    table.reserve(len(TEXT))
    hidden = model.runner.hidden([Chunk(table, TEXT, variant)])[-1]
    table.free()
    return hidden


@torch.inference_mode()
def plain(model: PreTrainedModel, ids: list[int] = TEXT) -> Tensor:
    return model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]  # type: ignore[no-any-return]


def test_configuration() -> None:
    parsed = CONFIG.validate_python(
        {
            "brief": {"role": "program", "kind": "length", "direction": "shorter"},
            "taste": {"role": "reward", "model": "org/name", "label": "GOOD"},
            "worth": {"role": "value", "model": "head.safetensors"},
            "arm": {"role": "lm", "model": "demo", "context_length": 100, "pool_tokens": 64},
            "calm": {"role": "vector", "model": "calm.gguf"},
        }
    )
    assert parsed == {
        "brief": Length(direction="shorter"),
        "taste": RewardModelConfig(model="org/name", label="GOOD"),
        "worth": ValueConfig(model="head.safetensors"),
        "arm": LanguageConfig(model="demo", context_length=100, pool_tokens=64),
        "calm": VectorConfig(model="calm.gguf"),
    }
    for bad in (
        {"role": "program", "kind": "length", "direction": "shorter", "taget": 3},
        {"role": "program", "kind": "size"},
        {"role": "reward"},
        {"role": "vase", "model": "x"},
        {"role": "lm", "model": "x", "label": "y"},
        {"role": "vector", "model": "x", "dtype": "float32"},
        {"role": "value", "model": "x", "pool_tokens": 8},
    ):
        with pytest.raises(ValidationError):
            CONFIG.validate_python({"g": bad})


def test_a_guide_cannot_be_called_base() -> None:
    with pytest.raises(ValidationError, match="'base' is the base model's own name: call the guide something else"):
        EngineSettings.model_validate({"guides": {"base": {"role": "lm", "model": "demo"}}})


def test_a_language_model_brings_its_own_pages(base: Model, tmp_path: Path) -> None:
    source = str(tiny_folder(tmp_path / "m", "gpt2", seed=3))
    guides = build(base, arm={"role": "lm", "model": source, "context_length": 90, "pool_tokens": 200})
    arm = guides.by_name["arm"]
    assert isinstance(arm, LanguageGuide)
    assert (arm.name, arm.role, arm.variant, arm.model.name, arm.model.context_length) == (
        "arm",
        "lm",
        PLAIN,
        "arm",
        90,
    )
    assert arm.model.runner.pool.total == 25
    torch.testing.assert_close(read(arm.model), plain(load_causal_lm(source).model), rtol=1e-4, atol=1e-4)
    assert arm.translation is not None
    assert arm.translation.identity
    assert guides.rewards == {}
    small = build(base, arm={"role": "lm", "model": source, "pool_tokens": 40}).by_name["arm"]
    assert isinstance(small, LanguageGuide)
    assert small.model.context_length == 40
    large = build(base, arm={"role": "lm", "model": source}).by_name["arm"]
    assert isinstance(large, LanguageGuide)
    assert (large.model.runner.pool.total, large.model.context_length) == (128, 256)


def test_a_language_model_of_other_tokens_has_no_translation(base: Model, tmp_path: Path) -> None:
    source = tiny_folder(tmp_path / "m")
    words = Tokenizer(models.WordLevel({"<unk>": 0, "cat": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(source)
    arm = build(base, arm={"role": "lm", "model": str(source)}).by_name["arm"]
    assert isinstance(arm, LanguageGuide)
    assert arm.translation is None


@pytest.mark.parametrize("role", ["reward", "value"])
def test_a_causal_classifier_scores_prefixes_and_answers(base: Model, tmp_path: Path, role: str) -> None:
    model = llama_classifier(tmp_path / "m", labels=2)
    guides = build(base, taste={"role": role, "model": str(tmp_path / "m")})
    taste = guides.by_name["taste"]
    assert isinstance(taste, ScorerGuide)
    assert (taste.role, taste.variant, taste.model.name, taste.model.context_length) == (role, PLAIN, "taste", 256)

    def log_odds(ids: list[int]) -> float:
        logits = model.score(plain(model, ids))
        return (logits[1] - logits[0]).item()  # type: ignore[no-any-return]

    assert taste.head(read(taste.model)).item() == pytest.approx(log_odds(TEXT), abs=1e-4)
    assert guides.rewards["taste"].score([PAIR]) == pytest.approx([log_odds(RENDERED)], abs=1e-4)
    assert taste.translation is not None
    first = build(base, taste={"role": role, "model": str(tmp_path / "m"), "label": "LABEL_0"})
    assert first.rewards["taste"].score([PAIR]) == pytest.approx([-log_odds(RENDERED)], abs=1e-4)


def test_what_cannot_be_paged_scores_whole_answers(
    base: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 16, "num_labels": 1, "pad_token_id": 256}
    bert = classifier(
        tmp_path / "bert",
        BertConfig(**sizes, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2),
    )
    neo = classifier(
        tmp_path / "neo",
        GPTNeoConfig(
            **sizes,
            num_layers=2,
            num_heads=2,
            attention_types=[[["global", "local"], 1]],
            window_size=24,
            bos_token_id=256,
            eos_token_id=256,
        ),
    )
    llama = llama_classifier(tmp_path / "llama")

    def score(kind: str) -> float:
        built = build(base, taste={"role": "reward", "model": str(tmp_path / kind)})
        assert isinstance(built.by_name["taste"], TextGuide)
        assert built.by_name["taste"].role == "reward"
        return built.rewards["taste"].score([PAIR])[0]

    ids = torch.tensor([RENDERED])
    assert score("bert") == pytest.approx(bert(input_ids=ids).logits.item(), abs=1e-4)
    assert score("neo") == pytest.approx(neo.score(plain(neo, RENDERED)).item(), abs=1e-4)
    monkeypatch.setattr("trimtab.engine.runner.TOLERANCE", {torch.float32: -1.0})
    with caplog.at_level(logging.WARNING):
        assert score("llama") == pytest.approx(llama.score(plain(llama, RENDERED)).item(), abs=1e-4)
    assert "guide 'taste' scores whole answers only: LlamaModel does not give the same" in caplog.text


def test_an_adapter_runs_in_the_bases_forward(base: Model, folder: Path, tmp_path: Path) -> None:
    before = read(base)
    guides = build(base, arm={"role": "lm", "model": str(adapter(tmp_path / "a"))})
    arm = guides.by_name["arm"]
    assert isinstance(arm, LanguageGuide)
    assert arm.model is base
    torch.testing.assert_close(read(base, arm.variant), plain(merged(folder)), rtol=1e-4, atol=1e-4)
    assert torch.equal(read(base), before)
    assert arm.translation is not None
    assert arm.translation.identity


def test_an_adapter_with_a_score_head_is_a_reward(base: Model, folder: Path, tmp_path: Path) -> None:
    score = torch.randn(1, 48, generator=torch.Generator().manual_seed(1))
    source = str(adapter(tmp_path / "a", score=score))
    guides = build(base, taste={"role": "reward", "model": source})
    taste, model = guides.by_name["taste"], merged(folder)
    assert isinstance(taste, ScorerGuide)
    assert taste.model is base
    expected = (score @ plain(model)).item()
    assert taste.head(read(base, taste.variant)).item() == pytest.approx(expected, abs=1e-3)
    cached = PageTable(base.runner.pool, base.salt)  # the plain base has read the same text: not for the adapter
    cached.reserve(len(RENDERED))
    base.runner.prefill([Chunk(cached, RENDERED)])
    cached.stored(array("q", RENDERED), len(RENDERED))
    cached.free()
    answers = [PAIR, Pair(PAIR.messages, "x"), PAIR]
    expected = (score @ plain(model, RENDERED)).item()
    scores = guides.rewards["taste"].score(answers)
    assert [scores[0], scores[2]] == pytest.approx([expected] * 2, abs=1e-3)
    base.runner.pool.check([])


def test_a_head_a_vector_and_a_program(base: Model, tmp_path: Path) -> None:
    head = ValueHead([torch.ones(1, 48)], [torch.zeros(1)])
    head.save(tmp_path / "head.safetensors")
    save_file({"direction.1": torch.ones(48)}, tmp_path / "vector.safetensors")
    before = read(base)
    guides = build(
        base,
        worth={"role": "value", "model": str(tmp_path / "head.safetensors")},
        calm={"role": "vector", "model": str(tmp_path / "vector.safetensors")},
        brief={"role": "program", "kind": "length", "direction": "shorter"},
    )
    worth, calm, brief = guides.by_name.values()
    assert isinstance(worth, HeadGuide)
    assert worth.head(before).item() == pytest.approx(before.sum().item(), abs=1e-4)
    assert isinstance(calm, VectorGuide)
    assert list(calm.directions) == [1]
    assert not torch.allclose(read(base, Variant(vectors=(("calm", 1.0),))), before)
    assert torch.equal(read(base), before)
    assert isinstance(brief, TextGuide)
    assert (brief.name, brief.role) == ("brief", "program")
    assert list(guides.rewards) == ["brief"]
    assert guides.rewards["brief"].score([PAIR]) == [-2]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ({"role": "lm", "model": "nowhere"}, ModelLoadError, r"guide 'g' \(role lm\): model 'nowhere'"),
        (
            {"role": "reward", "model": "{base}"},
            ModelLoadError,
            r"guide 'g' \(role reward\): .*lacks the weights score",
        ),
        ({"role": "value", "model": "{base}/no.safetensors"}, ModelLoadError, r"guide 'g' \(role value\): value head"),
        ({"role": "vector", "model": "{base}"}, ModelLoadError, r"guide 'g' \(role vector\): control vector"),
        (
            {"role": "reward", "model": "{adapter}"},
            ModelLoadError,
            "has no score head: train it with task type SEQ_CLS",
        ),
        (
            {"role": "lm", "model": "{adapter}", "dtype": "float32", "pool_tokens": 64},
            ModelLoadError,
            "runs with the base's settings: take out dtype, pool_tokens",
        ),
        (
            {"role": "value", "model": "{base}/no.safetensors", "label": "x"},
            ModelLoadError,
            "a value head reads the base's hidden state: take out label",
        ),
        ({"role": "reward", "model": "{three}"}, GuideError, "guide 'g': .*set 'label' to one of LABEL_0, LABEL_1"),
        ({"role": "reward", "model": "{scored}", "label": "x"}, GuideError, "no label 'x': use one of LABEL_0"),
    ],
)
def test_refusals_name_the_guide(
    base: Model, folder: Path, tmp_path: Path, config: dict[str, Any], error: type[Exception], message: str
) -> None:
    llama_classifier(tmp_path / "three", labels=3)
    places = {
        "base": folder,
        "three": tmp_path / "three",
        "adapter": adapter(tmp_path / "plain"),
        "scored": adapter(tmp_path / "scored", score=torch.ones(1, 48)),
    }
    with pytest.raises(error, match=message):
        build(base, g={**config, "model": config["model"].format(**places)})


def card(kind: Kind, base: Model, **changes: str) -> Card:
    """The card of a guide that was trained for `base`."""
    trained = identity("somewhere", base.runner.model).model_copy(update=changes)
    return Card(kind=kind, base=trained, data="d", licence="MIT", metrics={}, training={}, version="0")


def test_folders_load_as_they_are(base: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "head").mkdir()
    (tmp_path / "vector").mkdir()
    ValueHead([torch.ones(1, 48)], [torch.zeros(1)]).save(tmp_path / "head" / "value_head.safetensors", torch.float16)
    writer = GGUFWriter(tmp_path / "vector" / "control_vector.gguf", "controlvector")
    writer.add_tensor("direction.1", torch.ones(48).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    written = {"worth": card("value", base), "calm": card("vector", base), "arm": card("arm", base)}
    written["worth"].save(tmp_path / "head")
    written["calm"].save(tmp_path / "vector")
    written["arm"].save(adapter(tmp_path / "adapter"))
    guides = build(
        base,
        worth={"role": "value", "model": str(tmp_path / "head")},
        calm={"role": "vector", "model": str(tmp_path / "vector")},
        arm={"role": "lm", "model": str(tmp_path / "adapter")},
        bare={"role": "lm", "model": str(adapter(tmp_path / "bare"))},
    )
    worth, calm, arm, _ = guides.by_name.values()
    assert isinstance(worth, HeadGuide)
    state = read(base)
    assert worth.head(state).item() == pytest.approx(state.sum().item(), abs=1e-4)
    assert isinstance(calm, VectorGuide)
    assert torch.equal(calm.directions[1], torch.ones(48))
    assert isinstance(arm, LanguageGuide)
    assert guides.cards == written
    assert not caplog.records


def test_a_guide_of_another_base_is_refused(base: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = adapter(tmp_path / "a")
    card("arm", base, config="0" * 16).save(folder)
    message = r"guide 'g' \(role lm\): it was trained for the base 'somewhere' \(config 0{16}, .* this one is 'demo'"
    with pytest.raises(ModelLoadError, match=message):
        build(base, g={"role": "lm", "model": str(folder)})
    card("arm", base, weights="0" * 16).save(folder)
    with caplog.at_level(logging.WARNING):
        build(base, g={"role": "lm", "model": str(folder)})
    assert ["'g' was trained for the base 'somewhere'" in each.getMessage() for each in caplog.records] == [True]


def test_a_guide_under_the_wrong_role_is_told_the_right_one(base: Model, tmp_path: Path) -> None:
    (tmp_path / "head").mkdir()
    ValueHead([torch.ones(1, 48)], [torch.zeros(1)]).save(tmp_path / "head" / "value_head.safetensors")
    for role in ("lm", "reward", "vector"):
        with pytest.raises(
            ModelLoadError, match=rf"guide 'g' \(role {role}\): .* holds a value head: give it the role"
        ):
            build(base, g={"role": role, "model": str(tmp_path / "head")})


ALONE = (
    "{{ bos_token }}{% if messages[-1].role == 'assistant' %}{{ messages[-1].content }}"
    "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}{% endif %}"
)
"""the answer alone is read"""


def test_an_adapter_may_read_answers_under_its_own_template(base: Model, folder: Path, tmp_path: Path) -> None:
    score = torch.randn(1, 48, generator=torch.Generator().manual_seed(1))
    tokenizer = base.vocabulary.tokenizer
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    base = replace(base, vocabulary=Vocabulary(tokenizer, base.runner.vocab_size))
    templates = {"bare": None, "same": tokenizer.chat_template, "alone": ALONE}
    for name, template in templates.items():
        adapter(tmp_path / name, score=score)
        if template is not None:
            (tmp_path / name / "chat_template.jinja").write_text(template)
    guides = build(base, **{name: {"role": "reward", "model": str(tmp_path / name)} for name in templates})
    alone = [257, *byte_tokenizer().encode("Hello there"), 256]
    expected = {"bare": RENDERED, "same": RENDERED, "alone": alone}
    for name, ids in expected.items():
        reward, guide = guides.rewards[name], guides.by_name[name]
        assert isinstance(reward, CausalReward)
        assert isinstance(guide, ScorerGuide)
        assert guide.model is base
        assert (guide.vocabulary is base.vocabulary) == (name != "alone")
        assert list(reward.encode(PAIR)) == ids
        assert reward.score([PAIR]) == pytest.approx([(score @ plain(merged(folder), ids)).item()], abs=1e-3)
