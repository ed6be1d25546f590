"""Embedding guides: vectors against plain transformers, however batched; folders, settings, and what is refused."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from collector import Collector
from folders import adapter_folder, classifier_folder
from pydantic import TypeAdapter, ValidationError
from tiny import tiny_folder
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoModel,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.errors import GuideError, InvalidRequest, ModelLoadError
from trimtab.engine.guides.base import EmbeddingGuide
from trimtab.engine.guides.config import EmbeddingConfig, GuideConfig
from trimtab.engine.guides.embedding import TextEncoder, Vectors, examine_encoder
from trimtab.engine.guides.sentences import read_recipe
from trimtab.engine.loading import load_encoder
from trimtab.engine.memory import survey
from trimtab.engine.results import Result
from trimtab.llm import GenerationRequest
from trimtab.server.guide_checks import guide_checks
from trimtab.server.guides import describe

CONFIG: TypeAdapter[GuideConfig] = TypeAdapter(GuideConfig)
SPECIAL = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
WORDS = [*SPECIAL, *(f"w{n}" for n in range(40)), "query:", "passage:"]
PAD, CLS, SEP, UNK = range(4)
POSITIONS = 32
TEXTS = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w2 w1 w3", "w13 w14", "w15 w16 w17 w18 w19", "w20 w21 w22 w23"]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": PAD,
    "bos_token_id": CLS,
    "eos_token_id": SEP,
}


def tokenizer(*, specials: bool = True) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if specials:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )


def model_of(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel
    match kind:
        case "bert":
            model = BertModel(BertConfig(**SIZES))
        case "bert without pooler":
            model = BertModel(BertConfig(**SIZES), add_pooling_layer=False)
        case "classifier":
            model = BertForSequenceClassification(BertConfig(**SIZES))
        case "roberta":  # counts its positions from behind its pad token
            model = RobertaModel(RobertaConfig(**SIZES))
        case "xlm-roberta":
            model = XLMRobertaModel(XLMRobertaConfig(**SIZES))
        case "llama":
            model = LlamaForCausalLM(LlamaConfig(**SIZES))
        case "gpt2":
            heads = {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": POSITIONS}
            model = GPT2LMHeadModel(GPT2Config(vocab_size=len(WORDS), bos_token_id=CLS, eos_token_id=SEP, **heads))
        case _:
            model = T5Model(T5Config(vocab_size=len(WORDS), d_model=24, d_ff=40, num_layers=2, num_heads=3))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return model.eval().requires_grad_(False)


def encoder_folder(folder: Path, kind: str = "bert", *, specials: bool = True) -> Path:
    model_of(kind).save_pretrained(folder)
    tokenizer(specials=specials).save_pretrained(folder)
    return folder


def sentence_folder(
    folder: Path, pooling: Mapping[str, Any], *, kinds: Sequence[str] = ("Transformer", "Pooling", "Normalize")
) -> Path:
    """A model folder with what sentence-transformers writes beside it."""
    encoder_folder(folder)
    paths = ["", *(f"{index}_{kind}" for index, kind in enumerate(kinds[1:], start=1))]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 24, **pooling}))
    return folder


def encoder(folder: Path, **options: Any) -> TextEncoder:
    config = EmbeddingConfig(model=str(folder), **options)
    recipe = read_recipe(folder, pooled=config.pooling != "auto")
    return TextEncoder("e", load_encoder(str(folder), folder, dtype=config.dtype), config, recipe)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoders and decoders by the names of their kinds, and a base with guides of other roles."""
    place = tmp_path_factory.mktemp("encoders")
    for kind in ("bert", "bert without pooler", "classifier", "roberta", "xlm-roberta", "llama", "gpt2"):
        encoder_folder(place / kind, kind)
    encoder_folder(place / "plain", "llama", specials=False)
    base = tiny_folder(place / "base")
    adapter_folder(place / "adapter", base, seed=1)
    classifier_folder(place / "taste", seed=2)
    return place


