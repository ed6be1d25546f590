"""Over a base that our own server runs, every search gives the answers that it gives over a base of its own."""

import math
from collections import Counter
from itertools import product
from queue import SimpleQueue
from typing import Any

import numpy as np
import pytest
import torch
from exact import assert_law
from far_toy import FarToy
from toy import Toy, byte_tokenizer, random_table
from transformers import AutoModelForCausalLM

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Delta, Event, Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Vocabulary
from trimtab.llm import LLM
from trimtab.requests import GenerationRequest

PROMPT = "hello there, how is it going"
LETTERS = dict(zip("abe", Vocabulary(byte_tokenizer()).encode("abe"), strict=True))
E, EOS = LETTERS["e"], 256
SEARCHES: list[dict[str, Any]] = [
    {"strategy": "best_of_n", "n": 5, "reward": "vowels"},
    {"strategy": "best_of_n", "n": 40, "reward": "vowels"},
    {"strategy": "cd_blockwise", "k": 3, "block": 4, "value": "vowels"},
    {"strategy": "cbs", "w": 2, "k": 3, "chunk": 4, "value": "vowels"},
    {"strategy": "qalign", "steps": 8, "reward": "vowels", "chains": 2},
    {"strategy": "particle_filter", "n": 4, "block": 4, "reward": "vowels"},
    {"strategy": "particle_filter", "n": 4, "separator": "a", "reward": "vowels"},
    {"strategy": "speculative_rejection", "n": 6, "schedule": [4, 9], "reward": "vowels"},
    {"strategy": "dts", "simulations": 6, "block": 4, "reward": "vowels"},
    {"strategy": "treebon", "n": 4, "children": 2, "layers": 3, "value": "length", "reward": "vowels"},
    {"strategy": "self_consistency", "n": 4, "extract": "text", "least": 2},
    {"strategy": "best_of_n", "n": 4, "reward": "vowels", "select": {"rule": "rbon"}},
    {"strategy": "best_of_n", "n": 4, "reward": "vowels", "budget": {"reward_at_least": 1.0}},
]
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01},
    {"repetition_penalty": 1.3},
    {"presence_penalty": 1.0, "frequency_penalty": 0.5},
    {"logit_bias": {E: 6.0, EOS: -100.0}},
    {"logit_bias": {EOS: 9.0}, "min_tokens": 5},
    {"logit_bias": {EOS: 9.0}},
    {"logit_bias": {EOS: 9.0}, "ignore_eos": True},
    {"logit_bias": {E: 9.0}, "stop": ("ee",)},
    {"logit_bias": {E: 9.0}, "stop": ("ee",), "include_stop_str_in_output": True},
    {"logit_bias": {E: 5.0}, "stop_token_ids": (E,)},
    {"logprobs": 3},
]


def told(result: Result) -> object:
    candidates = [(each.text, each.tokens, each.reward, each.value, each.choice) for each in result.candidates]
    return [_choice(each) for each in result.choices], candidates, result.stopped_by


def _choice(choice: Any) -> object:
    return choice.text, choice.token_ids, choice.finish_reason, choice.stop_reason


def run(llm: LLM, decoding: dict[str, Any] | None = None, *, n: int = 1, **sampling: Any) -> Result:
    given = SamplingParams(**{"seed": 3, "max_tokens": 14, **sampling})
    (result,) = llm.generate([PROMPT], given, n=n, decoding=decoding, progress=False)
    return result


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("decoding", SEARCHES, ids=lambda each: each["strategy"])
def test_searches(here: LLM, remote: LLM, decoding: dict[str, Any], seed: int) -> None:
    expected, found = run(here, decoding, seed=seed), run(remote, decoding, seed=seed)
    assert told(found) == told(expected)
    assert found.report.keys() == expected.report.keys()
    for name, value in expected.report.items():
        assert found.report[name] == (pytest.approx(value, rel=1e-4) if isinstance(value, float) else value), name


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_sampling(here: LLM, remote: LLM, sampling: dict[str, Any], n: int) -> None:
    expected, found = run(here, n=n, **sampling), run(remote, n=n, **sampling)
    assert told(found) == told(expected)
    for one, other in zip(expected.choices, found.choices, strict=True):
        assert (one.logprobs is None) == (other.logprobs is None)
        for mine, theirs in zip(one.logprobs or (), other.logprobs or (), strict=True):
            assert (mine.id, [id_ for id_, _ in mine.top]) == (theirs.id, [id_ for id_, _ in theirs.top])
            assert theirs.logprob == pytest.approx(mine.logprob, abs=1e-4)


