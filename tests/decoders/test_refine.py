"""Refine: what the rewriter reads, who writes, what is returned, and how it ends early; texts are restated greedily."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from toy import Logits, Toy, byte_tokenizer, random_table

from trimtab.decoders.search.refine import INSTRUCTION
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import LanguageGuide
from trimtab.engine.results import Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Message, Vocabulary

VOCAB, LENGTH, PROMPT = 6, 5, [1, 5, 2]
TABLE = random_table(VOCAB)
ASKED = (Message(role="user", content="why?"),)
GREEDY = SamplingParams(temperature=0.0, max_tokens=LENGTH, seed=1)
VOCABULARY = Vocabulary(byte_tokenizer())


def other(prefix: Sequence[int]) -> np.ndarray:
    """The table of a second model."""
    return TABLE([0, *prefix])


def greedy(table: Logits, prompt: Sequence[int], length: int = LENGTH) -> str:
    """The text that a table goes on with."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(int(np.argmax(table(tokens))))
    return VOCABULARY.decode(tokens[len(prompt) :])


def rewritten(answer: str, table: Logits = TABLE, instruction: str = INSTRUCTION) -> str:
    """The greedy rewrite of an answer."""
    read = f"<user>why?\n<assistant>{answer}\n<user>{instruction}\n<assistant>"
    return greedy(table, VOCABULARY.encode(read))


ORIGINAL = greedy(TABLE, PROMPT)
FIRST = rewritten(ORIGINAL)
SECOND = rewritten(FIRST)


def toy(reward: Callable[[str], float] = len) -> Toy:
    engine = Toy(TABLE, rewards={"reward": reward})
    engine.add_lm("writer", other)
    return engine


def run(engine: Toy | None = None, sampling: SamplingParams = GREEDY, n_choices: int = 1, **parameters: Any) -> Result:
    decoding = {"strategy": "refine", **parameters}
    return (engine or toy()).run(PROMPT, sampling, n=n_choices, decoding=decoding, messages=ASKED)


def texts(result: Result) -> list[str]:
    return [each.text for each in result.candidates]


def preferring(*order: str) -> Callable[[str], float]:
    """A reward that is highest for the first of these texts; all others get 0."""
    return lambda text: float(len(order) - order.index(text)) if text in order else 0.0


def test_the_base_rewrites_after_the_question_its_answer_and_the_instruction() -> None:
    assert len({ORIGINAL, FIRST, SECOND}) == 3
    result = run()
    assert texts(result) == [ORIGINAL, FIRST]
    assert [each.choice for each in result.candidates] == [None, 0]
    assert result.choices[0].text == FIRST
    assert result.choices[0].finish_reason == "length"


def test_each_round_rewrites_the_last_one() -> None:
    result = run(rounds=3)
    assert texts(result) == [ORIGINAL, FIRST, SECOND, rewritten(SECOND)]
    assert result.choices[0].text == rewritten(SECOND)
    assert result.report == {"rounds": 3}


def test_a_request_may_give_its_own_instruction() -> None:
    assert run(instruction="Shorter!").choices[0].text == rewritten(ORIGINAL, instruction="Shorter!")


def test_another_model_rewrites_and_the_choice_is_in_the_bases_tokens() -> None:
    engine = toy()
    choice = run(engine, guide="writer").choices[0]
    assert choice.text == rewritten(ORIGINAL, other) != FIRST
    assert VOCABULARY.decode(choice.token_ids) == choice.text
    assert choice.finish_reason == "length", "the writer was cut off"


def test_a_writer_that_ends_its_text_ends_the_answer() -> None:
    engine = Toy(TABLE, eos=3)
    engine.add_lm("writer", lambda prefix: np.eye(VOCAB)[3 if prefix[-2:-1] == (2,) else 2])
    choice = run(engine, SamplingParams(temperature=0.0, max_tokens=9, seed=1), guide="writer").choices[0]
    assert (choice.text, choice.finish_reason) == (VOCABULARY.decode([2, 2]), "stop")


def test_a_writer_that_is_cut_off_says_so_though_its_text_is_short_in_the_bases_tokens() -> None:
    silent = 256  # a special token, which is no text
    engine = toy()
    engine.add_lm("writer", lambda prefix: np.eye(257)[2 if len(prefix) % 2 else silent])
    choice = run(engine, guide="writer").choices[0]
    assert len(choice.token_ids) < LENGTH
    assert choice.finish_reason == "length"


def test_a_writer_of_another_vocabulary_is_admitted() -> None:
    engine = toy()
    guide = engine.guides["writer"]
    assert isinstance(guide, LanguageGuide)
    engine.guides["writer"] = LanguageGuide("writer", guide.model, translation=None)
    assert run(engine, guide="writer").choices[0].text == rewritten(ORIGINAL, other)


@pytest.mark.parametrize("best", [ORIGINAL, FIRST, SECOND])
def test_the_best_of_the_original_and_the_rewrites_is_returned(best: str) -> None:
    order = [best, *(each for each in (SECOND, FIRST, ORIGINAL) if each != best)]
    result = run(toy(preferring(*order)), reward="reward", rounds=2)
    if best == ORIGINAL:  # which both rounds rewrite
        assert texts(result) == [ORIGINAL, FIRST, FIRST]
        assert result.report["best_by_round"] == [3.0, 3.0, 3.0]
        assert result.choices[0].text == ORIGINAL
    else:
        assert texts(result)[:2] == [ORIGINAL, FIRST]
        assert result.choices[0].text == best
        assert result.report["best_by_round"][-1] == 3.0
    assert [each.reward for each in result.candidates] == [float(3 - order.index(text)) for text in texts(result)]


