"""DARWIN against a restatement on a toy, whose mutator writes what the test wants."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from toy import FunctionReward, Toy, byte_tokenizer, random_table

from trimtab.decoders.search.darwin import TEMPLATE, WAYS
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Result
from trimtab.engine.rewards import Judgement, Pair
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Message, Vocabulary

VOCAB, EOS = 257, 256
WORDS = Vocabulary(byte_tokenizer())
ASKED = (Message(role="system", content="s"), Message(role="user", content="Why?"))
LETTERS = [WORDS.tokens[each] for each in "abcdefgh"]


def spelled(messages: Sequence[Message]) -> list[int]:
    """A conversation as the toys read it."""
    return WORDS.encode("".join(f"<{each['role']}>{each['content']}\n" for each in messages) + "<assistant>")


PROMPT = spelled(ASKED)


def table(prefix: Sequence[int]) -> np.ndarray:
    """Eight letters, and the end of the answer."""
    z = np.full(VOCAB, -1e9)
    z[[*LETTERS, EOS]] = random_table(9)(prefix) - np.array([0.0] * 8 + [1.5])
    return z


def dictated(texts: Sequence[str], ends: bool = True) -> Callable[[Sequence[int]], np.ndarray]:
    """A model that answers the i-th way of asking with the i-th text."""
    prompts = [WORDS.encode(f"<user>{TEMPLATE.format(instruction='Why?', way=way)}\n<assistant>") for way in WAYS]
    answers = {
        tuple(p): [*WORDS.encode(text), *([EOS] if ends else [])] for p, text in zip(prompts, texts, strict=True)
    }

    def logits(prefix: Sequence[int]) -> np.ndarray:
        z = np.zeros(VOCAB)
        for prompt, answer in answers.items():
            if tuple(prefix[: len(prompt)]) == prompt:
                z[(answer * 100)[len(prefix) - len(prompt)]] = 1e9
        return z

    return logits


def taste(text: str) -> float:
    """A reward drawn once per text."""
    return float(np.random.default_rng([3, *text.encode()]).normal())


def toy(
    reward: Callable[[str], float] = taste, mutations: Sequence[str] = ("How?", "Who?", "When?"), **options: Any
) -> Toy:
    made = Toy(table, rewards={"taste": reward}, eos=EOS, **options)
    made.add_lm("mutator", dictated(mutations))
    return made


def darwin(**changes: object) -> dict[str, object]:
    return {"strategy": "darwin", "reward": "taste", "mutator": "mutator", "mutations": 3, **changes}


def run(engine: Toy, sampling: SamplingParams, n: int = 1, **changes: object) -> Result:
    return engine.run(PROMPT, sampling, n=n, decoding=darwin(**changes), messages=ASKED)


def restated(texts: Sequence[str], *, m: int, elite: int, length: int, seed: int) -> tuple[str, int, int]:
    """The greedy search: the answer's text, rounds and replacements."""
    random = np.random.default_rng(seed)
    prompts = [spelled((ASKED[0], Message(role="user", content=text))) for text in ("Why?", *texts)]
    answers: list[list[int]] = [[] for _ in prompts]
    values = [0.0] * len(prompts)
    alive = list(range(len(prompts)))
    rounds = replaced = 0

    def ended(i: int) -> bool:
        return len(answers[i]) == length or answers[i][-1:] == [EOS]

    def text(i: int) -> str:
        return WORDS.decode([token for token in answers[i] if token != EOS])

    while live := [i for i in alive if not ended(i)]:
        for i in live:
            for _ in range(m):
                if not ended(i):
                    answers[i].append(int(table([*prompts[i], *answers[i]]).argmax()))
            values[i] = taste(text(i))
        rounds += 1
        ranked = sorted(alive, key=lambda i: -values[i])
        for i in [i for i in ranked[elite:] if not ended(i)]:
            other = ranked[:elite][int(random.integers(min(elite, len(ranked))))]
            replaced += 1
            if ended(other):
                alive.remove(i)
            else:
                answers[i], values[i] = list(answers[other]), values[other]
    return text(max(alive, key=lambda i: taste(text(i)))), rounds, replaced