def by_hand(folder: Path, text: str, pooling: str) -> Vectors:
    """One text alone through transformers, pooled in float64."""
    model = AutoModel.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer()(text)["input_ids"]])
    with torch.inference_mode():
        hidden = model(input_ids=ids).last_hidden_state[0].double().numpy()
    pooled = {"mean": hidden.mean(axis=0), "cls": hidden[0], "last": hidden[-1]}[pooling]
    return np.asarray(pooled / np.linalg.norm(pooled))


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "llama", "gpt2"])
def test_vectors_are_those_of_the_plain_model_however_batched(place: Path, kind: str, pooling: str) -> None:
    reader = encoder(place / kind, pooling=pooling)
    expected = np.stack([by_hand(place / kind, text, pooling) for text in TEXTS])
    for size in (1, 2, 7):
        found = np.concatenate([reader.embed(TEXTS[at : at + size]) for at in range(0, 7, size)])
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=2e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, atol=1e-6)
    small = encoder(place / kind, pooling=pooling, max_batch_tokens=12)  # several forwards, in another order
    np.testing.assert_allclose(small.embed(TEXTS), expected, atol=2e-6)


@pytest.mark.parametrize(
    ("kind", "pooling"), [("bert", "mean"), ("roberta", "mean"), ("llama", "last"), ("gpt2", "last")]
)
def test_encoders_take_the_mean_and_decoders_the_last_token(place: Path, kind: str, pooling: str) -> None:
    auto = encoder(place / kind)
    assert auto.pooling == pooling
    np.testing.assert_array_equal(auto.embed(TEXTS), encoder(place / kind, pooling=pooling).embed(TEXTS))
    other = "cls" if pooling == "mean" else "mean"
    assert not np.allclose(auto.embed(TEXTS), encoder(place / kind, pooling=other).embed(TEXTS), atol=1e-2)


def test_what_is_read_by_nobody_may_be_missing_or_left_over(place: Path) -> None:
    """A pooler that a checkpoint lacks, the head of a classifier or of a language model."""
    expected = np.stack([by_hand(place / "classifier", text, "mean") for text in TEXTS])
    np.testing.assert_allclose(encoder(place / "classifier").embed(TEXTS), expected, atol=2e-6)
    assert encoder(place / "bert without pooler").embed(TEXTS).shape == (7, 24)


def test_queries_and_texts_have_prefixes_of_their_own(place: Path) -> None:
    plain = encoder(place / "bert")
    e5 = encoder(place / "bert", query_prefix="query: ", text_prefix="passage: ")
    np.testing.assert_allclose(e5.embed(TEXTS), plain.embed([f"passage: {text}" for text in TEXTS]), atol=1e-6)
    asked = e5.embed(TEXTS, query=True)
    np.testing.assert_allclose(asked, plain.embed([f"query: {text}" for text in TEXTS]), atol=1e-6)
    assert not np.allclose(asked, e5.embed(TEXTS), atol=1e-2)
    np.testing.assert_array_equal(plain.embed(TEXTS, query=True), plain.embed(TEXTS))


def test_a_longer_text_loses_its_end_and_keeps_its_special_tokens(place: Path) -> None:
    long = " ".join(f"w{n}" for n in range(40))
    for limit, expected in ((None, POSITIONS), (10, 10), (1000, POSITIONS)):
        reader = encoder(place / "bert", max_tokens=limit)
        ids = reader.encode(long)
        assert ids == [CLS, *range(4, 4 + expected - 2), SEP]
        words = " ".join(f"w{n}" for n in range(expected - 2))
        np.testing.assert_array_equal(reader.embed([long]), reader.embed([words]))
    prefixed = encoder(place / "bert", max_tokens=10, text_prefix="passage: ").encode(long)
    assert prefixed == [CLS, WORDS.index("passage:"), *range(4, 11), SEP]


