"""Steered requests side by side: each gets the same whoever is there and however small memory is; what it costs."""

from functools import cache
from typing import Any

import numpy as np
import pytest
from toy import Toy
from zoo import BASE, END, EOS, LMS, PROMPT, SCORERS, babble, positions, zoo

from trimtab.engine.errors import GuideError
from trimtab.engine.results import Choice, Failure, Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings

GENARM = {"method": "genarm", "arm": "a", "alpha": 0.5}
MIXED: list[dict[str, Any]] = [
    {"strategy": "args", "reward": "rm", "k": 3},
    {"strategy": "vas", "value": "v", "k": 2, "beta": 0.5},
    {"strategy": "vas", "value": "v", "k": 4},  # beside another k of the same scorer
    {"strategy": "rad", "reward": "v", "k": 4, "beta": 2.0},
    {"strategy": "fudge", "classifier": "rm", "k": 3, "limit": 2},
    {"strategy": "cd", "value": "q"},
    {"strategy": "cd", "value": "q2", "k": 2},
    {"strategy": "genarm", "arms": {"a": 0.5, "b": 0.5}},
    {"strategy": "pad", "arm": "b", "preference": "short"},
    {"strategy": "mod", "weights": {"a": 0.3, "b": 0.7}},
    {"strategy": "mod", "weights": {"a": 0.3, "b": 0.7}, "alpha": 1.0},
    {"strategy": "contrastive", "amateur": "a"},
    {"strategy": "contrastive", "amateur": "base", "amateur_sees_prompt": False},
    {"strategy": "cfg"},
    {"strategy": "re_control", "value": "h", "lr": 0.1, "n": 3},
    {"strategy": "control_vector", "vector": "c"},
    {"strategy": "control_vector", "vector": "c2", "measure_kl": True},
    {"strategy": "candidates", "top_p": 0.7},
    {"strategy": "args", "reward": "rm", "k": 3, "steer": [GENARM, {"method": "control_vector", "vector": "c"}]},
    {"strategy": "vas", "value": "rm", "k": 2, "steer": [{"method": "value", "guide": "v", "transform": "clamp"}]},
    {"strategy": "best_of_n", "reward": "length", "n": 3, "steer": [GENARM, {"method": "vas", "value": "v", "k": 2}]},
    {"strategy": "sample"},
]


def sampled(seed: int, length: int = 10, **more: Any) -> SamplingParams:
    return SamplingParams(seed=seed, max_tokens=length, ignore_eos=True, **more)


def company(**options: Any) -> Toy:
    return zoo(rewards={"length": lambda text: float(sum(map(ord, text)))}, **options)


def tokens(result: Result) -> list[tuple[int, ...]]:
    return [choice.token_ids for choice in result.choices]


def assert_same(got: Result, expected: Result) -> None:
    """The same tokens; log-probabilities but for the last digit, in which the ways to compute them differ."""
    assert tokens(got) == tokens(expected)
    for mine, other in zip(got.choices, expected.choices, strict=True):
        for one, two in zip(mine.logprobs or (), other.logprobs or (), strict=True):
            assert one.logprob == pytest.approx(two.logprob, abs=1e-6)
            assert one.top == two.top


def run_all(toy: Toy, n: int = 1, **sampling: Any) -> list[Result]:
    handles = [
        toy.submit(PROMPT, sampled(i, **sampling), n=1 if decoding["strategy"] == "best_of_n" else n, decoding=decoding)
        for i, decoding in enumerate(MIXED)
    ]
    toy.finish()
    return [toy.result(handle) for handle in handles]


@cache
def roomy(n: int = 1) -> list[Result]:
    """With pages and rows for all."""
    return run_all(company(), n=n)


def test_a_batch_of_many_strategies_is_each_request_alone() -> None:
    for i, (decoding, result) in enumerate(zip(MIXED, run_all(company(), logprobs=3), strict=True)):
        alone = company().run(PROMPT, sampled(i, logprobs=3), decoding=decoding)
        assert_same(result, alone)


def test_steered_neighbours_leave_a_plain_request_as_it_is() -> None:
    plain = MIXED.index({"strategy": "sample"})
    alone, beside = company().run(PROMPT, sampled(plain, logprobs=3)), run_all(company(), logprobs=3)[plain]
    assert_same(beside, alone)
    assert beside.choices[0].steering is None


@pytest.mark.parametrize("changes", [{}, {"prefill_tokens": 2}, {"prefix_cache": False}, {"max_rows": 4}])
def test_small_pools_preempt_and_change_no_token(changes: dict[str, Any]) -> None:
    settings = EngineSettings.model_validate({"max_rows": 64, "guides": {}, **changes})
    small = company(pages=14, page_size=3, settings=settings)
    got = run_all(small, n=3)
    assert small.stats.preemptions > 0
    for decoding, mine, other in zip(MIXED, got, roomy(3), strict=True):
        assert tokens(mine) == tokens(other), decoding


