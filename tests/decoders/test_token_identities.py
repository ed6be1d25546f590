"""What token-level strategies become at the ends of their parameters: the base, a guide, or one another."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from toy import Logits, Toy, byte_tokenizer, random_table
from zoo import BASE, BYTES, END, EOS, LMS, PROMPT, SCORERS, V, positions, whole, zoo

from trimtab.engine.results import Choice
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Vocabulary

PLAIN: dict[str, Any] = {"strategy": "sample"}


def answers(toy: Toy, decoding: Mapping[str, Any], **sampling: Any) -> list[Choice]:
    """One greedy answer and several sampled ones, traced."""
    wanted = [SamplingParams(temperature=0.0, max_tokens=6, **sampling)]
    wanted += [SamplingParams(seed=seed, max_tokens=6, **sampling) for seed in range(6)]
    handles = [toy.submit(PROMPT, each, decoding={**decoding, "trace": "tokens"}) for each in wanted]
    toy.finish()
    return [toy.result(handle).choices[0] for handle in handles]


def assert_same(got: Sequence[Choice], expected: Sequence[Choice]) -> None:
    """The same tokens, each from the same distribution."""
    for mine, other in zip(got, expected, strict=True):
        assert mine.token_ids == other.token_ids
        for (_, token), (_, reference) in zip(positions(mine), positions(other), strict=True):
            np.testing.assert_allclose(whole(token.top_steered), whole(reference.top_steered), atol=2e-5)


def crowd() -> Toy:
    """The zoo, and guides at which formulas lose a term."""
    toy = zoo()
    toy.add_lm("twin", LMS["a"])
    toy.add_lm("flat", lambda prefix: np.zeros(V))
    toy.add_scorer("constant", lambda prefix: 0.7)
    toy.add_scorer("rm+5", lambda prefix: SCORERS["rm"](prefix) + 5.0)
    toy.add_scorer("tiny", lambda prefix: 0.3 + 0.05 * np.tanh(SCORERS["rm"](prefix)))
    toy.add_scorer("tiny+", lambda prefix: 0.5 + 0.05 * np.tanh(SCORERS["rm"](prefix)))
    return toy


def part(strategy: str, **params: Any) -> dict[str, Any]:
    return {"strategy": strategy, **params}


BECOMES_BASE = {
    "genarm alpha 0": part("genarm", arm="a", alpha=0.0),
    "genarm weights 0": part("genarm", arms={"a": 0.0, "b": 0.0}),
    "genarm weights that cancel": part("genarm", arms={"a": 1.5, "twin": -1.5}),
    "proxy_tuning, expert = antiexpert": part("proxy_tuning", expert="a", antiexpert="twin"),
    "proxy_tuning, one model": part("proxy_tuning", expert="a", antiexpert="a", alpha=3.0),
    "eft w 0": part("eft", tuned="a", w=0.0),
    "eft, tuned = reference": part("eft", tuned="a", reference="twin"),
    "dera lam 0": part("dera", aligned="a", lam=0.0),
    "dexperts alpha 0": part("dexperts", expert="a", antiexpert="b", alpha=0.0, p=1.0),
    "mod base alone": part("mod", weights={"base": 1.0}),
    "mod one-hot base, forward KL": part("mod", weights={"base": 1.0, "a": 0.0}, alpha=1.0),
    "mixture base 1": part("mixture", weights={"base": 1.0}),
    "ivl of a flat guide": part("ivl", value="flat"),
    "pad w 0": part("pad", arm="a", w=0.0, k=V),
    "contrastive beta 0": part("contrastive", amateur="a", alpha=0.0, beta=0.0),
    "contrastive with itself": part("contrastive", amateur="base", alpha=0.0),
    "cfg gamma 1": part("cfg", gamma=1.0),
    "cd lam 0, head": part("cd", value="q", lam=0.0),
    "cd lam 0, scorer": part("cd", value="v", lam=0.0, k=V),
    "vas, constant value": part("vas", value="constant", k=3),
    "vas beta 0": part("vas", value="v", beta=0.0, k=3),
    "vas k 1": part("vas", value="v", k=1),
    "args w 0, all tokens": part("args", reward="rm", w=0.0, k=V),
    "rad beta 0, all tokens": part("rad", reward="rm", beta=0.0, k=V),
    "rad, constant reward": part("rad", reward="constant", k=V),
    "re_control lr 0": part("re_control", value="h", lr=0.0),
    "control_vector coeff 0": part("control_vector", vector="c", coeff=0.0, measure_kl=True),
    "control vectors that cancel": part(
        "control_vector", vector="c", steer=[{"method": "control_vector", "vector": "c", "coeff": -1.0}]
    ),
    "candidates, all tokens": part("candidates", top_k=V),
    "value weight 0": part("value", guide="rm", weight=0.0),
}


@pytest.mark.parametrize("decoding", BECOMES_BASE.values(), ids=BECOMES_BASE)
def test_it_is_the_base(decoding: dict[str, Any]) -> None:
    toy = crowd()
    assert_same(answers(toy, decoding), answers(toy, PLAIN))


BECOMES_GUIDE = {
    "dera lam 1": (part("dera", aligned="a", lam=1.0), "a"),
    "dera lam 0": (part("dera", aligned="a", reference="b", lam=0.0), "b"),
    "mod one-hot": (part("mod", weights={"a": 0.0, "b": 1.0}), "b"),
    "mod one-hot, forward KL": (part("mod", weights={"a": 1.0, "base": 0.0}, alpha=1.0), "a"),
    "mod, both the same": (part("mod", weights={"a": 0.3, "twin": 0.7}, alpha=-0.4), "a"),
    "eft, reference = base": (part("eft", tuned="a"), "a"),
    "mixture base 0": (part("mixture", weights={"base": 0.0, "b": 1.0}), "b"),
    "pad w 1, all tokens": (part("pad", arm="a", w=1.0, k=V), "a"),
    "proxy_tuning, antiexpert = base": (part("mixture", weights={"base": 1.0, "a": 1.0, "b": 0.0}), "base + a"),
}


@pytest.mark.parametrize(("decoding", "name"), BECOMES_GUIDE.values(), ids=BECOMES_GUIDE)
def test_it_is_the_guide(decoding: dict[str, Any], name: str) -> None:
    tables: dict[str, Logits] = LMS | {"base + a": lambda prefix: BASE(prefix) + LMS["a"](prefix)}
    assert_same(answers(crowd(), decoding), answers(Toy(tables[name], eos=EOS), PLAIN))


PAIRS = {
    "args takes a constant off": (part("args", reward="rm", k=3), part("args", reward="rm+5", k=3)),
    "vas takes a constant off": (part("vas", value="rm", k=3), part("vas", value="rm+5", k=3)),
    "cd takes a constant off": (part("cd", value="rm", k=3), part("cd", value="rm+5", k=3)),
    "rad takes one off between 0 and 1": (part("rad", reward="tiny", k=3), part("rad", reward="tiny+", k=3)),
    "args k beyond the vocabulary": (part("args", reward="rm", k=V), part("args", reward="rm", k=200)),
    "vas k beyond the vocabulary": (part("vas", value="v", k=V), part("vas", value="v", k=200)),
    "cd k beyond the vocabulary": (part("cd", value="q"), part("cd", value="q", k=10_000)),
    "fudge k beyond the vocabulary": (part("fudge", classifier="v", k=V), part("fudge", classifier="v")),
    "fudge, constant classifier": (part("fudge", classifier="constant"), part("fudge", classifier="v", lam=0.0)),
    "args w 0": (part("args", reward="rm", w=0.0, k=3), part("candidates", top_k=3)),
    "rad beta 0": (part("rad", reward="rm", beta=0.0, k=3), part("candidates", top_k=3)),
    "contrastive beta 0": (part("contrastive", amateur="a", alpha=0.4, beta=0.0), part("candidates", alpha=0.4)),
    "dexperts alpha 0": (part("dexperts", expert="a", antiexpert="b", alpha=0.0), part("candidates", top_p=0.9)),
    "pad w 0": (part("pad", arm="a", w=0.0, k=2), part("candidates", top_k=2)),
    "cd of all candidates = args": (part("cd", value="rm", lam=1.5, k=3), part("args", reward="rm", k=3)),
    "ivo = cd": (part("ivo", value="q"), part("cd", value="q")),
    "dexperts of everything = proxy_tuning": (
        part("dexperts", expert="a", antiexpert="b", alpha=0.8, p=1.0),
        part("proxy_tuning", expert="a", antiexpert="b", alpha=0.8),
    ),
    "two parts = one of both arms": (
        part("genarm", arm="a", alpha=0.5, steer=[{"method": "genarm", "arm": "b", "alpha": 0.7}]),
        part("genarm", arms={"a": 0.5, "b": 0.7}),
    ),
    "the order of parts": (
        part("sample", steer=[{"method": "genarm", "arm": "b"}, {"method": "args", "reward": "rm", "k": 4}]),
        part("sample", steer=[{"method": "args", "reward": "rm", "k": 4}, {"method": "genarm", "arm": "b"}]),
    ),
    "mod near reverse KL": (
        part("mod", weights={"a": 0.4, "b": 0.6}, alpha=1e-6),
        part("mod", weights={"a": 0.4, "b": 0.6}),
    ),
}


@pytest.mark.parametrize(("one", "other"), PAIRS.values(), ids=PAIRS)
def test_both_are_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    toy = crowd()
    assert_same(answers(toy, one), answers(toy, other))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "decoding", [part("args", reward="rm", k=1), part("args", reward="rm", w=-3.0, k=1), part("pad", arm="a", k=1)]
)
def test_one_candidate_is_the_greedy_base(decoding: dict[str, Any], temperature: float) -> None:
    toy = crowd()
    sampling = SamplingParams(temperature=temperature, seed=1, max_tokens=6)
    steered = toy.run(PROMPT, sampling, decoding=decoding).choices[0].token_ids
    assert steered == toy.run(PROMPT, SamplingParams(temperature=0.0, max_tokens=6)).choices[0].token_ids


def test_args_without_weight_is_the_greedy_base() -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=6)
    toy = crowd()
    steered = toy.run(PROMPT, greedy, decoding=part("args", reward="rm", w=0.0)).choices[0].token_ids
    assert steered == toy.run(PROMPT, greedy).choices[0].token_ids


def test_pad_of_the_guide_alone_is_its_best_of_the_base_s_candidates() -> None:
    greedy = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    got = crowd().run(PROMPT, greedy, decoding=part("pad", arm="a", w=1.0, k=2)).choices[0].token_ids
    prefix = PROMPT.copy()
    for token in got:
        candidates = np.argsort(-BASE(prefix))[:2]
        assert token == candidates[LMS["a"](prefix)[candidates].argmax()]
        prefix.append(token)
    assert len(got) == 6


LETTERS = random_table(BYTES)
VOCABULARY = Vocabulary(byte_tokenizer())
SHOWN = VOCABULARY.encode(" abcdefghijklmnopqrstuvwxyz")


def letters(prefix: Sequence[int]) -> np.ndarray:
    """A base that writes letters and spaces, never surely."""
    z = np.full(BYTES, -20.0)
    z[SHOWN] = LETTERS(prefix)[SHOWN]
    return z


def script(text: str) -> Logits:
    """Says `text` after the prompt, whoever wrote what is there, then ends."""

    ids = VOCABULARY.encode(text)

    def logits(prefix: Sequence[int]) -> np.ndarray:
        z = np.full(BYTES, -20.0)
        said = len(prefix) - len(PROMPT)
        z[ids[said] if said < len(ids) else END] = 20.0
        return z

    return logits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nudging_at_gamma_0_is_the_guide_s_first_word_and_then_the_base(temperature: float) -> None:
    sampling = SamplingParams(temperature=temperature, seed=3, max_tokens=30)
    toy = Toy(letters, eos=END)
    toy.add_lm("aligned", script("Hello there, friend"))
    answer = toy.run(PROMPT, sampling, decoding=part("nudging", aligned="aligned", gamma=0.0)).choices[0]
    word = VOCABULARY.encode("Hello")
    assert list(answer.token_ids[: len(word)]) == word
    assert len(answer.token_ids) == 30
    if temperature == 0.0:
        prefix = [*PROMPT, *word]
        for token in answer.token_ids[len(word) :]:
            assert token == letters(prefix).argmax()
            prefix.append(token)


@pytest.mark.parametrize("decoding", [part("nudging", aligned="aligned", gamma=1.0), part("wsd", aligned="aligned")])
def test_a_base_that_is_never_sure_leaves_the_answer_to_the_guide(decoding: dict[str, Any]) -> None:
    toy = Toy(letters, eos=END)
    toy.add_lm("aligned", script("HELLO THERE, FRIEND"))  # capitals: the base begins no such word
    answer = toy.run(PROMPT, SamplingParams(temperature=0.0, max_tokens=40), decoding=decoding).choices[0]
    assert answer.text == "HELLO THERE, FRIEND"
    assert answer.finish_reason == "stop"