@pytest.mark.parametrize("elite", [1, 2, 4])
@pytest.mark.parametrize("m", [1, 3, 40])
def test_the_greedy_answer_is_that_of_the_restatement(m: int, elite: int) -> None:
    texts = ["How?", "Who?", "When?"]
    sampling = SamplingParams(temperature=0.0, max_tokens=14, seed=11)
    result = run(toy(), sampling, m=m, elite=elite)
    answer, rounds, replaced = restated(texts, m=m, elite=elite, length=14, seed=11)
    assert result.choices[0].text == answer
    assert result.report == {**result.report, "instructions": texts, "rounds": rounds, "replacements": replaced}
    assert result.choices[0].text == max((each.text for each in result.candidates), key=taste)


def test_without_instructions_and_replacements_it_is_best_of_n() -> None:
    for seed in range(5):
        sampling = SamplingParams(seed=seed, max_tokens=12)
        best = toy().run(PROMPT, sampling, n=2, decoding={"strategy": "best_of_n", "n": 4, "reward": "taste"})
        result = toy().run(PROMPT, sampling, n=2, decoding=darwin(elite=4, m=5))  # no conversation
        assert [each.token_ids for each in result.choices] == [each.token_ids for each in best.choices]
        assert result.report["replacements"] == 0


def test_no_mutations_leave_plain_sampling() -> None:
    sampling = SamplingParams(seed=5, max_tokens=12)
    result = run(toy(), sampling, mutations=0)
    assert result.choices[0].token_ids == toy().run(PROMPT, sampling).choices[0].token_ids
    assert result.report["instructions"] == []


@pytest.mark.parametrize(("texts", "tokens"), [(["", " \n", "Why?"], 96), (["How long is this?"] * 3, 5)])
def test_the_instruction_stands_for_variants_that_are_empty_or_cut_off(texts: list[str], tokens: int) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=10, seed=1)
    result = run(toy(mutations=texts), sampling, mutation_tokens=tokens, m=4)
    assert result.report["instructions"] == ["Why?"] * 3
    assert {each.text for each in result.candidates} == {run(toy(), sampling, mutations=0).choices[0].text}


def test_the_base_is_the_mutator_that_is_not_named() -> None:
    """It writes at the request's temperature, so that five variants of three ways differ."""
    engine = toy()
    result = run(engine, SamplingParams(seed=2, max_tokens=90), mutator="base", mutations=5)
    assert "mutator" not in result.usage.model_tokens
    texts = result.report["instructions"]
    assert len(texts) == 5
    assert len(set(texts) - {"Why?"}) >= 3
    assert all(set(text) <= set("abcdefgh") for text in texts if text != "Why?")


def test_every_reward_is_for_the_instruction_that_was_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[Pair] = []

    judge = FunctionReward.judge

    def listening(self: FunctionReward, pairs: Sequence[Pair]) -> list[Judgement]:
        heard.extend(pairs)
        return judge(self, pairs)

    monkeypatch.setattr(FunctionReward, "judge", listening)
    run(toy(), SamplingParams(seed=1, max_tokens=12), m=3)
    assert len(heard) > 8
    assert {each["content"] for pair in heard for each in pair.messages} == {"s", "Why?"}


def test_unfinished_answers_are_ranked_by_value_and_the_answer_by_reward() -> None:
    sampling = SamplingParams(seed=3, max_tokens=20)
    engine = Toy(table, rewards={"taste": taste, "length": lambda text: -taste(text)}, eos=EOS)
    engine.add_lm("mutator", dictated(["How?", "Who?", "When?"]))
    other = run(engine, sampling, m=4, elite=1, value="length")
    same = run(toy(), sampling, m=4, elite=1, value="taste")
    assert same.choices == run(toy(), sampling, m=4, elite=1).choices
    assert {each.text for each in other.candidates} != {each.text for each in same.candidates}
    assert other.choices[0].text == max((each.text for each in other.candidates), key=taste)