def test_n_rewrites_are_independent_draws_and_the_best_goes_on() -> None:
    value = {"!": 2.0, '"': 1.0}
    engine = toy(lambda text: math.fsum(value.get(letter, 0.0) for letter in text))
    sampling = SamplingParams(max_tokens=LENGTH, seed=4)
    result = run(engine, sampling, reward="reward", n=6, rounds=2)
    plain = toy().run(PROMPT, sampling).choices[0]
    assert len(result.candidates) == 1 + 2 * 6
    assert result.candidates[0].text == plain.text
    assert len(set(texts(result)[1:7])) > 1
    rewards = [each.reward for each in result.candidates]
    assert result.report["best_by_round"] == [rewards[0], max(rewards[:7]), max(rewards)]
    assert result.choices[0].text == texts(result)[rewards.index(max(rewards))]


@pytest.mark.parametrize("guide", ["base", "writer"])
def test_a_rewrite_that_cannot_be_scored_loses(guide: str) -> None:
    engine = toy(lambda text: 0.0 if text == ORIGINAL else math.nan)
    result = run(engine, guide=guide, reward="reward", n=2)
    assert result.choices[0].text == ORIGINAL
    assert result.report["best_by_round"] == [0.0, 0.0]


def test_an_original_that_cannot_be_scored_loses() -> None:
    result = run(toy(lambda text: math.nan if text == ORIGINAL else 0.0), reward="reward")
    assert result.choices[0].text == FIRST
    assert result.report["best_by_round"] == [None, 0.0]


def test_without_a_reward_every_choice_is_rewritten_on_its_own() -> None:
    result = run(sampling=SamplingParams(max_tokens=LENGTH, seed=2), n_choices=3)
    assert len(result.candidates) == 6
    assert [each.choice for each in result.candidates] == [None, None, None, 0, 1, 2]
    assert [each.text for each in result.choices] == texts(result)[3:]


def test_with_a_reward_choices_are_the_best_in_order() -> None:
    result = run(toy(preferring(FIRST, ORIGINAL)), n_choices=2, reward="reward")
    assert [each.text for each in result.choices] == [FIRST, ORIGINAL]


@pytest.mark.parametrize("guide", ["base", "writer"])
@pytest.mark.parametrize("reward", [None, "reward"])
def test_an_answer_cut_off_while_it_is_rewritten_is_the_original(guide: str, reward: str | None) -> None:
    """The budget ends within the rewriter's reading of its prompt."""
    engine = toy(preferring(FIRST))
    budget = {"max_model_tokens": len(PROMPT) + LENGTH + 40}
    result = run(engine, guide=guide, reward=reward, budget=budget)
    assert result.choices[0].text == ORIGINAL
    assert result.choices[0].finish_reason == "length"
    assert result.stopped_by == "max_model_tokens"


def test_what_the_writer_has_finished_is_no_answer_before_it_is_said() -> None:
    """Some of 8 drafts have ended when the budget does; the reward would rather have any of them than the original."""
    sampling = SamplingParams(max_tokens=30, seed=1)
    original = Toy(TABLE, eos=3).run(PROMPT, sampling).choices[0].text

    def drafted(**options: Any) -> Result:
        engine = Toy(TABLE, eos=3, rewards={"reward": lambda text: float(text != original)})
        engine.add_lm("writer", other)
        return run(engine, sampling, guide="writer", reward="reward", n=8, **options)

    whole = drafted()
    assert len({len(text) for text in texts(whole)[1:]}) > 2
    result = drafted(budget={"max_model_tokens": sum(whole.usage.model_tokens.values()) - 4})
    assert result.stopped_by == "max_model_tokens"
    assert texts(result) == [result.choices[0].text] == [original]


def test_an_answer_cut_off_in_a_later_round_is_the_last_rewrite() -> None:
    whole = run(rounds=2).usage.model_tokens["base"]
    result = run(rounds=2, budget={"max_model_tokens": whole - 3})
    assert result.choices[0].text == FIRST
    assert result.stopped_by == "max_model_tokens"


def test_an_original_that_is_good_enough_is_not_rewritten() -> None:
    result = run(toy(preferring(ORIGINAL)), reward="reward", budget={"reward_at_least": 1.0})
    assert result.choices[0].text == ORIGINAL
    assert texts(result) == [ORIGINAL]
    assert result.stopped_by == "reward_at_least"


@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({"n": 2}, "decoding", "choose among n=2 rewrites: name a reward"),
        ({"rounds": 0}, "decoding.rounds", "greater than or equal to 1"),
        ({"instruction": ""}, "decoding.instruction", "at least 1"),
        ({"instruction": "x" * 2001}, "decoding.instruction", "at most 2000"),
        ({"reward": 3}, "decoding.reward", "name of a guide or an object"),
    ],
)
def test_a_wrong_parameter_names_the_key_and_the_fix(parameters: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse({"strategy": "refine", **parameters})
    assert caught.value.param == param


@pytest.mark.parametrize("guide", ["wrter", "reward"])
def test_a_writer_that_is_no_language_model_is_refused(guide: str) -> None:
    with pytest.raises(InvalidRequest, match=r"a language model.* configured: writer") as caught:
        run(guide=guide)
    assert caught.value.param == "decoding.guide"


def test_defaults_are_told() -> None:
    assert DecodingSpec.parse({"strategy": "refine"}).dump() == {
        "strategy": "refine",
        "guide": "base",
        "rounds": 1,
        "n": 1,
        "reward": None,
        "instruction": INSTRUCTION,
    }
