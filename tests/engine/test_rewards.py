import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from toy import byte_tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from trimtab.engine.errors import GuideError, InvalidRequest
from trimtab.engine.guides.config import default_guides
from trimtab.engine.guides.heads import LinearHead
from trimtab.engine.guides.prompts import guide_prompt, guide_transcript
from trimtab.engine.loading import LoadedModel
from trimtab.engine.model import Model
from trimtab.engine.pages import OutOfPages, PagePool, PageTable
from trimtab.engine.rewards import Pair, Reward
from trimtab.engine.rewards.causal import CausalReward
from trimtab.engine.rewards.classifier import ClassifierReward, label_signs, labels_of
from trimtab.engine.rewards.program import PROGRAMS, Json, Keywords, Length, Lexicon, Program, ProgramReward, Regex
from trimtab.engine.runner import Chunk, ModelRunner
from trimtab.engine.vocabulary import Message, Vocabulary

WORDS = ["<unk>", "<s>", "</s>", *(f"w{n}" for n in range(60)), "\n"]
CONTEXT = 48


def tokenizer_of(*, pad: str | None = "</s>", bos: bool = True) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: id_ for id_, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token=pad
    )


SMALL: dict[str, Any] = {"vocab_size": len(WORDS), "eos_token_id": 2}


def tiny(kind: str, labels: int = 1, pad_id: int | None = 2) -> PreTrainedModel:
    torch.manual_seed(0)
    common = {**SMALL, "num_labels": labels, "pad_token_id": pad_id}
    wide = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    model: PreTrainedModel
    match kind:
        case "llama":
            config = LlamaConfig(**common, **wide, max_position_embeddings=CONTEXT)
            model = LlamaForSequenceClassification(config)
        case "gpt2":
            model = GPT2ForSequenceClassification(
                GPT2Config(**common, n_embd=16, n_layer=2, n_head=2, n_positions=CONTEXT)
            )
        case "bert":
            model = BertForSequenceClassification(BertConfig(**common, **wide, max_position_embeddings=CONTEXT))
        case _:
            model = DistilBertForSequenceClassification(
                DistilBertConfig(
                    **common, dim=16, hidden_dim=32, n_layers=2, n_heads=2, max_position_embeddings=CONTEXT
                )
            )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=1.0)  # the usual start is too flat to tell scores apart
    return model.eval().requires_grad_(False)


def loaded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> LoadedModel:
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        source="tiny",
        fingerprint="",
        dtype=torch.float32,
        context_length=CONTEXT,
        eos_ids=frozenset({2}),
    )


def paged(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    *,
    page_size: int = 4,
    pages: int = 200,
    share: bool = True,
    max_batch_tokens: int = 16_384,
    label: str | None = None,
) -> CausalReward:
    """The reward of a decoder through pages."""
    pool = PagePool(pages + 1, page_size, share=share)
    labels = labels_of(model)
    head = LinearHead.of(label_signs("r", "tiny", labels, label), model.score.weight)
    runner = ModelRunner(model.base_model, pool)
    context = min(CONTEXT, pages * page_size)
    read_by = Model("r", runner, Vocabulary(tokenizer, len(WORDS)), context, frozenset({2}), b"salt")
    return CausalReward("r", read_by, head, labels=labels, max_batch_tokens=max_batch_tokens)


def whole(kind: str, pad: str | None, **options: int) -> Reward:
    """A reward of a classifier, as a forward over padded rows or, for `paged`, through pages."""
    way, _, architecture = kind.rpartition(" ")
    model, tokenizer = tiny(architecture, pad_id=None if pad is None else 2), tokenizer_of(pad=pad)
    return paged(model, tokenizer, **options) if way else ClassifierReward("r", loaded(model, tokenizer), **options)


def pool_of(reward: CausalReward) -> PagePool:
    return reward._model.runner.pool


def pair(prompt: str, answer: str) -> Pair:
    return Pair((Message(role="user", content=prompt),), answer)


