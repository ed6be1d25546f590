"""Grammars: what is compiled and refused, the state of an answer, and answers of models that know no JSON."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from folders import foreign_folder
from jsonschema_rs import validator_for
from rows import p_value
from steered import furnish, guides, load, user
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from toy import Toy, byte_tokenizer, random_table
from transformers import PreTrainedTokenizerFast

from trimtab import LLM, SamplingParams
from trimtab.engine import limits
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.grammar import MAX_LEVELS, Grammar, Grammars, GrammarState
from trimtab.engine.results import Failure, Result
from trimtab.engine.sampler import Sampler
from trimtab.engine.vocabulary import Vocabulary
from trimtab.kernels.backend import Backend
from trimtab.requests import GenerationRequest

BYTES, END = 257, 256
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "größe": {"type": "number", "minimum": -5, "maximum": 5},
        "tags": {"type": "array", "items": {"enum": ["rot", "blau", 3, None]}, "minItems": 1, "maxItems": 3},
        "inner": {
            "type": "object",
            "properties": {"on": {"type": "boolean"}, "count": {"type": "integer", "minimum": 0, "maximum": 12}},
            "required": ["on"],
            "additionalProperties": False,
        },
        "更多": {"const": "“ja”"},
    },
    "required": ["name", "größe", "tags", "inner", "更多"],
    "additionalProperties": False,
}


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary(byte_tokenizer())


def start(grammar: Grammar, *ends: int) -> GrammarState:
    return Grammars().start(grammar, vocabulary(), ends)


def spelled(text: str) -> list[int]:
    return vocabulary().encode(text)


SPACES = dict.fromkeys(spelled("\t\n\r "), -100.0)


def toy(*, eos: int | None = END) -> Toy:
    return Toy(random_table(BYTES, scale=2.0), eos=eos)


def text(grammar: Grammar, *, eos: int | None = END, **sampling: Any) -> tuple[str, str]:
    choice = toy(eos=eos).run([1, 2], SamplingParams(**{"max_tokens": 90, "seed": 1} | sampling), grammar=grammar)
    return choice.choices[0].text, choice.choices[0].finish_reason


@pytest.mark.parametrize("seed", range(12))
def test_answers_of_a_random_model_satisfy_the_schema(seed: int) -> None:
    grammar = Grammar.json_schema(SCHEMA)
    answer, reason = text(grammar, seed=seed, max_tokens=400, logit_bias=SPACES)
    value = json.loads(answer)
    assert reason == "stop"
    assert validator_for(SCHEMA).is_valid(value)
    assert list(value) == SCHEMA["required"]


def test_any_object_will_do() -> None:
    for seed in range(8):
        answer, reason = text(
            Grammar.json_object(), seed=seed, max_tokens=300, logit_bias=SPACES | dict.fromkeys(spelled('}"'), 5.0)
        )
        assert reason == "length" or isinstance(json.loads(answer), dict)
        assert answer.startswith("{")


def test_an_answer_that_is_too_long_is_cut_off() -> None:
    answer, reason = text(Grammar.json_schema(SCHEMA), max_tokens=7)
    assert reason == "length"
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer)


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (Grammar.json_schema({"type": "foo"}), "Invalid type: foo"),
        (Grammar.json_schema({"not": {}}), "Unimplemented keys"),
        (Grammar.json_schema({"$ref": "#/nowhere"}), "does not exist"),
        (Grammar.json_schema({"$ref": "http://127.0.0.1/x"}), "not present"),
        (Grammar.json_schema({"enum": []}), "Unsatisfiable"),
        (Grammar.json_schema({"type": "string", "pattern": "(?=a)b"}), "look-around"),
        (Grammar.regex("(a"), "unclosed group"),
        (Grammar.lark("start: nobody"), 'unknown name: "nobody"'),
        (Grammar.lark("start: a|b|:"), "1(12)"),
        (Grammar.regex("a\ud800"), "lone surrogate"),
        (Grammar.regex("a" * 70_000), "make it smaller"),
        (Grammar.lark("start: a0\n" + "".join(f"a{i}: a{i + 1}\n" for i in range(600)) + 'a600: "x"'), "more than 500"),
    ],
)
def test_what_cannot_be_used_is_told(grammar: Grammar, reason: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        start(grammar)
    assert reason in str(refused.value)
    assert refused.value.param == "response_format"
    assert "\n" not in str(refused.value)


def chain(count: int) -> dict[str, Any]:
    """Definitions each of which refers to the next one."""
    each = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**each, f"d{count}": {}}}


def test_schemas_so_deep_that_the_compiler_would_run_out_of_stack_are_refused() -> None:
    start(Grammar.json_schema(chain(MAX_LEVELS // 4)))
    with pytest.raises(InvalidRequest, match="levels deep"):
        start(Grammar.json_schema(chain(MAX_LEVELS)))
    nested: dict[str, Any] = {}
    for _ in range(2000):
        nested = {"items": nested}
    with pytest.raises(InvalidRequest):
        start(Grammar.json_schema(nested))


@pytest.mark.parametrize("schema", [{"a": {1, 2}}, {"a": float("nan")}])
def test_a_schema_is_json(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="no JSON"):
        Grammar.json_schema(schema)


def test_a_tokenizer_that_hides_its_bytes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Vocabulary, "exact", False)
    with pytest.raises(InvalidRequest, match="does not spell bytes"):
        start(Grammar.json_object())


def test_slashes_in_a_regular_expression() -> None:
    for pattern, matching in ((r"a/b", "a/b"), (r"a\/b", "a/b"), (r"\\/", "\\/"), (r"[/]", "/")):
        state = start(Grammar.regex(pattern))
        assert state.fitting(spelled(matching)) == len(matching)


def test_a_state_forks_and_goes_back() -> None:
    state = start(Grammar.regex("ab?c*"))
    (a,), (b,), (c,) = map(spelled, "abc")
    assert state.fitting([a, b, b]) == 2
    assert not state.may_end()
    assert state.may_end([a, b])
    assert not state.may_end([b])
    state.take(a)
    assert state.may_end()
    other = state.fork()
    other.take(b)
    assert (other.fitting([b]), state.fitting([b])) == (0, 1)
    other.take(c)
    other.trim(1)
    assert other.fitting([b, c]) == 2
    other.trim(5)
    assert other.fitting([b, c]) == 2
    assert not other.complete
    other.take(a)
    assert other.error is not None
    assert not other.complete


def test_spaces_between_signs_are_few() -> None:
    state = start(Grammar.json_object())
    assert state.fitting(spelled("{" + " " * 100)) == 33


def test_every_spelling_of_a_text_is_allowed() -> None:
    """Not only the usual one: tokens of several bytes beside those of one."""
    made = Vocabulary(pair_tokenizer())
    state = Grammars().start(Grammar.regex("abab"), made)
    one, two = made.tokens["a"], made.tokens["ab"]
    assert state.fitting([two, two]) == 2
    assert state.fitting([one, made.tokens["b"], two]) == 3


def pair_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {c: i for i, c in enumerate(alphabet)} | {"ab": 256}
    tokenizer = Tokenizer(models.BPE(vocab=words, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_the_law_is_the_base_renormalised_at_every_step() -> None:
    """All texts of one to three signs out of two, against the product of what the base gives the allowed tokens."""
    table, prompt, count = random_table(BYTES, scale=1.5), [3, 4], 4000
    expected: dict[tuple[int, ...], float] = {}

    def follow(answer: tuple[int, ...], probability: float) -> None:
        if len(answer) == 3:  # nothing can follow: the answer is over
            expected[answer] = probability
            return
        allowed = [0, 1, END] if answer else [0, 1]
        z = np.exp(table([*prompt, *answer])[allowed])
        for token, share in zip(allowed, z / z.sum(), strict=True):
            if token == END:
                expected[*answer, END] = probability * share
            else:
                follow((*answer, token), probability * share)

    follow((), 1.0)
    assert sum(expected.values()) == pytest.approx(1.0)
    made = Toy(table, eos=END)
    result = made.run(prompt, SamplingParams(seed=1, max_tokens=9), n=count, grammar=Grammar.regex('[!"]{1,3}'))
    seen = [choice.token_ids for choice in result.choices]
    assert set(seen) <= expected.keys()
    observed = torch.tensor([seen.count(answer) for answer in expected])
    assert p_value(observed, torch.tensor(list(expected.values()))) > 1e-3


def test_the_answer_ends_where_nothing_can_follow() -> None:
    assert text(Grammar.regex("a{3}"), ignore_eos=True) == ("aaa", "stop")
    assert text(Grammar.regex("a{1,3}"), ignore_eos=True) == ("aaa", "stop")
    assert text(Grammar.regex("a{3}"), eos=None) == ("aaa", "stop")


def test_the_grammar_comes_before_min_tokens() -> None:
    assert text(Grammar.regex("ab"), min_tokens=9) == ("ab", "stop")
    assert len(text(Grammar.regex("a{1,9}"), min_tokens=7, logit_bias={END: 100.0})[0]) == 7
    assert text(Grammar.regex("a{1,9}"), logit_bias={END: 100.0}) == ("a", "stop")


def test_a_bias_against_the_only_token_changes_nothing() -> None:
    assert text(Grammar.regex("a{2}"), logit_bias=dict.fromkeys(spelled("a"), -100.0), top_k=1) == ("aa", "stop")


def test_stop_tokens_end_an_answer_where_the_grammar_may_end() -> None:
    (b,) = spelled("b")
    liked = {"stop_token_ids": (b,), "logit_bias": {b: 100.0}}
    assert text(Grammar.regex("[ab]{2}d*"), **liked) == ("aa", "stop")
    assert text(Grammar.regex("ab"), **liked) == ("a", "stop")  # no other token is allowed


def test_a_stop_string_cuts_the_text() -> None:
    assert text(Grammar.regex("aabb"), stop=("bb",)) == ("aa", "stop")


def test_every_end_of_the_model_ends_the_answer() -> None:
    for end in (7, END):
        made = toy()
        made._eos = frozenset({7, END})
        choice = made.run([1, 2], SamplingParams(seed=1, logit_bias={end: 100.0}), grammar=Grammar.regex("a+")).choices[
            0
        ]
        assert (choice.text, choice.token_ids[-1]) == ("a", end)


def test_a_grammar_that_becomes_too_much_work_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = toy()
    error = InvalidRequest("the grammar cannot be followed: too much", param="response_format")
    monkeypatch.setattr(GrammarState, "error", property(lambda state: error))
    bound = made.submit([1, 2], SamplingParams(seed=1, max_tokens=4), grammar=Grammar.json_object())
    free = made.submit([1, 2], SamplingParams(seed=1, max_tokens=4))
    made.finish()
    end = made.end(bound)
    assert isinstance(end, Failure)
    assert end.error is error
    assert made.result(free).choices == toy().run([1, 2], SamplingParams(seed=1, max_tokens=4)).choices


def test_log_probabilities_stay_those_of_the_base() -> None:
    made = toy()
    choice = made.run([1, 2], SamplingParams(seed=1, logprobs=2), grammar=Grammar.regex("ab")).choices[0]
    table = random_table(BYTES, scale=2.0)
    for at, token in enumerate(choice.logprobs or ()):
        z = table([1, 2, *choice.token_ids[:at]])
        z = z - np.log(np.exp(z).sum())
        assert token.logprob == pytest.approx(z[token.id], abs=1e-5)
        assert token.top[0][0] == int(z.argmax())


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    place: Path = furnish(tmp_path_factory.mktemp("grammar"))
    foreign = foreign_folder(place / "foreign", seed=3)
    with load(place / "base", {**guides(place), "foreign": {"role": "lm", "model": str(foreign)}}) as llm:
        yield llm


def ask(llm: LLM, decoding: dict[str, Any] | None, grammar: Grammar, **sampling: Any) -> Result:
    given = {"max_tokens": 60, "seed": 2, "logit_bias": SPACES} | sampling
    request = GenerationRequest(
        messages=tuple(user()), sampling=SamplingParams.model_validate(given), decoding=decoding, grammar=grammar
    )
    (result,) = llm._run([request], progress=False)
    return result


SMALL = {"type": "object", "properties": {"a": {"enum": ["é", 12]}}, "required": ["a"], "additionalProperties": False}
PATHS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "fused": {"strategy": "genarm", "arm": "arm"},
    "plausible": {"strategy": "contrastive", "amateur": "anti"},
    "listed": {"strategy": "args", "reward": "taste", "k": 5},
    "written out": {"strategy": "cd", "value": "tokens"},
    "power mean": {"strategy": "mod", "weights": {"arm": 0.5, "base": 0.5}, "alpha": 0.5},
}


@pytest.mark.parametrize("name", PATHS)
def test_kernels_draw_under_the_mask_what_torch_draws(llm: LLM, name: str) -> None:
    found = []
    for backend in ("torch", "triton"):
        drawn: Backend = backend  # type: ignore[assignment]
        llm._worker.engine._sampler = Sampler(llm.guides, drawn)
        found.append(ask(llm, PATHS[name], Grammar.json_schema(SMALL), max_tokens=6).choices[0].token_ids)
    llm._worker.engine._sampler = Sampler(llm.guides)
    assert found[0] == found[1]
    assert start(Grammar.json_schema(SMALL)).fitting(found[0]) == 6


@pytest.mark.parametrize("strategy", ["nudging", "wsd", "refine"])
def test_a_guide_of_another_vocabulary_keeps_to_the_grammar(llm: LLM, strategy: str) -> None:
    own = {"guide": "foreign"} if strategy == "refine" else {"aligned": "foreign"}
    for seed in range(3):
        result = ask(llm, {"strategy": strategy, **own}, Grammar.json_schema(SMALL), seed=seed, max_tokens=120)
        (choice,) = result.choices
        assert choice.finish_reason == "stop" or strategy == "refine"
        if choice.finish_reason == "stop":
            assert validator_for(SMALL).is_valid(json.loads(choice.text))


def test_a_bad_grammar_is_refused_before_the_engine_hears_of_it(llm: LLM) -> None:
    bad = GenerationRequest(messages=tuple(user()), grammar=Grammar.json_schema({"type": "foo"}))
    with pytest.raises(InvalidRequest, match="Invalid type: foo"):
        llm.prepare(bad)


def test_rows_without_a_grammar_ask_for_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "token_masks", None)
    assert toy().run([1, 2], SamplingParams(seed=1, max_tokens=3)).choices
