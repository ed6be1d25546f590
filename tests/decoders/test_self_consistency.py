"""Self-consistency: the exact law of the vote, and where it stops against a restatement on all answers."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from toy import Toy, byte_tokenizer

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Failure
from trimtab.engine.sampling import SamplingParams

PROMPT, EOS, VOCAB = [1], 10, 100
DIGITS = {"4": 0.5, "7": 0.3, "9": 0.2}
ID = {character: byte_tokenizer().encode(character)[0] for character in "479ab"}


def digit_and_tail(prefix: Sequence[int]) -> np.ndarray:
    """A digit by DIGITS, then the letter a with probability 0.7 each time, else the end."""
    logits = np.full(VOCAB, -1e9)
    if len(prefix) == len(PROMPT):
        for digit, probability in DIGITS.items():
            logits[ID[digit]] = math.log(probability)
    else:
        logits[ID["a"]], logits[EOS] = math.log(0.7), math.log(0.3)
    return logits


def no_digit(prefix: Sequence[int]) -> np.ndarray:
    logits = np.full(VOCAB, -1e9)
    logits[[ID["a"], ID["b"], EOS]] = 0.0
    return logits


def toy(**options: Any) -> Toy:
    return Toy(options.pop("logits", digit_and_tail), eos=EOS, **options)


def decoding(**fields: Any) -> dict[str, Any]:
    return {"strategy": "self_consistency", **fields}


def test_the_choice_follows_the_law_of_a_vote() -> None:
    """Of three answers of one token: the value that two share, else the first one's; 2000 requests."""
    law: Counter[str] = Counter()
    for answers in product(DIGITS, repeat=3):
        votes = Counter(answers)
        winner = max(answers, key=lambda each: votes[each])  # max keeps the first of equals
        law[winner] += math.prod(DIGITS[each] for each in answers)  # type: ignore[assignment]
    machine, runs = toy(), 2000
    handles = [
        machine.submit(PROMPT, SamplingParams(seed=seed, max_tokens=1), decoding=decoding(n=3)) for seed in range(runs)
    ]
    machine.finish()
    found = Counter(machine.result(handle).choices[0].text for handle in handles)
    distance = 0.5 * sum(abs(found[each] / runs - law[each]) for each in DIGITS)
    assert distance < 0.03, f"total variation {distance:.4f}"


def lead(first: int, second: int) -> float:
    """P(p > 1/2) under the density p^first (1 - p)^second, by a midpoint sum."""
    p = (np.arange(20_000) + 0.5) / 20_000
    density = p**first * (1 - p) ** second
    return float(density[p > 0.5].sum() / density.sum())


def stop(answers: Sequence[tuple[str, int]], least: int, share: float, confidence: float) -> tuple[int, str]:
    """How many of the answers (vote, ticks) have ended when the vote is over, and what it says."""
    for tick in sorted({ticks for _, ticks in answers}):
        ended = [vote for vote, ticks in answers if ticks <= tick]
        (best, first), *others = [*Counter(ended).most_common(2), ("", 0)]
        second, missing = others[0][1], len(answers) - len(ended)
        sure = len(ended) >= least and (first / len(ended) >= share or lead(first, second) >= confidence)
        if sure or first > second + missing or not missing:
            return len(ended), best if first > second else ""
    raise AssertionError


@pytest.mark.parametrize(
    ("least", "share", "confidence"),
    [(3, 0.75, 0.95), (1, 1.0, 0.95), (2, 1.0, 0.8), (4, 0.6, 1.0), (8, 0.0, 0.0)],
)
def test_it_stops_where_the_vote_is_clear(least: int, share: float, confidence: float) -> None:
    early, spent = 0, [0, 0]
    for seed in range(40):
        sampling = SamplingParams(seed=seed, max_tokens=12)
        machine = toy()
        everything = machine.run(PROMPT, sampling, decoding=decoding(select={"rule": "majority", "extract": "text"}))
        answers = [(each.text[0], each.tokens) for each in everything.candidates]
        assert len(answers) == 8
        assert everything.report["early"] is False
        drawn, winner = stop(answers, least, share, confidence)

        fields = {"least": least, "share": share, "confidence": confidence}
        result = machine.run(PROMPT, sampling, decoding=decoding(**fields))
        assert result.report["drawn"] == drawn == len(result.candidates)
        assert result.report["early"] is (drawn < 8)
        assert not winner or result.choices[0].text[0] == winner
        counts = Counter(each.text[0] for each in result.candidates).most_common(2)
        first, second = [*(count for _, count in counts), 0][:2]
        assert result.report["share"] == pytest.approx(first / drawn)
        assert result.report["posterior"] == pytest.approx(lead(first, second), abs=1e-3)
        assert result.report["votes"][0]["answers"] == first
        early += drawn < 8
        spent = [
            old + sum(each.usage.model_tokens.values()) for old, each in zip(spent, (result, everything), strict=True)
        ]
    assert early > 3
    assert spent[0] < spent[1]


