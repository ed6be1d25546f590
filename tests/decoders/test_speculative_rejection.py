"""Speculative rejection against the same drafts ranked by hand, and against best-of-n where nothing is dropped."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from toy import Toy, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Candidate, Failure, Result
from trimtab.engine.sampling import SamplingParams

VOCAB, LENGTH, PROMPT = 12, 12, [1, 5, 2]
"""every token is one character"""
TABLE = random_table(VOCAB)
EOS = 3
SCHEDULE = [2, 5, 9]
Score = Callable[[str], float]


def noise(salt: int) -> Score:
    """A reward drawn once per text."""
    return lambda text: float(np.random.default_rng([salt, 0, *text.encode()]).normal())


TASTE, GLANCE = noise(1), noise(2)


def search(
    strategy: str, *, seed: int = 1, choices: int = 1, length: int = LENGTH, reward: Score = TASTE, **changes: Any
) -> Result:
    toy = Toy(TABLE, eos=EOS, rewards={"taste": reward, "glance": GLANCE})
    sampling = SamplingParams(seed=seed, max_tokens=length, stop=changes.pop("stop", ()))
    return toy.run(PROMPT, sampling, n=choices, decoding={"strategy": strategy, "reward": "taste", **changes})


def rejecting(**changes: Any) -> Result:
    return search("speculative_rejection", **{"n": 8, "schedule": SCHEDULE, **changes})


def by_hand(
    drafts: Sequence[Candidate], *, alpha: Fraction, rank: Score = TASTE, length: int = LENGTH
) -> tuple[list[int], list[int], int]:
    """From whole drafts: tokens that each would have got, how many are left after each stage, and the best."""
    left, tokens, kept = list(range(len(drafts))), [draft.tokens for draft in drafts], [len(drafts)]
    for end in SCHEDULE:
        keep = max(1, math.ceil((1 - alpha) * len(left)))
        over = {i for i in left if drafts[i].tokens < end + (drafts[i].finish_reason == "stop")}
        if keep == len(left) or len(over) == len(left) or end >= length:
            break
        standing = {i: rank(drafts[i].text[:end]) for i in left}
        best = sorted(left, key=lambda i: -standing[i])[:keep]
        for i in set(left) - set(best):
            tokens[i] = min(tokens[i], end)
        left = [i for i in left if i in best]
        kept.append(keep)
    return tokens, kept, max(left, key=lambda i: TASTE(drafts[i].text))


@pytest.mark.parametrize("alpha", ["0", "1/4", "1/2", "7/10", "9/10"])
@pytest.mark.parametrize("glance", [None, "glance"])
def test_each_stage_keeps_the_best_so_far(alpha: str, glance: str | None) -> None:
    """The drafts are those of best-of-n with the same seed, which knows how they would have ended."""
    for seed in range(12):
        drafts = search("best_of_n", seed=seed, n=10).candidates
        rank = TASTE if glance is None else GLANCE
        tokens, kept, best = by_hand(drafts, alpha=Fraction(alpha), rank=rank)
        result = rejecting(seed=seed, n=10, alpha=float(Fraction(alpha)), value=glance)
        assert [candidate.tokens for candidate in result.candidates] == tokens
        assert result.report["kept"] == kept
        assert [candidate.choice for candidate in result.candidates].index(0) == best
        assert result.choices[0].text == drafts[best].text
        assert result.candidates[best].reward == pytest.approx(TASTE(drafts[best].text))


def test_the_seeds_meet_finished_and_unfinished_drafts_at_the_stages() -> None:
    drafts = [draft for seed in range(12) for draft in search("best_of_n", seed=seed, n=10).candidates]
    assert {draft.tokens for draft in drafts} >= {1, 2, 3, 5, 9, LENGTH}


@pytest.mark.parametrize("rule", ["argmax", "soft"])
def test_alpha_0_is_best_of_n_with_the_same_seed(rule: str) -> None:
    for seed in range(10):
        best = search("best_of_n", seed=seed, choices=2, n=6, select=rule)
        same = rejecting(seed=seed, choices=2, n=6, alpha=0.0, select=rule)
        assert same.choices == best.choices
        assert same.candidates == best.candidates


def test_what_is_dropped_is_not_decoded() -> None:
    all_of_it, half, most = (rejecting(alpha=alpha) for alpha in (0.0, 0.5, 0.75))
    spent = [result.usage.model_tokens["base"] for result in (all_of_it, half, most)]
    written = [sum(each.tokens for each in result.candidates) for result in (all_of_it, half, most)]
    assert spent[0] > max(spent[1:])
    assert spent[0] - spent[1] == written[0] - written[1]
    assert spent[1] - spent[2] == written[1] - written[2]


def test_an_answer_that_has_ended_is_scored_once() -> None:
    """Short answers rank high here, so that the first ones to end go through every stage."""
    calls: Counter[str] = Counter()

    def brief(text: str) -> float:
        calls[text] += 1
        return -float(len(text))

    stages = 0
    for seed in range(10):
        calls.clear()
        result = rejecting(seed=seed, reward=brief, alpha=0.25)
        ended = Counter(each.text for each in result.candidates if each.reward is not None)
        unlike_drafts = [text for text in ended if len(text) not in SCHEDULE]
        assert all(calls[text] == ended[text] for text in unlike_drafts)
        stages += sum(len(result.report["kept"]) > 2 for text in unlike_drafts if len(text) < SCHEDULE[0])
    assert stages > 5


def test_a_draft_on_which_the_guide_fails_is_dropped_first() -> None:
    failed = 0
    for seed in range(8):
        drafts = search("best_of_n", seed=seed, n=8).candidates
        bad = Counter(draft.text[:1] for draft in drafts).most_common()[-1][0]
        result = rejecting(seed=seed, reward=lambda text, bad=bad: math.nan if text[:1] == bad else -100.0 - len(text))
        failed += sum(draft.text[:1] == bad for draft in drafts)
        dropped = [each.tokens < draft.tokens for each, draft in zip(result.candidates, drafts, strict=True)]
        assert all(
            gone or draft.tokens <= 2 for gone, draft in zip(dropped, drafts, strict=True) if draft.text[:1] == bad
        )
        assert result.choices[0].text[:1] != bad
    assert failed > 8


def test_an_ended_draft_on_which_the_guide_fails_is_dropped_too() -> None:
    """Only what has ended by then is shorter than the one stage of 6 tokens."""
    seen = 0
    for seed in range(16):
        good = [len(draft.text) >= 6 for draft in search("best_of_n", seed=seed, n=4).candidates]
        if sum(good) == 2:
            seen += 1
            result = rejecting(
                seed=seed, n=4, schedule=[6], reward=lambda text: math.nan if len(text) < 6 else -float(len(text))
            )
            ranked = [each.reward is not None and not math.isnan(each.reward) for each in result.candidates]
            assert ranked == good
    assert seen > 2


def test_a_guide_that_always_fails_is_named() -> None:
    toy = Toy(TABLE, rewards={"taste": lambda text: math.nan})
    decoding = {"strategy": "speculative_rejection", "reward": "taste", "schedule": SCHEDULE, "n": 4}
    handle = toy.submit(PROMPT, SamplingParams(seed=1, max_tokens=LENGTH), decoding=decoding)
    toy.finish()
    end = toy.end(handle)
    assert isinstance(end, Failure)
    assert "taste" in str(end.error)


def test_equal_rewards_keep_the_first() -> None:
    result = rejecting(reward=lambda text: 0.0, n=8, alpha=0.5)
    assert result.candidates[0].choice == 0
    assert result.report["kept"][:2] == [8, 4]


@pytest.mark.parametrize("length", [0, 1, 2])
def test_answers_shorter_than_the_first_stage_are_best_of_n(length: int) -> None:
    for seed in range(4):
        best, same = search("best_of_n", seed=seed, n=6, length=length), rejecting(seed=seed, n=6, length=length)
        assert (same.choices, same.candidates) == (best.choices, best.candidates)
        assert same.report["kept"] == [6]


def test_a_stop_string_within_a_stage_ends_a_draft() -> None:
    """A stop string of two tokens; drafts are cut before it, and compete with the text that is left."""
    for seed in range(6):
        plain = search("best_of_n", seed=seed, n=6).candidates
        stop = plain[0].text[3:5]
        if len(stop) < 2:
            continue
        drafts = search("best_of_n", seed=seed, n=6, stop=(stop,)).candidates
        assert drafts[0].finish_reason == "stop"
        tokens, kept, best = by_hand(drafts, alpha=Fraction(1, 2))
        result = rejecting(seed=seed, n=6, stop=(stop,))
        assert (result.report["kept"], result.choices[0].text) == (kept, drafts[best].text)
        assert [candidate.tokens for candidate in result.candidates] == tokens


def test_as_many_drafts_stay_as_there_are_choices() -> None:
    result = rejecting(n=4, choices=3, alpha=0.9)
    assert result.report["kept"] == [4, 3]
    assert len({choice.text for choice in result.choices}) == 3
    rewards = [TASTE(choice.text) for choice in result.choices]
    assert rewards == sorted(rewards, reverse=True)


def test_the_text_of_a_sole_survivor_is_sent_at_once() -> None:
    toy = Toy(TABLE, rewards={"taste": TASTE})
    decoding = {"strategy": "speculative_rejection", "reward": "taste", "n": 2, "schedule": [4]}
    handle = toy.submit(PROMPT, SamplingParams(seed=1, max_tokens=LENGTH), decoding=decoding)
    toy.finish()
    deltas, (choice,) = toy.deltas(handle), toy.result(handle).choices
    assert deltas[0].token_ids == choice.token_ids[:4]
    assert "".join(delta.text for delta in deltas) == choice.text
    assert sum((delta.token_ids for delta in deltas), ()) == choice.token_ids


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": [4, 4]}, "do not rise"),
        ({"schedule": [8, 4]}, "do not rise"),
        ({"schedule": []}, "at least 1"),
        ({"schedule": [0]}, "greater than or equal to 1"),
        ({"alpha": 1.0}, "less than 1"),
        ({"n": 257}, "less than or equal to 256"),
    ],
)
def test_a_wrong_parameter_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        DecodingSpec.parse({"strategy": "speculative_rejection", "reward": "x", **changes})