def test_measures_of_plain_draws_are_the_same(here: LLM, remote: LLM) -> None:
    """The estimate of a best answer's KL goes by them."""
    decoding = {"strategy": "best_of_n", "n": 6, "reward": "vowels"}
    expected, found = run(here, decoding, max_tokens=2), run(remote, decoding, max_tokens=2)
    assert found.report["kl_estimate"] == pytest.approx(expected.report["kl_estimate"], rel=1e-4)


def test_what_is_not_known_of_draws_is_left_out(remote: LLM) -> None:
    """Behind a temperature nobody tells the probability that a token was drawn with."""
    report = run(remote, {"strategy": "best_of_n", "n": 6, "reward": "vowels"}, temperature=0.7).report
    assert "kl_estimate" not in report
    assert report["kl_bound"] > 0


def test_prompt_logprobs(here: LLM, remote: LLM) -> None:
    found = []
    for llm in (here, remote):
        prepared = llm.prepare(
            GenerationRequest(prompt=PROMPT, sampling=SamplingParams(seed=1, max_tokens=2), prompt_logprobs=2)
        )
        found.append(_result(llm, prepared)[-1].prompt_logprobs)
    assert len(found[0]) == len(found[1])
    assert found[0][0] is None
    assert found[1][0] is None
    for mine, theirs in zip(found[0][1:], found[1][1:], strict=True):
        assert (mine.id, mine.top[0][0]) == (theirs.id, theirs.top[0][0])
        assert theirs.logprob == pytest.approx(mine.logprob, abs=1e-4)


def test_a_stream_comes_token_by_token_and_says_the_same(here: LLM, remote: LLM) -> None:
    request = GenerationRequest(prompt=PROMPT, sampling=SamplingParams(seed=7, max_tokens=12), n=2)
    results = []
    for llm in (here, remote):
        *deltas, result = _result(llm, llm.prepare(request))
        pieces = [each for each in deltas if isinstance(each, Delta)]
        for index, choice in enumerate(result.choices):
            assert "".join(each.text for each in pieces if each.choice == index) == choice.text
        assert len(pieces) > 12
        results.append(told(result))
    assert results[0] == results[1]


def test_a_stream_tells_what_the_server_had_stored(remote: LLM) -> None:
    usages = [run(remote, seed=seed, max_tokens=4).usage for seed in (1, 2)]
    assert usages[1].cached_tokens == 16, "a page of the prompt"
    assert usages[1].model_tokens["base"] == usages[1].prompt_tokens - 16 + 4


def test_a_trace_tells_what_is_known(remote: LLM) -> None:
    (choice,) = run(remote, {"trace": "tokens"}).choices
    assert choice.trace is not None
    assert len(choice.trace) == len(choice.token_ids)
    for each in choice.trace:
        assert each.source == "base"
        assert each.logprob_base == each.logprob_steered
        assert len(each.top_base) == 5
        assert each.entropy is None
        assert each.kl == 0.0
    assert choice.steering is not None
    assert choice.steering.kl == 0.0


def test_conversations_and_salts(here: LLM, remote: LLM) -> None:
    talk = [{"role": "user", "content": "hi"}]
    found = [llm.chat([talk], SamplingParams(seed=2, max_tokens=9), progress=False)[0] for llm in (here, remote)]  # type: ignore[list-item]
    assert told(found[0]) == told(found[1])
    salted = GenerationRequest(prompt=PROMPT, sampling=SamplingParams(seed=2, max_tokens=4), cache_salt="mine")
    assert told(_result(remote, remote.prepare(salted))[-1]) == told(_result(here, here.prepare(salted))[-1])