# Answers that end with the pad token are the trap: counting pads from the right would miss their end.
PAIRS = [
    pair("w1 w2", "w3"),
    pair("w1", " ".join(f"w{n}" for n in range(30))),
    pair("w5 w6 w7", "w8 </s>"),
    pair("w5 w6 w7", "w8 </s> </s>"),
    pair("w9", ""),
    pair("w9 w9 w9 w9", "w10 w11 w12 w13 w14"),
    pair("w20", "w21"),
]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "distilbert", "paged llama", "paged gpt2"])
@pytest.mark.parametrize("pad", ["</s>", None])
def test_scores_do_not_depend_on_batch_or_padding(kind: str, pad: str | None) -> None:
    reward = whole(kind, pad)
    alone = [reward.score([each])[0] for each in PAIRS]
    assert len({round(score, 3) for score in alone}) == len(PAIRS)
    for rows in (2, 7):
        batched = [score for at in range(0, 7, rows) for score in reward.score(PAIRS[at : at + rows])]
        assert batched == pytest.approx(alone, abs=1e-4)
    for budget in (1, 40, 75):
        small = whole(kind, pad, max_batch_tokens=budget)
        assert small.score(PAIRS) == pytest.approx(alone, abs=1e-4)
    assert reward.score([]) == []


@pytest.mark.parametrize("kind", ["llama", "bert", "paged llama", "paged gpt2"])
def test_score_is_the_logit_of_the_plain_forward(kind: str) -> None:
    plain = tiny(kind.split()[-1])
    reward = whole(kind, "</s>")
    for each in PAIRS:
        ids = [1, *(WORDS.index(word) for word in f"{each.messages[0]['content']} {each.answer}".split())]
        expected = plain(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)))
        last = (
            expected.logits
            if kind == "bert"
            else plain.score(plain.base_model(input_ids=torch.tensor([ids])).last_hidden_state[:, -1])
        )
        assert reward.score([each]) == pytest.approx([last.item()], abs=1e-4)


ANSWERS = [pair(" ".join(f"w{n}" for n in range(20)), f"w{n} w{2 * n}") for n in range(9)]


