"""What steers inside the base's own forward: adapters, control vectors, value heads, other prompts; mixed batches."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from plain import Plain, base_prompt, greedy
from safetensors.torch import load_file
from steered import DRAWN, GREEDY, TOKENS, chat, furnish, guides, ids, load, user
from tiny import tiny_folder
from torch import Tensor
from toy import byte_tokenizer

from trimtab import LLM, SamplingParams
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Result
from trimtab.requests import GenerationRequest

LONG = "a prompt of several pages, so that there is something to share between two requests"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return furnish(tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="module")
def llm(place: Path) -> Iterator[LLM]:
    with load(place / "base", guides(place)) as llm:
        yield llm


@pytest.fixture(scope="module")
def base(place: Path) -> Plain:
    return Plain(place / "base")


def together(llm: LLM, decodings: list[dict[str, Any] | None], sampling: SamplingParams = GREEDY) -> list[Result]:
    """Answers of one batch, each request under its own decoding."""
    requests = [
        GenerationRequest(messages=tuple(user(f"question {i}")), sampling=sampling, decoding=decoding)
        for i, decoding in enumerate(decodings)
    ]
    return llm._run(requests, progress=False)


def test_an_adapter_answers_as_the_merged_model(llm: LLM, place: Path) -> None:
    aligned = {"strategy": "dera", "aligned": "tune", "lam": 1.0}
    mixed = together(llm, [None, aligned, None, aligned])
    with load(place / "merged", {}) as merged:
        expected = together(merged, [None] * 4)
    with load(place / "base", {}) as plain:
        untouched = together(plain, [None] * 4)
    for i in (1, 3):
        assert ids(mixed[i]) == ids(expected[i])
        assert ids(mixed[i]) != ids(untouched[i])
    for i in (0, 2):
        assert mixed[i].choices == untouched[i].choices


def test_an_adapter_with_a_head_scores_as_the_merged_model(llm: LLM, place: Path, base: Plain) -> None:
    judge = Plain(place / "merged_judge")
    weight = load_file(place / "judge" / "adapter_model.safetensors")["base_model.model.score.weight"].double()

    def reward(h: list[int]) -> float:
        hidden = judge.model.base_model(input_ids=torch.tensor([h])).last_hidden_state[0, -1].double()
        return float(weight[0] @ hidden)

    def vas(h: list[int]) -> Tensor:
        s = base.logits(h)
        top = s.topk(5).indices.tolist()
        values = [reward([*h, token]) for token in top]
        s[top] += 3.0 * (torch.tensor(values).double() - sum(values) / 5)
        return s

    found = chat(llm, {"strategy": "vas", "value": "judge", "k": 5})
    assert ids(found) == greedy(vas, base_prompt("Hi"), TOKENS)


def test_a_control_vector_equals_a_model_with_hooks(llm: LLM, place: Path) -> None:
    hooked = Plain(place / "base")
    for name, direction in load_file(place / "calm.safetensors").items():
        layer = hooked.model.model.layers[int(name.removeprefix("direction."))]

        def add(module: object, inputs: object, output: Tensor, *, by: Tensor = 0.8 * direction) -> Tensor:
            return output + by

        layer.register_forward_hook(add)
    decoding = {"strategy": "control_vector", "vector": "calm", "coeff": 0.8}
    steered = chat(llm, decoding)
    assert ids(steered) == greedy(hooked.logits, base_prompt("Hi"), TOKENS)
    assert ids(steered) != ids(chat(llm, None))
    assert steered.choices[0].steering is not None
    assert steered.choices[0].steering.kl is None  # the base itself did not run
    measured = chat(llm, {**decoding, "measure_kl": True}).choices[0].steering
    assert measured is not None
    plain, tokens = Plain(place / "base"), ids(steered)
    kl = 0.0
    for i in range(len(tokens)):
        h = [*base_prompt("Hi"), *tokens[:i]]
        lp = hooked.logprobs(h)
        kl += float((lp.exp() * (lp - plain.logprobs(h))).sum())
    assert measured.kl == pytest.approx(kl, rel=1e-3)


def test_no_coefficient_is_the_base_and_prefixes_are_shared_among_equals_only(llm: LLM) -> None:
    def vector(coeff: float) -> Result:
        return chat(llm, {"strategy": "control_vector", "vector": "calm", "coeff": coeff}, messages=user(LONG))

    plain = chat(llm, None, messages=user(LONG))
    assert plain.usage.cached_tokens == 0
    none = vector(0.0)
    assert none.choices == plain.choices
    assert none.usage.cached_tokens >= 80
    assert vector(0.5).usage.cached_tokens == 0
    assert vector(0.7).usage.cached_tokens == 0
    assert vector(0.5).usage.cached_tokens >= 80


def climbed(llm: LLM, base: Plain, place: Path, rate: float, steps: int) -> Callable[[list[int]], Tensor]:
    """Logits after gradient steps on the value, by autograd."""
    head = load_file(place / "state.safetensors")

    def logits(h: list[int]) -> Tensor:
        hidden = base.model.base_model(input_ids=torch.tensor([h])).last_hidden_state[0, -1].double()
        for _ in range(steps):
            hidden = hidden.detach().requires_grad_(True)
            inner = (head["layers.0.weight"].double() @ hidden + head["layers.0.bias"]).relu()
            value = (head["layers.1.weight"].double() @ inner + head["layers.1.bias"])[0]
            (gradient,) = torch.autograd.grad(value, hidden)
            hidden = hidden + rate * gradient
        return base.model.lm_head.weight.double() @ hidden.detach()

    return logits


def test_re_control_equals_autograd_and_reports_its_distance(llm: LLM, base: Plain, place: Path) -> None:
    prompt = base_prompt("Hi")
    for rate, steps in ((0.5, 1), (0.3, 6)):
        logits = climbed(llm, base, place, rate, steps)
        found = chat(llm, {"strategy": "re_control", "value": "state", "lr": rate, "n": steps})
        tokens = ids(found)
        assert tokens == greedy(logits, prompt, TOKENS)
        kl = 0.0
        for i in range(len(tokens)):
            h = [*prompt, *tokens[:i]]
            lp = logits(h).log_softmax(dim=0)
            kl += float((lp.exp() * (lp - base.logprobs(h))).sum())
        assert found.choices[0].steering is not None
        assert found.choices[0].steering.kl == pytest.approx(kl, rel=1e-3)
    assert ids(found) != ids(chat(llm, None))
    still = chat(llm, {"strategy": "re_control", "value": "state", "lr": 0.0})
    assert still.choices[0].token_ids == chat(llm, None).choices[0].token_ids


@pytest.mark.parametrize("k", [None, 4])
def test_a_head_of_the_vocabulary_values_every_token(llm: LLM, base: Plain, place: Path, k: int | None) -> None:
    head = load_file(place / "tokens.safetensors")

    def cd(h: list[int]) -> Tensor:
        hidden = base.model.base_model(input_ids=torch.tensor([h])).last_hidden_state[0, -1].double()
        inner = (head["layers.0.weight"].double() @ hidden + head["layers.0.bias"]).relu()
        values = head["layers.1.weight"].double() @ inner + head["layers.1.bias"]
        z = base.logits(h)
        allowed = z >= z.topk(k or len(z)).values[-1]
        return torch.where(allowed, z + 2.0 * values, -torch.inf)

    assert ids(chat(llm, {"strategy": "cd", "value": "tokens", "lam": 2.0, "k": k})) == greedy(
        cd, base_prompt("Hi"), TOKENS
    )


def test_cfg_contrasts_the_prompt_with_and_without_its_system_message(llm: LLM, base: Plain) -> None:
    rest = base_prompt("Hi")
    system = [*_encoded("<system>be kind\n"), *rest]
    rude = [*_encoded("<system>be rude\n"), *rest]

    def guided(other: list[int], gamma: float) -> Callable[[list[int]], Tensor]:
        def logits(h: list[int]) -> Tensor:
            lp = base.logprobs([*other, *h[len(system) :]])
            return lp + gamma * (base.logprobs(h) - lp)

        return logits

    asked = user("Hi", system="be kind")
    assert ids(chat(llm, {"strategy": "cfg", "gamma": 2.0}, messages=asked)) == greedy(
        guided(rest, 2.0), system, TOKENS
    )
    negative = {"strategy": "cfg", "gamma": 2.0, "negative_prompt": "be rude"}
    assert ids(chat(llm, negative, messages=asked)) == greedy(guided(rude, 2.0), system, TOKENS)
    assert ids(chat(llm, {"strategy": "cfg", "gamma": 1.0}, messages=asked)) == ids(chat(llm, None, messages=asked))
    with pytest.raises(InvalidRequest, match="read the same prompt twice: add a system message"):
        chat(llm, {"strategy": "cfg", "gamma": 3.0})


def test_cfg_of_a_text_contrasts_it_with_its_last_token(llm: LLM, base: Plain) -> None:
    text = _encoded("Once upon a time")

    def guided(h: list[int]) -> Tensor:
        lp = base.logprobs(h[len(text) - 1 :])
        return lp + 1.5 * (base.logprobs(h) - lp)

    (found,) = llm.generate(["Once upon a time"], GREEDY, decoding={"strategy": "cfg"}, progress=False)
    assert ids(found) == greedy(guided, text, TOKENS)
    before = _encoded("Not so:\nOnce upon a time")

    def negated(h: list[int]) -> Tensor:
        lp = base.logprobs([*before, *h[len(text) :]])
        return lp + 1.5 * (base.logprobs(h) - lp)

    decoding = {"strategy": "cfg", "negative_prompt": "Not so:"}
    (found,) = llm.generate(["Once upon a time"], GREEDY, decoding=decoding, progress=False)
    assert ids(found) == greedy(negated, text, TOKENS)


def test_a_preference_is_read_by_the_guide_alone(llm: LLM, place: Path, base: Plain) -> None:
    arm, prompt = Plain(place / "arm"), base_prompt("Hi")
    told = [*_encoded("<system>in rhymes\n"), *prompt]

    def pad(h: list[int]) -> Tensor:
        s = 0.2 * base.logprobs(h) + 0.8 * arm.logprobs([*told, *h[len(prompt) :]])
        allowed = torch.zeros(len(s), dtype=torch.bool)
        allowed[base.logits(h).topk(10).indices] = True
        return s.masked_fill(~allowed, -torch.inf)

    found = ids(chat(llm, {"strategy": "pad", "arm": "arm", "w": 0.8, "preference": "in rhymes"}))
    assert found == greedy(pad, prompt, TOKENS)
    assert found != ids(chat(llm, {"strategy": "pad", "arm": "arm", "w": 0.8}))


MANY: list[dict[str, Any] | None] = [
    None,
    {"strategy": "genarm", "arm": "arm"},
    {"strategy": "dera", "aligned": "tune", "lam": 1.5},
    {"strategy": "control_vector", "vector": "calm", "coeff": 0.5},
    {"strategy": "args", "reward": "taste"},
    {"strategy": "vas", "value": "judge"},
    {"strategy": "re_control", "value": "state", "lr": 0.3, "n": 3},
    {"strategy": "cd", "value": "tokens"},
    {"strategy": "cfg", "gamma": 2.0, "negative_prompt": "be rude"},
    {"strategy": "nudging", "aligned": "anti", "gamma": 0.3},
    {"strategy": "best_of_n", "n": 2, "reward": "brief", "steer": [{"method": "genarm", "arm": "anti"}]},
    {"strategy": "mod", "weights": {"arm": 0.5, "anti": 0.5}},
]


def test_a_mixed_batch_equals_each_request_alone(llm: LLM) -> None:
    sampling = DRAWN.model_copy(update={"max_tokens": 20})
    mixed = together(llm, MANY, sampling)
    for i, decoding in enumerate(MANY):
        alone = chat(llm, decoding, sampling, user(f"question {i}"))
        assert alone.choices[0].token_ids == mixed[i].choices[0].token_ids, decoding
    for model in llm.models.values():
        model.runner.pool.check([])


def test_a_mixed_batch_under_a_small_pool_is_the_same(llm: LLM, place: Path) -> None:
    sampling = DRAWN.model_copy(update={"max_tokens": 40, "ignore_eos": True})
    roomy = together(llm, MANY, sampling)
    with load(place / "base", guides(place), pool_tokens=256) as cramped:
        small = together(cramped, MANY, sampling)
        assert cramped.stats.preemptions
        for model in cramped.models.values():
            model.runner.pool.check([])
    for decoding, one, other in zip(MANY, roomy, small, strict=True):
        assert one.choices[0].token_ids == other.choices[0].token_ids, decoding


def test_a_base_with_windows_steers_beyond_them(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "gemma", "gemma3_text")
    base, arm = Plain(folder), Plain(tiny_folder(tmp_path / "arm", seed=1))
    sampling = GREEDY.model_copy(update={"max_tokens": 24})
    with load(folder, {"arm": {"role": "lm", "model": str(tmp_path / "arm")}}) as llm:
        prompt = base_prompt("much longer than nine tokens")
        ask = user("much longer than nine tokens")
        alone = base.model.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)
        assert ids(chat(llm, None, sampling, ask)) == alone[0, len(prompt) :].tolist()
        decoding = {"strategy": "genarm", "arm": "arm"}
        assert ids(chat(llm, decoding, sampling, ask)) == greedy(lambda h: base.logits(h) + arm.logits(h), prompt, 24)


def _encoded(text: str) -> list[int]:
    return list(byte_tokenizer().encode(text))