def duet(kind: type[Toy], gamma: float, strategy: str = "nudging") -> Result:
    """Two voices, of which the guide writes many spaces, so that its words are short."""
    table = random_table(257, scale=6.0)
    toy = kind(table, eos=7)
    toy.add_lm("aligned", lambda prefix: table((9, *prefix)) + 9.0 * (np.arange(257) == 32))
    options = {"gamma": gamma} if strategy == "nudging" else {"threshold": gamma, "window": 1}
    return toy.run(
        [3, 1, 4],
        SamplingParams(temperature=0.0, max_tokens=40),
        decoding={"strategy": strategy, "aligned": "aligned", **options},
    )


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.4, 1.0])
@pytest.mark.parametrize("strategy", ["nudging", "wsd"])
def test_two_voices(strategy: str, gamma: float) -> None:
    """Over a base that tells its best tokens alone; the guide is here."""
    expected, found = duet(Toy, gamma, strategy), duet(FarToy, gamma, strategy)
    assert told(found) == told(expected)
    assert found.choices[0].steering.kl == pytest.approx(expected.choices[0].steering.kl, rel=1e-4)  # type: ignore[union-attr]


def test_a_base_that_speaks_writes_ahead() -> None:
    """It is asked for fewer often than it speaks."""
    result = duet(FarToy, 0.4)
    (choice,) = result.choices
    rate = choice.steering.intervention_rate  # type: ignore[union-attr]
    assert 0 < rate < 1, "both speak"
    assert result.usage.forwards["base"] < len(choice.token_ids)


def test_best_of_n_has_its_exact_law(base_folder: Any, remote: LLM) -> None:
    """P(y) = F(y)^n - F(y-)^n over everything that three tokens can spell, drawn by the server."""
    n, length = 2, 2
    ids = list(LETTERS.values())
    model = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32).requires_grad_(False)
    prompt = remote.vocabulary.encode(PROMPT)
    plain: dict[str, float] = {}
    for answer in product(LETTERS, repeat=length):
        tokens = [LETTERS[letter] for letter in answer]
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 :].double()
        steps = logits[:length, ids].log_softmax(dim=1)
        plain["".join(answer)] = math.exp(sum(float(steps[at, ids.index(id_)]) for at, id_ in enumerate(tokens)))
    reward = {text: sum(letter in "aeiou" for letter in text) for text in plain}
    law = {}
    for text, p in plain.items():
        below = sum(q for other, q in plain.items() if reward[other] < reward[text])
        level = sum(q for other, q in plain.items() if reward[other] == reward[text])
        law[text] = ((below + level) ** n - below**n) * p / level
    sampling = [
        SamplingParams(seed=seed, max_tokens=length, logit_bias=dict.fromkeys(ids, 100.0)) for seed in range(600)
    ]
    decoding = {"strategy": "best_of_n", "n": n, "reward": "vowels"}
    results = remote.generate([PROMPT] * len(sampling), sampling, decoding=decoding, progress=False)
    assert_law(Counter(each.choices[0].text for each in results), law)


@pytest.mark.parametrize(
    ("decoding", "sampling", "param"),
    [
        ({"strategy": "cards", "target": 1.0, "reward": "vowels"}, {}, "decoding.strategy"),
        ({"strategy": "tqstar", "reward": "vowels"}, {}, "decoding.strategy"),
        ({"steer": [{"method": "contrastive", "amateur": "base", "hide_prompt": True}]}, {}, None),
        ({"strategy": "ts_llm", "value": "vowels"}, {"temperature": 0.5}, "decoding.strategy"),
        ({"budget": {"max_kl": 3.0}}, {"top_k": 5}, "decoding.budget.max_kl"),
        ({"strategy": "qalign", "reward": "vowels"}, {"presence_penalty": 1.0}, "presence_penalty"),
    ],
)
def test_what_a_remote_base_cannot_do_is_refused(
    remote: LLM, decoding: dict[str, Any], sampling: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(remote, decoding, **sampling)
    assert param is None or refused.value.param == param


def _result(llm: LLM, prepared: Any) -> list[Any]:
    """All events of one request."""
    events: SimpleQueue[Event] = SimpleQueue()
    llm.submit(prepared, object(), lambda batch: [events.put(event) for _, event in batch] and None)
    found: list[Any] = []
    while not found or not isinstance(found[-1], Result):
        found.append(events.get(timeout=20))
    return found