def test_texts_without_tokens_have_a_vector_and_no_texts_have_none(place: Path) -> None:
    assert encoder(place / "bert").embed([]).shape == (0, 24)
    assert encoder(place / "bert").encode("") == [CLS, SEP]
    plain = encoder(place / "plain")
    assert plain.encode("") == [CLS], "its tokenizer adds nothing"
    assert np.linalg.norm(plain.embed(["", "w1"])[0]) == pytest.approx(1.0, abs=1e-6)


def test_the_digest_is_of_all_that_a_stored_vector_depends_on(place: Path) -> None:
    digest = encoder(place / "bert").digest
    assert digest == encoder(place / "bert", pooling="mean", query_prefix="query: ", max_batch_tokens=1).digest
    changes = ({"pooling": "cls"}, {"text_prefix": "passage: "}, {"max_tokens": 9})
    others = [encoder(place / "bert", **change).digest for change in changes] + [encoder(place / "roberta").digest]
    assert len({digest, *others}) == 5


OLD = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": False, "pooling_mode_max_tokens": False}


@pytest.mark.parametrize(
    ("told", "pooling"),
    [
        ({**OLD, "pooling_mode_cls_token": True}, "cls"),
        ({**OLD, "pooling_mode_mean_tokens": True, "include_prompt": True}, "mean"),
        ({**OLD, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "last"),
    ],
)
def test_a_sentence_transformers_folder_tells_how_it_pools(
    tmp_path: Path, told: Mapping[str, Any], pooling: str
) -> None:
    folder = sentence_folder(tmp_path / "model", told)
    reader = encoder(folder)
    assert reader.pooling == pooling
    np.testing.assert_allclose(reader.embed(["w1 w2"])[0], by_hand(folder, "w1 w2", pooling), atol=2e-6)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 9, "do_lower_case": True}))
    short = encoder(folder)
    assert short.max_tokens == 9
    assert short.encode("W1 w2") == [CLS, 5, 6, SEP]
    assert reader.encode("W1 w2") == [CLS, UNK, 6, SEP]
    assert encoder(folder, max_tokens=20).max_tokens == 20
    assert short.digest != reader.digest


