"""Steering by real guides through `LLM`: every role from its folder, against plain transformers and arithmetic."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import Plain, PlainScorer, base_prompt, greedy
from steered import DRAWN, GREEDY, TOKENS, chat, furnish, guides, ids, load
from torch import Tensor

from trimtab import LLM

EOS = 256


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("steering"))


@pytest.fixture(scope="module")
def llm(place: Path) -> Iterator[LLM]:
    with load(place / "base", guides(place)) as llm:
        yield llm


@pytest.fixture(scope="module")
def base(place: Path) -> Plain:
    return Plain(place / "base")


@pytest.fixture(scope="module")
def arm(place: Path) -> Plain:
    return Plain(place / "arm")


@pytest.fixture(scope="module")
def anti(place: Path) -> Plain:
    return Plain(place / "anti")


def best(z: Tensor, k: int) -> list[int]:
    """The k likeliest tokens."""
    return z.topk(k).indices.tolist()  # type: ignore[no-any-return]


def only(z: Tensor, allowed: list[int], gain: list[float]) -> Tensor:
    """Scores of the allowed tokens, each with its gain; no other can be drawn."""
    s = torch.full_like(z, -torch.inf)
    s[allowed] = z[allowed] + torch.tensor(gain, dtype=z.dtype)
    return s


def test_every_role_loads_and_steers_or_scores(llm: LLM) -> None:
    plain = ids(chat(llm, None, DRAWN))
    for decoding in (
        {"strategy": "genarm", "arm": "arm"},
        {"strategy": "genarm", "arm": "tune"},
        {"strategy": "args", "reward": "taste", "w": 10.0},
        {"strategy": "rad", "reward": "judge"},
        {"strategy": "vas", "value": "worth", "beta": 10.0},
        {"strategy": "re_control", "value": "state", "n": 5},
        {"strategy": "cd", "value": "tokens", "lam": 5.0},
        {"strategy": "control_vector", "vector": "calm", "coeff": 4.0},
    ):
        steered = chat(llm, decoding, DRAWN)
        assert ids(steered) != plain, decoding
        assert steered.choices[0].steering is not None
        assert ids(chat(llm, decoding, DRAWN)) == ids(steered)
    for reward in ("taste", "judge", "worth", "brief"):
        found = chat(llm, {"strategy": "best_of_n", "n": 3, "reward": reward}, DRAWN)
        assert max(c.reward for c in found.candidates if c.reward is not None) == next(
            c.reward for c in found.candidates if c.choice == 0
        )


def test_mixtures_equal_the_sums_of_plain_models(llm: LLM, base: Plain, arm: Plain, anti: Plain) -> None:
    formulas: list[tuple[dict[str, Any], Callable[[list[int]], Tensor]]] = [
        ({"strategy": "genarm", "arm": "arm", "alpha": 0.7}, lambda h: base.logits(h) + 0.7 * arm.logits(h)),
        (
            {"strategy": "genarm", "arms": {"arm": 0.5, "anti": 0.8}},
            lambda h: base.logprobs(h) + 0.5 * arm.logprobs(h) + 0.8 * anti.logprobs(h),
        ),
        (
            {"strategy": "dera", "aligned": "arm", "lam": 1.4},
            lambda h: -0.4 * base.logprobs(h) + 1.4 * arm.logprobs(h),
        ),
        (
            {"strategy": "proxy_tuning", "expert": "arm", "antiexpert": "anti"},
            lambda h: base.logits(h) + arm.logits(h) - anti.logits(h),
        ),
        (
            {"strategy": "mod", "weights": {"base": 0.3, "arm": 0.7}, "alpha": 1.0},
            lambda h: 1.0 / (0.3 / base.logprobs(h).exp() + 0.7 / arm.logprobs(h).exp()),
        ),
    ]
    for decoding, formula in formulas:
        assert ids(chat(llm, decoding)) == greedy(formula, base_prompt("Hi"), TOKENS), decoding


def test_plausible_sets_come_before_the_mixture(llm: LLM, base: Plain, arm: Plain, anti: Plain) -> None:
    def nucleus(h: list[int]) -> Tensor:
        p, order = base.logprobs(h).exp().sort(descending=True)
        allowed = order[p.cumsum(0) - p < 0.6].tolist()
        return only(base.logits(h), allowed, (2.0 * (arm.logits(h) - anti.logits(h)))[allowed].tolist())

    def plausible(h: list[int]) -> Tensor:
        lp = base.logprobs(h)
        allowed = (lp.exp() >= 0.2 * lp.exp().max()).nonzero()[:, 0].tolist()
        return only(lp, allowed, (0.5 * lp - 0.5 * anti.logprobs(h))[allowed].tolist())

    dexperts = {"strategy": "dexperts", "expert": "arm", "antiexpert": "anti", "p": 0.6}
    assert ids(chat(llm, dexperts)) == greedy(nucleus, base_prompt("Hi"), TOKENS)
    contrastive = {"strategy": "contrastive", "amateur": "anti", "alpha": 0.2}
    assert ids(chat(llm, contrastive)) == greedy(plausible, base_prompt("Hi"), TOKENS)


def test_an_amateur_without_the_prompt_reads_one_token_of_it(llm: LLM, base: Plain) -> None:
    prompt = base_prompt("Hi")

    def contrast(h: list[int]) -> Tensor:
        lp = base.logprobs(h)
        allowed = (lp.exp() >= 0.05 * lp.exp().max()).nonzero()[:, 0].tolist()
        alone = base.logprobs(h[len(prompt) - 1 :])
        return only(2.0 * lp - alone, allowed, [0.0] * len(allowed))

    decoding = {"strategy": "contrastive", "amateur": "base", "amateur_sees_prompt": False, "beta": 1.0, "alpha": 0.05}
    assert ids(chat(llm, decoding)) == greedy(contrast, prompt, TOKENS)


@pytest.mark.parametrize("k", [1, 6, 40])
def test_candidates_score_as_if_each_text_were_read_from_scratch(llm: LLM, place: Path, base: Plain, k: int) -> None:
    scorer = PlainScorer(place / "taste")
    prompt, own = base_prompt("Hi"), scorer.prompt("Hi")
    told: list[dict[int, float]] = []

    def args(h: list[int]) -> Tensor:
        z = base.logits(h)
        allowed = best(z, k)
        values = [scorer.score([*own, *h[len(prompt) :], token]) for token in allowed]
        told.append(dict(zip(allowed, values, strict=True)))
        return only(z, allowed, [1.5 * value for value in values])

    decoding = {"strategy": "args", "reward": "taste", "k": k, "trace": "tokens"}
    result = chat(llm, decoding)
    assert ids(result) == greedy(args, prompt, TOKENS)
    for each, values in zip(result.choices[0].trace or (), told, strict=True):
        assert each.source == "steered"
        assert dict(each.values)["taste"] == pytest.approx(values[each.id], abs=1e-4)


def test_the_reward_of_an_end_token_is_read_at_the_end_token(llm: LLM, place: Path, base: Plain) -> None:
    """Where pad and EOS are one id, others read the token before it."""
    scorer = PlainScorer(place / "taste")
    prompt, own = base_prompt("Hi"), scorer.prompt("Hi")
    allowed = best(base.logits(prompt), 5)
    plan = {"strategy": "args", "reward": "taste", "k": 6, "w": 1.0, "trace": "tokens"}
    # A bias of the base's logits brings EOS among the candidates, and one of the scores makes it the winner.
    sampling = GREEDY.model_copy(update={"logit_bias": {EOS: 100.0}})
    result = chat(llm, plan, sampling)
    assert ids(result) == [EOS]
    assert result.choices[0].finish_reason == "stop"
    (only_one,) = result.choices[0].trace or ()
    assert dict(only_one.values)["taste"] == pytest.approx(scorer.score([*own, EOS]), abs=1e-4)
    assert scorer.score([*own, EOS]) != pytest.approx(scorer.score(own), abs=1e-2)
    assert EOS not in allowed


def test_a_value_model_of_two_labels_gives_log_odds(llm: LLM, place: Path, base: Plain) -> None:
    worth = PlainScorer(place / "worth")
    prompt, own = base_prompt("Hi"), worth.prompt("Hi")

    def fudge(h: list[int]) -> Tensor:
        z = base.logits(h)
        allowed = best(z, 8)
        texts = [[*own, *h[len(prompt) :], token] for token in allowed]
        gain = [3.0 * float(torch.tensor(worth.log_odds(text)).sigmoid().log()) for text in texts]
        return only(z, allowed, gain)

    decoding = {"strategy": "fudge", "classifier": "worth", "lam": 3.0, "k": 8}
    assert ids(chat(llm, decoding)) == greedy(fudge, prompt, TOKENS)
