"""Transfer Q* against brute force on a toy model."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from toy import FunctionReward, Toy, byte_tokenizer, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Failure
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Vocabulary

VOCAB, LENGTH, PROMPT = 12, 6, [1, 5, 2]
TABLE = random_table(VOCAB)
GREEDY = SamplingParams(temperature=0.0, max_tokens=LENGTH, seed=1)
WORDS = Vocabulary(byte_tokenizer())
Score = Callable[[str], float]


def noise(name: str) -> Score:
    """A reward drawn once per text."""

    def reward(text: str) -> float:
        return float(np.random.default_rng([*name.encode(), 0, *text.encode()]).normal() * 2)

    return reward


TASTE, TUNED = noise("taste"), noise("tuned")


def toy(**options: Any) -> Toy:
    return Toy(TABLE, rewards={"taste": TASTE, "tuned": TUNED}, **options)


def tqstar(**changes: object) -> dict[str, object]:
    return {"strategy": "tqstar", "reward": "taste", "k": 4, "rollout": 3, **changes}


def spell(answer: Sequence[int], eos: int | None = None) -> str:
    return WORDS.decode([token for token in answer if token != eos])


def lookahead(
    answer: Sequence[int], *, k: int, rollout: int, gain: Score, eos: int | None = None, length: int = LENGTH
) -> dict[int, float]:
    """Scores of the candidates after `answer`, in float64 and without any cache."""
    z = TABLE([*PROMPT, *answer])
    scores = {}
    for token in np.argsort(-z, kind="stable")[:k].tolist():
        text = [*answer, token]
        for _ in range(rollout):
            if text[-1] != eos and len(text) < length:
                text.append(int(TABLE([*PROMPT, *text]).argmax()))
        scores[token] = float(z[token]) + gain(spell(text, eos))
    return scores


def brute(length: int = LENGTH, eos: int | None = None, **how: Any) -> list[int]:
    """The greedy answer."""
    answer: list[int] = []
    while len(answer) < length and (not answer or answer[-1] != eos):
        scores = lookahead(answer, eos=eos, length=length, **how)
        answer.append(max(scores, key=scores.__getitem__))
    return answer


def ids(toy: Toy, sampling: SamplingParams = GREEDY, **changes: object) -> list[int]:
    return list(toy.run(PROMPT, sampling, decoding=tqstar(**changes)).choices[0].token_ids)


@pytest.mark.parametrize("rollout", [0, 1, 3, 20])
@pytest.mark.parametrize("k", [1, 4, 12, 64])
@pytest.mark.parametrize("w", [0.0, 1.0, -2.5])
def test_the_greedy_answer_is_that_of_brute_force(k: int, rollout: int, w: float) -> None:
    expected = brute(k=k, rollout=rollout, gain=lambda text: w * TASTE(text))
    assert ids(toy(), k=k, rollout=rollout, w=w) == expected


def test_without_rollout_it_is_args_with_the_same_reward() -> None:
    other = toy()
    other.add_scorer("token", lambda prefix: TASTE(spell(prefix[len(PROMPT) :])))
    for w in (0.7, 1.5):
        args = {"strategy": "args", "reward": "token", "k": 4, "w": w}
        expected = list(other.run(PROMPT, GREEDY, decoding=args).choices[0].token_ids)
        assert ids(other, rollout=0, w=w) == expected


@pytest.mark.parametrize("beta", [None, 0.25, 4.0])
def test_the_indirect_form_weighs_the_difference_of_two_rewards(beta: float | None) -> None:
    expected = brute(k=4, rollout=3, gain=lambda text: (TASTE(text) - TUNED(text)) / (beta or 1.0))
    assert ids(toy(), baseline_reward="tuned", beta=beta) == expected
    assert ids(toy(), baseline_reward="taste") == ids(toy(), w=0.0)


@pytest.mark.parametrize("eos", range(VOCAB))
def test_an_end_among_the_candidates_counts_as_it_stands(eos: int) -> None:
    expected = brute(k=6, rollout=3, gain=TASTE, eos=eos)
    result = toy(eos=eos).run(PROMPT, GREEDY, decoding=tqstar(k=6))
    assert list(result.choices[0].token_ids) == expected
    assert result.choices[0].finish_reason == ("stop" if expected[-1] == eos else "length")


def test_an_end_is_chosen_for_the_reward_of_the_text_before_it() -> None:
    """A reward for two letters: only the end keeps the text there."""
    brief = Toy(TABLE, rewards={"brief": lambda text: 100.0 * (len(text) == 2)}, eos=3)
    answer = ids(brief, reward="brief", k=12)
    assert len(answer) == 3
    assert answer[-1] == 3


def test_with_all_tokens_and_no_weight_it_is_plain_sampling_with_the_same_seed() -> None:
    edits: dict[str, Any] = {"logit_bias": {2: 1.5}, "frequency_penalty": 0.7}
    for seed in range(5):
        sampling = SamplingParams(seed=seed, max_tokens=LENGTH, temperature=0.8, top_p=0.9, logprobs=2, **edits)
        searched = toy().run(PROMPT, sampling, n=2, decoding=tqstar(k=VOCAB, rollout=1, w=0.0))
        plain = toy().run(PROMPT, sampling, n=2)
        assert [choice.token_ids for choice in searched.choices] == [choice.token_ids for choice in plain.choices]
        for one, other in zip(searched.choices, plain.choices, strict=True):
            assert one.logprobs is not None
            assert other.logprobs is not None
            assert [each.id for each in one.logprobs] == [each.id for each in other.logprobs]
            assert [each.logprob for each in one.logprobs] == pytest.approx([each.logprob for each in other.logprobs])
            assert [dict(each.top).keys() for each in one.logprobs] == [
                dict(each.top).keys() for each in other.logprobs
            ]


@pytest.mark.parametrize(
    "options", [{}, {"temperature": 0.6}, {"top_k": 2}, {"top_p": 0.7}, {"min_p": 0.2, "temperature": 1.7}]
)
def test_every_token_is_drawn_from_the_softmax_of_the_scores(options: dict[str, Any]) -> None:
    """Traced probabilities against float64: temperature, min-p, top-k, top-p over the candidates alone."""
    sampling = SamplingParams(seed=3, max_tokens=LENGTH, **options)
    decoding = tqstar(k=5, baseline_reward="tuned", trace="tokens")
    (choice,) = toy().run(PROMPT, sampling, decoding=decoding).choices
    assert choice.trace is not None
    for step, told in enumerate(choice.trace):
        before = choice.token_ids[:step]
        scores = lookahead(before, k=5, rollout=3, gain=lambda text: TASTE(text) - TUNED(text))
        weights = {token: math.exp(score / sampling.temperature) for token, score in scores.items()}
        best = sorted(weights, key=weights.__getitem__, reverse=True)
        kept = {token: weights[token] for token in best if weights[token] >= sampling.min_p * weights[best[0]]}
        kept = dict(list(kept.items())[: sampling.top_k or None])
        below = np.cumsum([0.0, *kept.values()])[:-1]
        nucleus = below < sampling.top_p * sum(kept.values())
        mass = sum(weight for weight, inside in zip(kept.values(), nucleus, strict=True) if inside)
        assert told.logprob_steered == pytest.approx(math.log(kept[told.id] / mass), abs=1e-4)
        z = TABLE([*PROMPT, *before])
        assert told.logprob_base == pytest.approx(z[told.id] - np.log(np.exp(z).sum()), abs=1e-4)
        assert [token for token, _ in told.top_steered] == best
        assert told.source == "steered"
        taste, tuned = (lookahead(before, k=5, rollout=3, gain=reward)[told.id] for reward in (TASTE, TUNED))
        values = dict(told.values)
        assert (values["taste"], values["tuned"]) == pytest.approx((taste - z[told.id], tuned - z[told.id]))
    assert len(choice.trace) == LENGTH


def test_edits_shape_candidates_and_rollouts() -> None:
    """A bias that bans what the base says first leaves it out of both; an early end is not proposed."""
    first = int(TABLE(PROMPT).argmax())
    seen: list[str] = []
    engine = Toy(TABLE, rewards={"taste": lambda text: seen.append(text) or 0.0}, eos=4)  # type: ignore[func-returns-value]
    sampling = GREEDY.model_copy(update={"logit_bias": {first: -100.0}, "min_tokens": LENGTH})
    result = engine.run(PROMPT, sampling, decoding=tqstar(k=VOCAB - 2, w=1.0))
    assert result.choices[0].finish_reason == "length"
    assert not any(spell([first]) in text for text in seen)
    assert all(len(text) == min(LENGTH, step + 4) for step in range(3) for text in seen[step * 10 : step * 10 + 10])


ARM = random_table(VOCAB, scale=2.5)


def furnished(**options: Any) -> Toy:
    """With a language model and a scorer beside."""
    engine = toy(**options)
    engine.add_lm("arm", lambda prefix: ARM(prefix[::-1]))
    engine.add_scorer("token", lambda prefix: float(sum(prefix) % 7))
    return engine


def test_what_steers_beside_it_steers_the_proposals_and_the_rollouts() -> None:
    mixed = Toy(lambda prefix: TABLE(prefix) + 0.8 * ARM(prefix[::-1]), rewards={"taste": TASTE})
    steer = [{"method": "genarm", "arm": "arm", "alpha": 0.8}]
    for seed in range(4):
        sampling = SamplingParams(seed=seed, max_tokens=LENGTH)
        assert ids(furnished(), sampling, steer=steer) == ids(mixed, sampling)


@pytest.mark.parametrize(
    "part",
    [
        {"method": "genarm", "arm": "arm", "alpha": 0.8},
        {"method": "args", "reward": "token", "k": 5},
        {"method": "fudge", "classifier": "token", "k": 9, "limit": 4},
    ],
)
def test_without_weight_it_samples_as_what_steers_beside_it(part: dict[str, object]) -> None:
    for seed in range(4):
        sampling = SamplingParams(seed=seed, max_tokens=LENGTH)
        plain = furnished().run(PROMPT, sampling, decoding={"steer": [part]})
        assert ids(furnished(), sampling, k=VOCAB, w=0.0, steer=[part]) == list(plain.choices[0].token_ids)


def test_a_limit_on_what_may_be_drawn_holds_for_the_candidates() -> None:
    read: list[str] = []
    engine = furnished()
    engine.engine.scoring.rewards = {"taste": FunctionReward("taste", lambda text: read.append(text) or 0.0)}  # type: ignore[func-returns-value]
    fudge = {"method": "fudge", "classifier": "token", "k": 9, "limit": 4}
    engine.run(PROMPT, GREEDY, decoding=tqstar(k=6, steer=[fudge]))
    assert len(read) == 4 * LENGTH


def test_a_gate_and_a_search_over_tokens_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest, match="take nudging and wsd out") as caught:
        furnished().submit(PROMPT, GREEDY, decoding=tqstar(steer=[{"method": "nudging", "aligned": "arm"}]))
    assert caught.value.param == "decoding.steer"


MIXED: list[tuple[dict[str, object] | None, int]] = [
    (tqstar(), 2),
    (None, 3),
    (tqstar(k=2, rollout=5), 1),
    (tqstar(k=6, rollout=0, steer=[{"method": "args", "reward": "token", "k": 7}]), 2),
    ({"strategy": "best_of_n", "reward": "taste", "n": 3}, 1),
    (tqstar(steer=[{"method": "genarm", "arm": "arm"}], trace="tokens"), 1),
]


@pytest.mark.parametrize(("pages", "page_size"), [(4096, 4), (14, 2), (6, 5)])
def test_neighbours_and_small_pools_change_nothing(pages: int, page_size: int) -> None:
    requests = [(SamplingParams(seed=seed, max_tokens=LENGTH), *each) for seed, each in enumerate(MIXED)]
    alone = [furnished().run(PROMPT, sampling, decoding=spec, n=n) for sampling, spec, n in requests]
    engine = furnished(pages=pages, page_size=page_size)
    handles = [engine.submit(PROMPT, sampling, decoding=spec, n=n) for sampling, spec, n in requests]
    engine.finish()
    for handle, expected in zip(handles, alone, strict=True):
        result = engine.result(handle)
        assert [choice.token_ids for choice in result.choices] == [choice.token_ids for choice in expected.choices]
        assert [choice.trace for choice in result.choices] == [choice.trace for choice in expected.choices]
    assert (engine.stats.preemptions > 0) == (pages < 4096)


def test_choices_look_ahead_in_one_batch_and_stream_as_they_grow() -> None:
    engine = toy()
    handle = engine.submit(PROMPT, SamplingParams(seed=2, max_tokens=LENGTH), n=3, decoding=tqstar())
    engine.finish()
    result = engine.result(handle)
    assert max(engine.runner.widths) == 3 * 4 == DecodingSpec.parse(tqstar()).program.rows(3)
    assert engine.runner.widths == [3, 12, 12, 12, 3, 12, 12, 12, 3, 12, 12, 12, 3, 12, 12, 3, 12, 3]
    assert len({choice.token_ids for choice in result.choices}) == 3
    for index, choice in enumerate(result.choices):
        deltas = [delta for delta in engine.deltas(handle) if delta.choice == index]
        assert len(deltas) == LENGTH
        assert "".join(delta.text for delta in deltas) == choice.text == spell(choice.token_ids)
    assert result.usage.forwards["base"] == 1 + 3 * 6 + 12 * 12  # the first stores the prompt
    assert result.usage.completion_tokens == 3 * LENGTH


def test_looks_ahead_are_given_back_at_every_step() -> None:
    engine = toy(page_size=1)
    engine.submit(PROMPT, GREEDY, n=2, decoding=tqstar())
    held = []
    while not engine.engine.idle:
        engine.engine.tick()
        held += [len(job.prompt.family) for job in engine.engine.scheduler.running]
    assert max(held) == 1 + 2 + 2 * 4
    assert held.count(1 + 2) == LENGTH - 1  # after every draw but the last


def test_a_stop_string_ends_candidates_rollouts_and_answers() -> None:
    seen: list[str] = []
    engine = Toy(TABLE, rewards={"taste": lambda text: seen.append(text) or TASTE(text)})  # type: ignore[func-returns-value]
    stop = spell([int(TABLE(PROMPT).argmax())])
    sampling = GREEDY.model_copy(update={"stop": (stop,)})
    (choice,) = engine.run(PROMPT, sampling, decoding=tqstar(k=6)).choices
    assert "" in seen
    assert not any(stop in text for text in seen)
    assert stop not in choice.text


def test_nothing_to_say_is_an_answer() -> None:
    (choice,) = toy().run(PROMPT, SamplingParams(max_tokens=0), decoding=tqstar()).choices
    assert (choice.text, choice.finish_reason) == ("", "length")


@pytest.mark.parametrize(
    "change", [{"k": 6}, {"w": 3.0}, {"rollout": 0}, {"baseline_reward": "tuned"}, {"reward": "tuned"}]
)
def test_every_option_changes_something(change: dict[str, object]) -> None:
    assert ids(toy(), **change) != ids(toy())
    indirect = {"baseline_reward": "tuned"}
    assert ids(toy(), **indirect, beta=0.1) != ids(toy(), **indirect, beta=5.0)


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"k": 0}, "decoding.k", "greater than or equal to 1"),
        ({"k": 65}, "decoding.k", "less than or equal to 64"),
        ({"rollout": -1}, "decoding.rollout", "greater than or equal to 0"),
        ({"rollout": 513}, "decoding.rollout", "less than or equal to 512"),
        ({"beta": 1.0}, "decoding", "name a baseline_reward"),
        ({"baseline_reward": "tuned", "beta": 0.0}, "decoding.beta", "greater than 0"),
        ({"reward": "none"}, "decoding.reward", "no reward guide"),
        ({"baseline_reward": "none"}, "decoding.baseline_reward", "no reward guide"),
    ],
)
def test_a_wrong_parameter_names_the_key(change: dict[str, object], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse(tqstar(**change)).check(choices=1, rewards=["taste", "tuned"])
    assert caught.value.param == param


def test_it_is_greedy_by_default_and_its_spec_survives_an_echo() -> None:
    for spec in (DecodingSpec.parse(tqstar()), DecodingSpec.parse(tqstar(baseline_reward="tuned", beta=2.0))):
        assert spec.temperature == 0.0
        assert DecodingSpec.parse(spec.dump()) == spec


@pytest.mark.parametrize("rollout", [0, 3])
def test_a_guide_without_numbers_is_named(rollout: int) -> None:
    engine = furnished()
    engine.add_lm("broken", lambda prefix: np.full(VOCAB, np.nan if len(prefix) > 4 else 0.0))
    steer = [{"method": "genarm", "arm": "broken"}]
    handle, neighbour = (
        engine.submit(PROMPT, GREEDY, decoding=tqstar(rollout=rollout, steer=part)) for part in (steer, [])
    )
    engine.finish()
    end = engine.end(handle)
    assert isinstance(end, Failure)
    assert "broken" in str(end.error)
    assert list(engine.result(neighbour).choices[0].token_ids) == ids(toy(), rollout=rollout)


def test_a_base_without_numbers_is_an_error() -> None:
    broken = Toy(lambda prefix: np.full(VOCAB, np.nan if len(prefix) > 4 else 0.0), rewards={"taste": TASTE})
    handle = broken.submit(PROMPT, GREEDY, decoding=tqstar(rollout=0))
    broken.finish()
    end = broken.end(handle)
    assert isinstance(end, Failure)
    assert "no finite logit" in str(end.error)
    assert len(broken.deltas(handle)) == 2


def test_a_reward_of_nothing_but_nan_ends_the_request_and_some_nan_loses() -> None:
    engine = Toy(TABLE, rewards={"taste": lambda text: math.nan})
    handle = engine.submit(PROMPT, GREEDY, n=2, decoding=tqstar(rollout=0))
    engine.finish()
    assert isinstance(engine.end(handle), Failure)
    assert engine.deltas(handle) == []
    best = spell([int(TABLE(PROMPT).argmax())])
    some = Toy(TABLE, rewards={"taste": lambda text: math.nan if text == best else 0.0})
    assert spell(ids(some, rollout=0))[0] == spell([int(TABLE(PROMPT).argsort()[-2])])