def test_forks_of_steered_requests_draw_from_streams_of_their_own() -> None:
    for decoding, many, one in zip(MIXED, roomy(3), roomy(), strict=True):
        if decoding["strategy"] != "best_of_n":
            assert many.choices[0].token_ids == one.choices[0].token_ids
            assert len({choice.token_ids for choice in many.choices}) > 1, decoding


def test_best_of_n_chooses_among_the_steered_answers() -> None:
    toy = company()
    best = toy.run(
        PROMPT, sampled(4), decoding={"strategy": "best_of_n", "reward": "length", "n": 4, "steer": [GENARM]}
    )
    steered = toy.run(PROMPT, sampled(4), n=4, decoding={"strategy": "genarm", "arm": "a", "alpha": 0.5})
    assert best.choices[0].text == max(
        (choice.text for choice in steered.choices), key=lambda text: sum(map(ord, text))
    )
    assert sorted(each.text for each in best.candidates) == sorted(choice.text for choice in steered.choices)


@pytest.mark.parametrize(("decoding", "guide"), [(MIXED[0], "rm"), (MIXED[1], "v")], ids=["args", "vas"])
def test_values_are_those_of_scoring_from_scratch(decoding: dict[str, Any], guide: str) -> None:
    """The scorer reads k tokens behind one prefix; EOS is a candidate like any other."""
    toy, wanted = zoo(), [SamplingParams(seed=seed, max_tokens=8) for seed in range(40)]
    handles = [toy.submit(PROMPT, each, decoding=decoding | {"trace": "tokens"}) for each in wanted]
    toy.finish()
    seen: set[tuple[bool, bool]] = set()
    for handle in handles:
        for answer, token in positions(toy.result(handle).choices[0]):
            inside = token.id in np.argsort(-BASE([*PROMPT, *answer]))[: decoding["k"]]
            [(name, value)] = token.values
            assert name == guide
            assert value == (pytest.approx(SCORERS[guide]([*PROMPT, *answer, token.id]), abs=1e-6) if inside else None)
            seen.add((inside, token.id == EOS))
    outside = {(False, False), (False, True)} if guide == "v" else set()
    assert seen == {(True, False), (True, True)} | outside


def test_a_reward_of_eos_is_read_at_eos() -> None:
    """A reward that wants the end ends the answer, and one that fears it never does."""
    for sign, ends in ((9.0, True), (-9.0, False)):
        toy = zoo()
        toy.add_scorer("end", lambda prefix, sign=sign: sign * (prefix[-1] == EOS))
        greedy = SamplingParams(temperature=0.0, max_tokens=6)
        answer = toy.run(PROMPT, greedy, decoding={"strategy": "args", "reward": "end", "k": 5}).choices[0]
        assert (answer.token_ids == (EOS,)) is ends
        assert (answer.finish_reason == "stop") is ends


BROKEN = {
    "lm": {"strategy": "genarm", "arm": "nan_lm"},
    "lm of a power mean": {"strategy": "mod", "weights": {"a": 0.5, "nan_lm": 0.5}, "alpha": 1.0},
    "lm within candidates": {"strategy": "pad", "arm": "nan_lm"},
    "lm that is taken off": {"strategy": "contrastive", "amateur": "nan_lm"},
    "scorer": {"strategy": "args", "reward": "nan_rm"},
    "clamped scorer": {"strategy": "rad", "reward": "nan_rm"},
    "centred scorer": {"strategy": "vas", "value": "nan_rm", "k": 2},
    "head": {"strategy": "cd", "value": "nan_q"},
    "head at candidates": {"strategy": "cd", "value": "nan_q", "k": 2},
}


def hurt() -> Toy:
    """Guides that fail once two tokens are there."""
    toy = company()
    late = len(PROMPT) + 2
    toy.add_lm("nan_lm", lambda prefix: LMS["a"](prefix) * (np.nan if len(prefix) >= late else 1.0))
    toy.add_scorer("nan_rm", lambda prefix: np.nan if len(prefix) > late else 0.5)
    toy.add_head("nan_q")
    head = toy.guides["nan_q"].head  # type: ignore[union-attr]
    head.biases[0][1] = np.nan
    return toy


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("decoding", BROKEN.values(), ids=BROKEN)
def test_a_guide_without_numbers_ends_its_own_request_alone(decoding: dict[str, Any], temperature: float) -> None:
    toy = hurt()
    broken = toy.submit(PROMPT, sampled(1, temperature=temperature), n=2, decoding=decoding)
    neighbours = [toy.submit(PROMPT, sampled(i), decoding=each) for i, each in enumerate(MIXED)]
    toy.finish()
    end = toy.end(broken)
    assert isinstance(end, Failure)
    assert isinstance(end.error, GuideError)
    guilty = next(name for name in ("nan_lm", "nan_rm", "nan_q") if name in str(decoding))
    assert end.error.guide == guilty
    assert guilty in str(end.error)
    assert toy.stats.guide_errors == {guilty: 1}
    for neighbour, alone in zip(neighbours, roomy(), strict=True):
        assert tokens(toy.result(neighbour)) == tokens(alone)