def test_rewards_weigh_the_votes() -> None:
    """The winner by the sum of exp(r / T) over all answers, and the best-scored answer that says so."""
    value = {"4": -1.0, "7": 1.0, "9": 0.4}

    def reward(text: str) -> float:
        return value[text[0]] + 0.01 * len(text)

    turned = 0
    for seed in range(25):
        fields = {"n": 6, "reward": "x", "vote_temperature": 0.8, "least": 6}
        result = toy(rewards={"x": reward}).run(PROMPT, SamplingParams(seed=seed), decoding=decoding(**fields))
        texts = [each.text for each in result.candidates]
        assert [each.reward for each in result.candidates] == pytest.approx([reward(text) for text in texts])
        weights: Counter[str] = Counter()
        for text in texts:
            weights[text[0]] += math.exp(reward(text) / 0.8)  # type: ignore[assignment]
        winner = max(weights, key=lambda vote: weights[vote])
        assert result.choices[0].text == max((text for text in texts if text[0] == winner), key=reward)
        assert result.report["share"] == pytest.approx(weights[winner] / sum(weights.values()))
        assert "posterior" not in result.report
        turned += winner != Counter(text[0] for text in texts).most_common(1)[0][0]
    assert turned > 2  # else the weights would decide nothing


def test_a_share_of_the_weight_stops_a_weighted_vote() -> None:
    early = 0
    for seed in range(20):
        result = toy(rewards={"flat": lambda text: -3.0}).run(
            PROMPT, SamplingParams(seed=seed, max_tokens=20), decoding=decoding(reward="flat", least=2, share=0.75)
        )
        counts = Counter(each.text[0] for each in result.candidates)
        clear = max(counts.values()) / counts.total() >= 0.75 and counts.total() >= 2
        assert clear or result.report["drawn"] == 8
        early += result.report["early"]
    assert early > 3


def test_failed_rewards_do_not_vote() -> None:
    """Answers that say 4 fail: whoever else there is wins, and if nobody is left the guide is named."""
    for seed in range(10):
        machine = toy(rewards={"x": lambda text: math.nan if text[0] == "4" else 0.0})
        handle = machine.submit(PROMPT, SamplingParams(seed=seed), decoding=decoding(n=4, reward="x", least=4))
        machine.finish()
        end = machine.end(handle)
        if isinstance(end, Failure):
            assert "'x'" in str(end.error)
        else:
            assert end.choices[0].text[0] != "4"


def test_answers_without_a_vote_never_stop_it() -> None:
    result = toy(logits=no_digit).run(PROMPT, SamplingParams(seed=1), decoding=decoding(least=1, share=0.0))
    assert result.report["drawn"] == 8
    assert result.report["votes"] == []
    assert result.report["share"] == 0.0
    assert result.choices[0].text == result.candidates[0].text


def test_extract_says_what_counts_as_the_same() -> None:
    """As whole texts, answers of different length differ."""
    sampling = SamplingParams(seed=3, max_tokens=12)
    by_number = toy().run(PROMPT, sampling, decoding=decoding(least=8))
    by_text = toy().run(PROMPT, sampling, decoding=decoding(least=8, extract="text"))
    assert by_text.report["votes"][0]["vote"] in {each.text for each in by_text.candidates}
    assert by_text.report["share"] < by_number.report["share"]


def test_answers_stand_in_the_order_of_their_drawing() -> None:
    """Not in that of their ending, so that a level vote falls to the same answer whatever else decodes."""
    machine, sampling = toy(rewards={"flat": lambda text: 0.0}), SamplingParams(seed=4, max_tokens=12)
    voted = machine.run(PROMPT, sampling, decoding=decoding(select="mbr"))
    plain = machine.run(PROMPT, sampling, decoding={"strategy": "best_of_n", "n": 8, "reward": "flat"})
    assert [each.text for each in voted.candidates] == [each.text for each in plain.candidates]
    assert [each.tokens for each in voted.candidates] != sorted(each.tokens for each in voted.candidates)


def test_several_choices_are_different_votes_and_enough_of_them() -> None:
    for seed in range(20):
        result = toy().run(PROMPT, SamplingParams(seed=seed, max_tokens=20), n=3, decoding=decoding(least=1, share=0.0))
        assert len(result.choices) == 3
        votes = Counter(each.text[0] for each in result.candidates)
        assert len({each.text[0] for each in result.choices}) == min(3, len(votes))


def test_n_1_is_plain_sampling_with_the_same_seed() -> None:
    for seed in range(10):
        sampling = SamplingParams(seed=seed, max_tokens=8)
        one = toy().run(PROMPT, sampling, decoding=decoding(n=1))
        assert one.choices[0].token_ids == toy().run(PROMPT, sampling).choices[0].token_ids


def test_greedy_answers_agree_at_once() -> None:
    result = toy().run(PROMPT, SamplingParams(seed=0, temperature=0.0, max_tokens=6), decoding=decoding(n=4))
    assert result.choices[0].text == "4aaaaa"
    assert result.report["share"] == 1.0


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"vote_temperature": 0.5}, "", "name a reward"),
        ({"extract": "regex"}, ".extract", "'boxed'"),
        ({"n": 257}, ".n", "256"),
        ({"share": 1.1}, ".share", "less than or equal to 1"),
        ({"temperature": 0.5}, ".temperature", "unknown decoding key"),
    ],
)
def test_a_wrong_key_is_named(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse(decoding(**fields))
    assert caught.value.param == f"decoding{param}"


def test_the_echo_parses_to_the_same() -> None:
    spec = DecodingSpec.parse(decoding(reward="x", vote_temperature=2, extract="boxed"))
    assert DecodingSpec.parse(spec.dump()) == spec
    assert spec.temperature == 0.7
    assert DecodingSpec.parse(decoding()).dump().get("select") is None