def counted(reward: CausalReward, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each prefill of the reward's model from here on."""
    runner, sizes = reward._model.runner, []
    plain = runner.prefill

    def prefill(chunks: list[Chunk]) -> torch.Tensor:
        sizes.append(sum(len(chunk.tokens) for chunk in chunks))
        return plain(chunks)

    monkeypatch.setattr(runner, "prefill", prefill)
    return sizes


@pytest.mark.parametrize("page_size", [1, 4, 7])
def test_answers_to_one_prompt_share_its_pages(page_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = paged(tiny("llama"), tokenizer_of(), share=False)
    reward = paged(tiny("llama"), tokenizer_of(), page_size=page_size)
    expected = alone.score(ANSWERS)
    sizes = counted(reward, monkeypatch)
    assert reward.score(ANSWERS) == pytest.approx(expected, abs=1e-4)
    shared = 21 // page_size * page_size  # <s> and 20 words
    assert sizes == [23, 8 * (23 - shared)]
    sizes.clear()
    assert reward.score(ANSWERS[:1]) == pytest.approx(expected[:1], abs=1e-4)
    assert sum(sizes) == 23 - 22 // page_size * page_size
    pool_of(reward).check([])


def test_pairs_of_another_salt_find_no_pages_of_each_other() -> None:
    reward = paged(tiny("llama"), tokenizer_of())
    first = pair(" ".join(f"w{n}" for n in range(14)), "w20 w21 w22")
    ours, theirs = (replace(first, salt=salt) for salt in (b"ours", b"theirs"))
    (alone,) = reward.judge([ours])
    together = reward.judge([theirs, ours])
    assert (alone.cached, *(judgement.cached for judgement in together)) == (0, 0, 16)
    assert together[0].score == pytest.approx(alone.score, abs=1e-4)
    assert [judgement.cached for judgement in reward.judge([first, theirs])] == [0, 16]


def test_a_conversation_that_grew_by_a_turn_costs_the_new_turn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = paged(tiny("llama"), tokenizer_of())
    first = pair(" ".join(f"w{n}" for n in range(14)), "w20 w21 w22")
    turn = Message(role="assistant", content=first.answer), Message(role="user", content="w30 w31")
    second = Pair((*first.messages, *turn), "w40")
    sizes = counted(reward, monkeypatch)
    (before,), (after,) = reward.judge([first]), reward.judge([second])
    assert (before.tokens, before.cached) == (18, 0)
    assert (after.tokens, after.cached) == (21, 16)  # whole pages of four tokens
    assert sizes == [18, 5]
    alone = paged(tiny("llama"), tokenizer_of(), share=False).judge([second])[0]
    assert alone.cached == 0
    assert after.score == pytest.approx(alone.score, abs=1e-4)


@pytest.mark.parametrize("labels", [1, 2, 3])
@pytest.mark.parametrize("kind", ["llama", "bert", "paged llama"])
def test_one_judgement_has_the_logits_of_all_labels(kind: str, labels: int) -> None:
    way, _, architecture = kind.rpartition(" ")
    plain, model = tiny(architecture, labels=labels), tiny(architecture, labels=labels)
    names = ("bad", "fair", "good")[:labels]
    model.config.id2label = dict(enumerate(names))
    label = "fair" if labels == 3 else None
    reward: Reward = paged(model, tokenizer_of(), label=label, share=False) if way else classifier(model, label)
    assert reward.labels == names
    for each, judgement in zip(PAIRS, reward.judge(PAIRS), strict=True):
        ids = torch.tensor([reward.encode(each)])
        hidden = plain.base_model(input_ids=ids).last_hidden_state[0, -1]
        logits = plain(input_ids=ids).logits[0] if kind == "bert" else plain.score(hidden)
        assert judgement.logits == pytest.approx(logits.tolist(), abs=1e-4)
        expected = {1: logits[0], 2: logits[-1] - logits[0], 3: logits[labels // 2]}[labels]
        assert judgement.score == pytest.approx(expected.item(), abs=1e-4)
        assert (judgement.tokens, judgement.cached) == (ids.numel(), 0)


def classifier(model: PreTrainedModel, label: str | None) -> ClassifierReward:
    return ClassifierReward("r", loaded(model, tokenizer_of()), label=label)


def test_a_programs_only_logit_is_its_score() -> None:
    reward = ProgramReward("short", Length(direction="shorter"))
    (judgement,) = reward.judge([pair("q", "one two")])
    assert (judgement.score, judgement.logits, judgement.tokens) == (-2.0, (-2.0,), 0)
    assert reward.labels == ("LABEL_0",)


def test_a_forward_stays_within_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = paged(tiny("llama"), tokenizer_of(), share=False, max_batch_tokens=10)
    sizes = counted(reward, monkeypatch)
    reward.score(PAIRS)
    assert max(sizes) <= 10
    assert sum(sizes) == sum(len(reward.encode(each)) for each in PAIRS)


def test_a_small_pool_is_used_in_turns() -> None:
    expected = paged(tiny("llama"), tokenizer_of()).score(PAIRS)
    reward = paged(tiny("llama"), tokenizer_of(), pages=9)
    assert reward.score(PAIRS) == pytest.approx(expected, abs=1e-4)
    pool_of(reward).check([])


def test_pages_are_given_back_when_scoring_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    reward = paged(tiny("llama"), tokenizer_of(), pages=12)
    pool = pool_of(reward)
    live = PageTable(pool)
    live.reserve(10 * 4)
    with pytest.raises(OutOfPages):
        reward.score(PAIRS)
    pool.check([live])
    live.free()
    assert len(reward.score(PAIRS)) == len(PAIRS)

    def broken(chunks: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(reward._model.runner, "prefill", broken)
    with pytest.raises(RuntimeError, match="no such kernel"):
        reward.score(PAIRS)
    pool.check([])


def test_a_row_that_breaks_leaves_no_trace() -> None:
    model, word = tiny("llama"), WORDS.index("w21")
    reward = paged(model, tokenizer_of(), pages=12)
    good = PAIRS[:1]
    expected = reward.score(good)
    weight = model.get_input_embeddings().weight
    weight[word] = math.nan
    for _ in range(3):
        with pytest.raises(GuideError, match="'r': a score is not finite"):
            reward.score([*good, pair("w20", " ".join(["w21"] * 30))])
        assert reward.score(good) == expected
    pool_of(reward).check([])


def test_the_chat_template_of_the_reward_model_is_used() -> None:
    tokenizer = tokenizer_of()
    tokenizer.chat_template = "{% for m in messages %}w50 {{ m.content }} w51 {% endfor %}"
    reward = ClassifierReward("r", loaded(tiny("llama"), tokenizer))
    assert reward.encode(pair("w1", "w2")) == [53, 4, 54, 53, 5, 54]
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(GuideError, match=r"'r': .*no such role"):
        reward.score(PAIRS)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("pages", [None, 20, 6])
def test_long_input_loses_its_beginning(bos: bool, pages: int | None) -> None:
    model, tokenizer = tiny("llama"), tokenizer_of(bos=bos)
    reward = ClassifierReward("r", loaded(model, tokenizer)) if pages is None else paged(model, tokenizer, pages=pages)
    ids = list(reward.encode(pair(" ".join(["w1"] * 60), "w2 w3")))
    assert len(ids) == (CONTEXT if pages is None else min(CONTEXT, pages * 4))
    assert ids[:2] == ([1, 4] if bos else [4, 4])
    assert ids[-3:] == [4, 5, 6]
    assert math.isfinite(reward.score([pair("w1", "w2 " * 100)])[0])


def test_an_open_conversation_ends_where_the_answer_begins() -> None:
    tokenizer = tokenizer_of()
    vocabulary = Vocabulary(tokenizer, len(WORDS))
    messages = [Message(role="system", content="w1"), Message(role="user", content="w2")]
    assert guide_prompt("g", vocabulary, messages) == [1, 4, 5]
    assert guide_prompt("g", vocabulary, []) == [1]
    tokenizer.chat_template = (
        "{% for m in messages %}w50 {{ m.content }} w51 {% endfor %}{% if add_generation_prompt %}w52{% endif %}"
    )
    assert guide_prompt("g", vocabulary, messages) == [53, 4, 54, 53, 5, 54, 55]
    tokenizer.chat_template = "{{ raise_exception('no such role') }}"
    with pytest.raises(InvalidRequest, match=r"guide 'g': .*no such role"):
        guide_prompt("g", vocabulary, messages)


def test_without_a_template_a_message_is_a_line() -> None:
    messages = [Message(role="system", content="Be kind."), Message(role="user", content="Hi")]
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    vocabulary = Vocabulary(tokenizer)
    assert vocabulary.decode(guide_prompt("g", vocabulary, messages)) == "Be kind.\nHi\n"
    ids = guide_transcript("g", vocabulary, messages, "Hello", limit=100)
    assert vocabulary.decode(ids) == "Be kind.\nHi\nHello"
    assert guide_transcript("g", vocabulary, messages, "Hello", limit=4) == ids[-4:]
    assert guide_transcript("g", vocabulary, [], "", limit=4) == [256]


def test_labels() -> None:
    def scores(model: PreTrainedModel, label: str | None) -> float:
        return ClassifierReward("r", loaded(model, tokenizer_of()), label=label).score(PAIRS[:1])[0]

    two = tiny("llama", labels=2)
    two.config.id2label = {0: "NEGATIVE", 1: "POSITIVE"}
    ids = torch.tensor([[1, 4, 5, 6]])
    logits = two(input_ids=ids).logits[0]
    assert scores(two, None) == pytest.approx((logits[1] - logits[0]).item(), abs=1e-5)
    assert scores(two, "POSITIVE") == scores(two, None)
    assert scores(two, "NEGATIVE") == -scores(two, None)
    three = tiny("llama", labels=3)
    three.config.id2label = {0: "x", 1: "y", 2: "z"}
    assert scores(three, "y") == pytest.approx(three(input_ids=ids).logits[0, 1].item(), abs=1e-5)
    with pytest.raises(GuideError, match="one of x, y, z"):
        scores(three, None)
    with pytest.raises(GuideError, match="no label 'w': use one of x, y, z"):
        scores(three, "w")


def test_scores_that_are_not_finite_name_the_guide() -> None:
    model = tiny("llama")
    model.score.weight.fill_(math.nan)
    with pytest.raises(GuideError, match="'taste'"):
        ClassifierReward("taste", loaded(model, tokenizer_of())).score(PAIRS)
    with pytest.raises(GuideError, match="'big'"):
        ProgramReward("big", Lexicon(weights={"a": 1e308})).score([pair("", "a a a a a")])


def of(program: Program, answer: str) -> float:
    return program.score("prompt", answer)


def test_length() -> None:
    assert of(Length(target=4), "a b c") == -0.25
    assert of(Length(target=4), "a b c d") == 0
    assert of(Length(target=4, unit="characters"), "a b c") == -0.25
    assert of(Length(direction="longer"), "a b c") == 3
    assert of(Length(direction="shorter", unit="characters"), "a b c") == -5
    for bad in ({}, {"target": 3, "direction": "longer"}):
        with pytest.raises(ValidationError, match="exactly one"):
            Length(**bad)


def test_keywords() -> None:
    both = Keywords(words=("cat", "red dog"), forbidden=("bad",))
    assert of(both, "The CAT and a red dog.") == 1
    assert of(both, "category, red dogs") == 0
    assert of(both, "cat! bad") == -0.5
    assert of(Keywords(words=("Cat",), case_sensitive=True), "cat") == 0
    assert of(Keywords(words=("c++", "(x)")), "c++ (x)") == 1
    assert of(Keywords(forbidden=("bad",)), "bad") == -1
    for bad in ({}, {"words": (" ",)}):
        with pytest.raises(ValidationError):
            Keywords(**bad)


def test_regex() -> None:
    assert of(Regex(pattern=r"\d+"), "a 12 b 3") == 1
    assert of(Regex(pattern=r"\d+"), "none") == 0
    assert of(Regex(pattern=r"\d+", mode="count"), "a 12 b 3") == 2
    assert of(Regex(pattern=r"x", max_characters=3), "abcx") == 0
    for bad in ("(", "a" * 1001, ""):
        with pytest.raises(ValidationError):
            Regex(pattern=bad)


@pytest.mark.parametrize(
    ("answer", "plain", "required"),
    [
        ('{"a": 1, "b": null}', 1, 1),
        (' {"a": 1}\n', 1, 0),
        ("[1, 2]", 1, 0),
        ('{"a": 1,}', 0, 0),
        ("NaN", 0, 0),
        ('{"a": Infinity, "b": 1}', 0, 0),
        ("", 0, 0),
        ("[" * 100_000, 0, 0),
        ("1" * 5000, 0, 0),
    ],
)
def test_json(answer: str, plain: float, required: float) -> None:
    assert of(Json(), answer) == plain
    assert of(Json(required=("a", "b")), answer) == required


def test_lexicon() -> None:
    lexicon = Lexicon(weights={"Good": 1.0, "don't": -2.0})
    assert of(lexicon, "GOOD, good day now") == 2 / 2
    assert of(lexicon, "don't") == -2
    assert of(lexicon, "") == 0
    for bad in ({}, {"two words": 1.0}, {"a": math.inf}):
        with pytest.raises(ValidationError):
            Lexicon(weights=bad)


def test_programs_are_listed_by_kind() -> None:
    assert sorted(PROGRAMS) == ["json", "keywords", "length", "lexicon", "regex"]


def test_default_guides_score_what_they_say() -> None:
    rewards = {name: ProgramReward(name, program) for name, program in default_guides("some/model").items()}
    pairs = [pair("q", "a good answer"), pair("q", "bad")]
    better: dict[str, Literal[0, 1]] = {"length": 0, "brevity": 1, "lexicon": 0}
    for name, index in better.items():
        scores = rewards[name].score(pairs)
        assert scores[index] > scores[1 - index]
    assert rewards["json"].score([pair("q", "{}"), pair("q", "{")]) == [1, 0]