def usage(decoding: dict[str, Any], length: int = 7) -> tuple[dict[str, int], dict[str, int], Choice]:
    """Forwards and tokens per model, of an answer of so many tokens."""
    traced = decoding | {"trace": "tokens"}
    result = company().run(PROMPT, sampled(0, length), decoding=traced)
    assert len(result.choices[0].token_ids) == length
    return result.usage.forwards, result.usage.model_tokens, result.choices[0]


def test_usage_counts_every_forward_and_every_token() -> None:
    prompt, length = len(PROMPT), 7
    steps, read = 1 + length, prompt + length - 1  # one prefill, then one step a token; the last token is not read
    assert usage({"strategy": "sample"})[:2] == ({"base": steps}, {"base": read})
    assert usage(MIXED[7])[:2] == (dict.fromkeys(("base", "a", "b"), steps), dict.fromkeys(("base", "a", "b"), read))
    assert usage({"strategy": "cd", "value": "q"})[:2] == ({"base": steps}, {"base": read})
    candidates = prompt + 3 * length  # what was drawn has been read
    assert usage(MIXED[0])[:2] == ({"base": steps, "rm": steps}, {"base": read, "rm": candidates})
    forwards, model_tokens, choice = usage({"strategy": "vas", "value": "v", "k": 1})
    outside = [value is None for _, token in positions(choice) for _, value in token.values]
    assert any(outside[:-1])  # a token outside the candidates is read with the next ones
    assert forwards == {"base": steps, "v": steps}
    assert model_tokens == {"base": read, "v": prompt + length + sum(outside[:-1])}
    again = usage({"strategy": "genarm", "arm": "a", "alpha": 0.0})
    assert again[:2] == ({"base": steps}, {"base": read}), "a guide without weight does not run"


@pytest.mark.parametrize("decoding", MIXED[:-2])
def test_the_summary_of_each_fork_is_the_sum_over_its_trace(decoding: dict[str, Any]) -> None:
    sampling = sampled(2, temperature=0.8, top_p=0.95)
    unknown = "control_vector" in str(decoding) and "measure_kl" not in decoding
    for choice in company().run(PROMPT, sampling, n=2, decoding=decoding | {"trace": "tokens"}).choices:
        told, trace = choice.steering, choice.trace
        assert told is not None
        assert trace is not None
        assert told.tokens == len(trace) == len(choice.token_ids)
        assert {token.source for token in trace} == {"steered"}
        assert told.logprob_steered == pytest.approx(sum(token.logprob_steered or 0.0 for token in trace), abs=1e-5)
        if unknown:  # nobody ran the plain model
            assert (told.kl, told.kl_mean, told.logprob_base, told.intervention_rate) == (None, None, None, None)
            continue
        kl = sum(token.kl or 0.0 for token in trace)
        changed = sum(token.top_base[0][0] != token.top_steered[0][0] for token in trace)
        assert told.kl == pytest.approx(kl, abs=1e-5)
        assert told.kl_mean == pytest.approx(kl / len(trace), abs=1e-5)
        assert told.logprob_base == pytest.approx(sum(token.logprob_base or 0.0 for token in trace), abs=1e-5)
        assert told.intervention_rate == pytest.approx(changed / len(trace))


@pytest.mark.parametrize("decoding", [{"strategy": "nudging", "gamma": 0.6}, {"strategy": "wsd", "threshold": 0.2}])
def test_the_summary_of_two_voices_counts_what_the_other_one_wrote(decoding: dict[str, Any]) -> None:
    toy = Toy(babble(1), eos=END)
    toy.add_lm("other", babble(2))
    choice = toy.run(PROMPT, sampled(1, 40), decoding={**decoding, "aligned": "other", "trace": "tokens"}).choices[0]
    told, trace = choice.steering, choice.trace
    assert told is not None
    assert trace is not None
    written = [token for token in trace if token.source != "base"]
    assert {token.source for token in written} == {"nudge" if decoding["strategy"] == "nudging" else "draft"}
    assert 0 < len(written) < len(trace) == told.tokens == 40
    assert told.intervention_rate == pytest.approx(len(written) / len(trace))
    assert told.kl == pytest.approx(sum(token.kl or 0.0 for token in trace), abs=1e-4)
    assert told.logprob_base == pytest.approx(sum(token.logprob_base or 0.0 for token in trace), abs=1e-4)
    assert told.logprob_steered == pytest.approx(sum(token.logprob_steered or 0.0 for token in trace), abs=1e-4)