@pytest.mark.parametrize("value", [math.nan, 1.0])
def test_rewards_that_fail_or_tie_leave_the_first_ones_the_elite(value: float) -> None:
    def reward(text: str) -> float:
        return taste(text) if len(text) > 6 else value

    sampling = SamplingParams(seed=1, max_tokens=9, ignore_eos=True)
    result = run(toy(reward), sampling, m=3, elite=2)
    assert (result.report["rounds"], result.report["replacements"]) == (3, 4)  # none of what has ended
    starts = [each.text[:6] for each in result.candidates]
    assert set(starts[2:]) <= set(starts[:2])
    assert result.choices[0].text == max((each.text for each in result.candidates), key=taste)


def test_all_may_end_in_the_first_round_and_several_are_chosen_by_reward() -> None:
    engine = toy()
    result = run(engine, SamplingParams(seed=1, max_tokens=3), n=3)
    assert result.report["rounds"] == 1
    assert result.report["replacements"] == 0
    rewards = sorted((each.reward or 0.0 for each in result.candidates), reverse=True)
    assert [taste(choice.text) for choice in result.choices] == rewards[:3]


def test_what_all_answers_share_is_streamed_and_stop_strings_end_answers() -> None:
    shared = 0
    for seed in range(15):
        engine = toy(reward=lambda text: float(text.count("a")) + taste(text))
        sampling = SamplingParams(seed=seed, max_tokens=24, stop=("ab", "c"))
        handle = engine.submit(PROMPT, sampling, decoding=darwin(m=2, elite=1), messages=ASKED)
        engine.finish()
        choice = engine.result(handle).choices[0]
        deltas = engine.deltas(handle)
        shared += len(deltas) > 1
        assert "".join(delta.text for delta in deltas) == choice.text
        assert not {"ab", "c"} & {choice.text[i : i + k] for k in (1, 2) for i in range(len(choice.text))}
    assert shared > 2


def test_a_variant_is_never_the_answer_to_a_budget_that_runs_out() -> None:
    seen = set()
    for budget in range(450, 3000, 150):
        sampling = SamplingParams(seed=2, max_tokens=40, ignore_eos=True)
        result = run(toy(), sampling, m=3, budget={"max_model_tokens": budget})
        (choice,) = result.choices
        assert set(choice.text) <= set("abcdefgh")  # and none of "How?", "Who?", "When?"
        assert {each.text for each in result.candidates}.isdisjoint({"How?", "Who?", "When?"})
        seen.add((result.stopped_by, bool(choice.text)))
    assert {("max_model_tokens", False), ("max_model_tokens", True)} <= seen


def test_tokens_taken_over_keep_their_logprobs() -> None:
    result = run(toy(), SamplingParams(seed=7, max_tokens=12, logprobs=0, ignore_eos=True), m=3, elite=1)
    assert result.report["replacements"] > 0
    for choice in result.choices:
        assert choice.logprobs is not None
        assert [each.id for each in choice.logprobs] == list(choice.token_ids)


def test_more_choices_than_answers_that_are_sure_to_remain_are_refused() -> None:
    spec = DecodingSpec.parse(darwin(mutations=5))
    spec.check(choices=3, rewards=["taste"])
    with pytest.raises(InvalidRequest, match="elite=3, mutations=5") as caught:
        spec.check(choices=4, rewards=["taste"])
    assert caught.value.param == "n"
    with pytest.raises(InvalidRequest, match="nobody") as caught:
        toy().submit(PROMPT, decoding=darwin(mutator="nobody"))
    assert caught.value.param == "decoding.mutator"