def test_prompts_of_its_folder_are_told_of_where_none_are_configured(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", {"pooling_mode": "mean"})
    prompts = {"prompts": {"query": "query: ", "document": ""}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    for options, expected in (({}, "query 'query: '"), ({"query_prefix": "query: "}, "as configured")):
        findings = {each.name: each for each in examine_encoder(encoder(folder, **options)).findings}
        assert findings["prefixes"].ok
        assert expected in findings["prefixes"].finding
        assert bool(findings["prefixes"].fix) == (not options)


@pytest.mark.parametrize(
    ("told", "kinds", "message"),
    [
        ({"pooling_mode_max_tokens": True}, None, "pools by pooling_mode_max_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, None, "set 'pooling'"),
        ({}, None, "pools by nothing"),
        ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"), "the module Dense"),
    ],
)
def test_folders_that_would_be_read_wrongly_are_refused(
    tmp_path: Path, told: Mapping[str, Any], kinds: Sequence[str] | None, message: str
) -> None:
    folder = sentence_folder(tmp_path / "model", told, **({} if kinds is None else {"kinds": kinds}))
    with pytest.raises(ModelLoadError, match=message):
        encoder(folder)
    if kinds is None:
        assert encoder(folder, pooling="cls").pooling == "cls", "said by the operator"


def test_broken_folders_are_refused(tmp_path: Path) -> None:
    folder = sentence_folder(tmp_path / "model", {"pooling_mode": "mean"})
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(ModelLoadError, match=r"config.json is missing"):
        encoder(folder)
    for content, message in (("[", "cannot be read"), ('[{"idx": 0}]', "is broken"), ("3", "is broken")):
        (folder / "modules.json").write_text(content)
        with pytest.raises(ModelLoadError, match=message):
            encoder(folder)


def test_what_is_found_of_it_at_load(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = examine_encoder(encoder(place / "bert"))
    assert found.ok
    told = {each.name: each.finding for each in found.findings}
    assert told["vectors"].startswith("24 numbers (mean), cosines")
    assert told["batches"].startswith("the same vectors at batch 1, 2 and 7")
    assert told["truncation"].startswith(f"a longer text is cut to {POSITIONS} tokens")
    assert not caplog.records
    first = examine_encoder(encoder(place / "gpt2", pooling="cls"))  # a decoder's first token has seen nothing
    broken = next(each for each in first.findings if not each.ok)
    assert (broken.name, broken.fix[:13]) == ("vectors", "set 'pooling'")
    assert "one and the same" in caplog.text


def test_pads_that_count_are_found(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = encoder(place / "bert")
    forward = reader._model.forward
    monkeypatch.setattr(reader._model, "forward", lambda input_ids, attention_mask: forward(input_ids=input_ids))
    found = {each.name: each for each in examine_encoder(reader).findings}
    assert not found["batches"].ok
    assert found["batches"].fix.startswith("set max_batch_tokens to 1")


def test_a_model_that_cannot_read_what_it_says_is_refused(place: Path) -> None:
    reader = encoder(place / "bert")
    reader.max_tokens = 2 * POSITIONS
    with pytest.raises(ModelLoadError, match=r"cannot turn texts into vectors .*set max_tokens"):
        examine_encoder(reader)


def test_its_memory_is_planned_for(place: Path) -> None:
    guides = {"finder": {"role": "embedding", "model": str(place / "bert"), "max_batch_tokens": 1000}}
    settings = EngineSettings.model_validate({"model": str(place / "base"), "guides": guides})
    base, finder = survey(settings)
    assert (base.name, finder.name) == ("base", "finder")
    assert finder.per_token == 0
    assert finder.weights == pytest.approx((place / "bert" / "model.safetensors").stat().st_size, rel=0.2)
    assert finder.workspace == 1000 * (4 * 24 + 3 * 40) * 4


def test_vectors_without_a_direction_are_errors(place: Path) -> None:
    reader = encoder(place / "bert")
    for value in (torch.nan, 0.0):
        reader._model.encoder.layer[-1].output.LayerNorm.weight.fill_(value)
        reader._model.encoder.layer[-1].output.LayerNorm.bias.fill_(value)
        with pytest.raises(GuideError, match="zero or not finite"):
            reader.embed(["w1"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "max"}, "pooling"),
        ({"max_tokens": 4}, "max_tokens"),
        ({"prefix": "query: "}, "prefix"),
        ({"label": "x"}, "label"),
        ({"model": None}, "model"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CONFIG.validate_python({"role": "embedding", "model": "x", **changes})


def load(place: Path, **guides: Mapping[str, Any]) -> LLM:
    settings = {"model": str(place / "base"), "device": "cpu", "pool_tokens": 2048, "threads": 1, "guides": guides}
    return LLM(settings=EngineSettings.model_validate(settings))


@pytest.fixture(scope="module")
def llm(place: Path) -> Iterator[LLM]:
    guides = {
        "finder": {"role": "embedding", "model": str(place / "bert"), "query_prefix": "query: "},
        "tune": {"role": "lm", "model": str(place / "adapter")},
        "taste": {"role": "reward", "model": str(place / "taste")},
        "brief": {"role": "program", "kind": "length", "direction": "shorter"},
    }
    with load(place, **guides) as llm:
        yield llm


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("adapter", {}, "holds an adapter: give it the role lm"),
        ("t5", {}, "encoder-decoder"),
        ("bert", {"text_prefix": "w1 " * 9, "max_tokens": 8}, "text_prefix alone fills the 8 tokens"),
        ("nowhere", {}, "no such path"),
    ],
)
def test_models_that_cannot_serve_are_refused_by_name(
    llm: LLM, place: Path, tmp_path: Path, model: str, options: Mapping[str, Any], message: str
) -> None:
    folder = encoder_folder(tmp_path / model, model) if model == "t5" else place / model
    config = CONFIG.validate_python({"role": "embedding", "model": str(folder), **options})
    with pytest.raises(ModelLoadError, match=rf"guide 'x' \(role embedding\): .*{message}"):
        llm.load_guide("x", config).result(30)
    assert "x" not in llm.guides


def test_an_engine_embeds_as_the_encoder_does(llm: LLM, place: Path) -> None:
    alone = encoder(place / "bert", query_prefix="query: ")
    np.testing.assert_allclose(llm.embed("finder", TEXTS).result(30), alone.embed(TEXTS), atol=1e-6)
    asked = llm.embed("finder", TEXTS[:2], query=True).result(30)
    np.testing.assert_allclose(asked, alone.embed(TEXTS[:2], query=True), atol=1e-6)
    assert llm.embed("finder", []).result(30).shape == (0, 24)
    guide = llm.guides["finder"]
    assert isinstance(guide, EmbeddingGuide)
    assert guide.encoder.digest == alone.digest
    assert llm.stats.model_tokens["finder"] >= sum(len(alone.encode(text)) for text in TEXTS)


def test_a_guide_of_another_role_embeds_nothing_and_this_one_nothing_else(llm: LLM) -> None:
    needed = r"this needs an embedding model \(role 'embedding'\); configured: finder"
    for name, given in (("tune", "has the role 'lm'"), ("brief", "scores whole answers alone"), ("x", "no guide is")):
        with pytest.raises(InvalidRequest, match=f"{given}.*{needed}"):
            llm.embed(name, ["w1"])
    for decoding, field in (
        ({"strategy": "genarm", "arm": "finder"}, "decoding.arm"),
        ({"strategy": "nudging", "aligned": "finder"}, "decoding.aligned"),
        ({"strategy": "args", "reward": "finder"}, "decoding.reward"),
        ({"strategy": "control_vector", "vector": "finder"}, "decoding.vector"),
        ({"strategy": "re_control", "value": "finder"}, "decoding.value"),
    ):
        with pytest.raises(InvalidRequest, match="guide 'finder' has the role 'embedding'; this needs") as refused:
            llm.check(decoding)
        assert refused.value.param == field
    with pytest.raises(InvalidRequest, match="no reward guide is named 'finder'"):
        llm.check({"strategy": "best_of_n", "reward": "finder"})


def test_texts_that_cannot_be_read_are_refused_in_the_callers_thread(llm: LLM) -> None:
    with pytest.raises(InvalidRequest, match="lone surrogate"):
        llm.embed("finder", ["w1", "\ud800"])


def test_guides_come_and_go(llm: LLM, place: Path) -> None:
    config = CONFIG.validate_python({"role": "embedding", "model": str(place / "llama")})
    llm.load_guide("late", config).result(30)
    np.testing.assert_allclose(llm.embed("late", TEXTS).result(30), encoder(place / "llama").embed(TEXTS), atol=1e-6)
    waits, goes = Event(), Event()

    def hold() -> None:
        waits.set()
        assert goes.wait(20)

    llm._worker.ask(hold)
    assert waits.wait(20)
    leaving, lost = llm.unload_guide("late"), llm.embed("late", TEXTS)
    goes.set()
    leaving.result(30)
    with pytest.raises(InvalidRequest, match="guide 'late' was unloaded meanwhile"):
        lost.result(30)


def test_a_query_is_embedded_by_the_guide_that_was_seen(llm: LLM, place: Path) -> None:
    """Never by another one that has come under its name since, whose vectors would be taken for those of the first."""
    first, second = (
        CONFIG.validate_python({"role": "embedding", "model": str(place / name)}) for name in ("bert", "llama")
    )
    llm.load_guide("late", first).result(30)
    view, alone = llm.loaded, encoder(place / "bert")
    told = llm.embed_query("late", "w1", "path", view)
    assert told.model == alone.digest
    np.testing.assert_allclose(told.vector, alone.embed(["w1"], query=True)[0], atol=1e-6)
    llm.unload_guide("late").result(30)
    llm.load_guide("late", second).result(30)
    with pytest.raises(InvalidRequest, match="guide 'late' was unloaded meanwhile"):
        llm.embed_query("late", "w1", "path", view)
    llm.unload_guide("late").result(30)
    with pytest.raises(InvalidRequest, match="no guide is named 'late'"):
        llm.embed("late", TEXTS)
    assert "late" not in llm.contracts


def test_the_engine_decodes_while_many_texts_are_embedded(llm: LLM) -> None:
    """Parts of the budget's size, one between two ticks; the tokens are those of an idle engine."""
    sampling = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    expected = llm.generate(["Hello"], sampling, progress=False)[0].choices[0].token_ids
    texts = [f"{text} w{n}" for n in range(40) for text in TEXTS]
    told = llm.embed("finder", texts)
    prepared, collector = llm.prepare(GenerationRequest(prompt="Hello", sampling=sampling)), Collector()
    llm.submit(prepared, object(), collector)
    assert collector.done.wait(30)
    result = collector.events[-1]
    assert isinstance(result, Result)
    assert result.choices[0].token_ids == expected
    guide = llm.guides["finder"]
    assert isinstance(guide, EmbeddingGuide)
    np.testing.assert_allclose(told.result(30), guide.encoder.embed(texts), atol=2e-6)


def test_parts_hold_a_budget_of_tokens_and_stop_when_nobody_waits(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    guide = llm.guides["finder"]
    assert isinstance(guide, EmbeddingGuide)
    seen: list[int] = []
    began, goes = Event(), Event()
    vectors = TextEncoder.vectors

    def watched(self: TextEncoder, rows: Sequence[list[int]]) -> Vectors:
        seen.append(sum(map(len, rows)))
        began.set()
        assert goes.wait(20)
        return vectors(self, rows)

    monkeypatch.setattr(TextEncoder, "vectors", watched)
    told = llm.embed("finder", TEXTS * 60)
    assert began.wait(20)
    assert told.cancel()
    goes.set()
    llm._worker.ask(lambda: None).result(30)
    assert len(seen) == 1
    assert llm.settings.prefill_tokens - 16 < seen[0] <= llm.settings.prefill_tokens
    llm.embed("finder", TEXTS * 60).result(30)
    assert len(seen) > 4
    assert max(seen) <= llm.settings.prefill_tokens
    assert sum(seen[1:]) == sum(len(guide.encoder.encode(text)) for text in TEXTS * 60)


def test_what_a_model_raises_ends_one_future_alone(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: TextEncoder, rows: Sequence[list[int]]) -> Vectors:
        raise GuideError(self.name, "broke")

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "vectors", fail)
        with pytest.raises(GuideError, match="broke"):
            llm.embed("finder", TEXTS).result(30)
    assert llm.embed("finder", TEXTS).result(30).shape == (7, 24)


def test_what_people_are_told_of_it(llm: LLM) -> None:
    card = next(each for each in describe(llm) if each.name == "finder")
    assert (card.role, card.model, card.context_length) == ("embedding", "bert", POSITIONS)
    assert (card.scores_answers, card.scores_candidates, card.vocabulary) == (False, False, None)
    assert card.contract is not None
    assert card.contract.ok
    lines = [check.line for check in guide_checks(llm) if "finder" in check.name]
    assert lines[0] == f"ok       guide finder: embedding bert, context of {POSITIONS} tokens"
    assert any("digest" in line for line in lines)
