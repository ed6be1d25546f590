"""Steering as clients meet it: answers, traces and streams through OpenAI's client, errors, guides and metrics."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest
from folders import foreign_folder, teach_letters
from openai import OpenAI
from steered import furnish, guides, load
from transformers import AutoModelForCausalLM
from wire import CHAT, TEXT, metrics

from trimtab import EngineSettings, SamplingParams
from trimtab.engine.guides.card import Card, identity
from trimtab.llm import LLM
from trimtab.server.doctor import examine
from trimtab.server.settings import ServerSettings, Settings

ASK = [{"role": "user", "content": "Hi"}]
GENARM = {"strategy": "genarm", "arm": "arm", "alpha": 0.8}
LETTERS = "abcdehilnorstuwy "
ORIGIN: dict[str, Any] = {"data": "our own words", "licence": "CC0-1.0", "policy": None, "metrics": {"spearman": 0.9}}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = furnish(tmp_path_factory.mktemp("served"))
    teach_letters(foreign_folder(place / "foreign", seed=12), LETTERS, loudness=2.0)
    base = identity("base", AutoModelForCausalLM.from_pretrained(place / "base"))
    Card(kind="reward", base=base, **ORIGIN, training={"seed": 1}, version="0").save(place / "judge")
    return place


@pytest.fixture(scope="module")
def configured(place: Path) -> dict[str, Any]:
    return {**guides(place), "foreign": {"role": "lm", "model": str(place / "foreign")}}


@pytest.fixture(scope="module")
def steered(place: Path, configured: dict[str, Any]) -> Iterator[LLM]:
    with load(place / "base", configured) as llm:
        yield llm


@pytest.fixture
def url(steered: LLM, start: Callable[..., Any]) -> str:
    return str(start(steered).url)


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    """OpenAI's client, which validates every response strictly."""
    with OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=30, _strict_response_validation=True) as c:
        yield c


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "base", "messages": ASK, "max_tokens": 10, "seed": 1, **changes}


def test_a_traced_answer(client: OpenAI, steered: LLM) -> None:
    decoding = {**GENARM, "trace": "tokens"}
    answer = client.chat.completions.create(**body(n=2), extra_body={"decoding": decoding, "return_token_ids": True})
    sampling = SamplingParams(max_tokens=10, seed=1)
    (offline,) = steered.chat([ASK], sampling, n=2, decoding=decoding, progress=False)
    told = answer.decoding
    assert told["spec"] == {"strategy": "genarm", "arm": "arm", "alpha": 0.8, "arms": None, "trace": "tokens"}
    for choice, own, trace, summary in zip(
        answer.choices, offline.choices, told["trace"], told["steering"], strict=True
    ):
        assert choice.message.content == own.text
        assert [each["id"] for each in trace] == choice.token_ids == list(own.token_ids)
        assert own.steering is not None
        assert summary["tokens"] == len(trace)
        assert summary["kl"] == pytest.approx(own.steering.kl, abs=1e-5)
        assert summary["kl"] == pytest.approx(sum(each["kl"] for each in trace), abs=1e-4)
        assert summary["logprob_base"] == pytest.approx(sum(each["logprob_base"] for each in trace), abs=1e-4)
        for each in trace:
            best = each["top_steered"][0]
            assert set(best) == {"id", "text", "logprob"}
            assert best["logprob"] >= each["logprob_steered"] - 1e-4
    assert set(told["model_tokens"]) == {"base", "arm"}
    assert told["model_tokens"]["arm"] == told["model_tokens"]["base"]


def test_values_are_traced_and_json_has_no_infinity(client: OpenAI) -> None:
    decoding = {"strategy": "args", "reward": "taste", "k": 3, "trace": "tokens"}
    told = client.chat.completions.create(**body(), extra_body={"decoding": decoding}).decoding
    for each in told["trace"][0]:
        assert isinstance(each["values"]["taste"], float)
        assert sum(top["logprob"] is not None for top in each["top_steered"]) == 3
    assert told["steering"][0]["kl"] > 0


def test_completions_and_their_streams_carry_the_same_report(client: OpenAI, url: str) -> None:
    extra = {"decoding": {**GENARM, "trace": "tokens"}}
    ask = {"model": "base", "prompt": "Hi", "max_tokens": 10, "seed": 1}
    whole = client.completions.create(**ask, extra_body=extra)
    # Not OpenAI's client: its schema has no completion chunk without a finish reason.
    *_, last, done, rest = httpx2.post(url + TEXT, json={**ask, **extra, "stream": True}).text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    streamed = json.loads(last.removeprefix("data: "))["decoding"]
    for name in ("steering", "trace", "model_tokens", "spec"):
        assert streamed[name] == whole.decoding[name]
    assert len(whole.decoding["trace"][0]) == whole.usage.completion_tokens
    two = client.completions.create(**{**ask, "prompt": ["Hi", "Ho"]}, extra_body=extra)
    assert [len(each["trace"]) for each in two.decoding] == [1, 1]
    plain = client.completions.create(**ask).decoding
    assert plain["steering"] == [None]
    assert "trace" not in plain


@pytest.mark.parametrize(
    "decoding",
    [
        GENARM,
        {"strategy": "nudging", "aligned": "foreign", "gamma": 0.05},
        {"strategy": "wsd", "aligned": "foreign", "threshold": 0.001, "window": 2},
        {"strategy": "best_of_n", "n": 2, "reward": "brief", "steer": [{"method": "args", "reward": "taste"}]},
    ],
    ids=lambda decoding: decoding["strategy"],
)
def test_a_stream_is_the_whole_answer_in_parts(client: OpenAI, decoding: dict[str, Any]) -> None:
    extra = {"decoding": {**decoding, "trace": "tokens"}}
    whole = client.chat.completions.create(**body(max_tokens=30), extra_body=extra)
    chunks = list(client.chat.completions.create(**body(max_tokens=30), extra_body=extra, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    for name in ("steering", "trace", "chosen"):
        assert chunks[-1].decoding[name] == whole.decoding[name]
    sources = {each["source"] for each in whole.decoding["trace"][0]}
    assert sources <= {"nudging": {"nudge", "base"}, "wsd": {"draft", "base"}}.get(decoding["strategy"], {"steered"})
    if decoding["strategy"] == "nudging":
        nudged = [each["source"] == "nudge" for each in whole.decoding["trace"][0]]
        assert whole.decoding["steering"][0]["intervention_rate"] == pytest.approx(sum(nudged) / len(nudged), abs=1e-5)
    for name, field in (("branching_factor", "entropy"), ("branching_factor_base", "entropy_base")):
        known = [each[field] for each in whole.decoding["trace"][0] if each[field] is not None]
        factor = math.exp(sum(known) / len(known)) if known else None
        assert whole.decoding["steering"][0][name] == pytest.approx(factor, rel=1e-4)


@pytest.mark.parametrize(
    ("decoding", "param", "words"),
    [
        ({"strategy": "genarm", "arm": "arn"}, "decoding.arm", "no guide is named 'arn'"),
        ({"strategy": "genarm", "arm": "taste"}, "decoding.arm", "guide 'taste' has the role 'reward'"),
        ({"strategy": "genarm"}, "decoding", "give either arm"),
        ({"strategy": "genarm", "arm": "arm", "alhpa": 1}, "decoding.alhpa", "did you mean 'alpha'?"),
        ({"strategy": "genarm", "arm": "arm", "alpha": "1"}, "decoding.alpha", "valid number"),
        ({"steer": [{"method": "genarm", "arm": "gone"}]}, "decoding.steer.0.arm", "no guide is named 'gone'"),
        ({"steer": [{"method": "best_of_n"}]}, "decoding.steer.0.method", "works on whole answers"),
        ({"trace": "all"}, "decoding.trace", "make it one of 'tokens', 'search', 'both'"),
        ({"strategy": "args", "reward": "brief"}, "decoding.reward", "scores whole answers alone"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_cannot_steer_is_a_400_that_names_the_field(
    url: str, path: str, decoding: dict[str, Any], param: str, words: str
) -> None:
    ask = body(decoding=decoding) if path == CHAT else {"model": "base", "prompt": "Hi", "decoding": decoding}
    refused = httpx2.post(url + path, json=ask)
    error = refused.json()["error"]
    assert refused.status_code == 400
    assert error["param"] == param
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


def test_guides_are_listed_with_what_they_can_do(url: str) -> None:
    listed = {each["name"]: each for each in httpx2.get(url + "/v1/guides").json()["data"]}
    reads = {"vocabulary": "same", "context_length": 256, "chat_template": True}
    lm = {"role": "lm", "scores_candidates": False, "scores_answers": False}
    scorer = {"scores_candidates": True, "scores_answers": True}
    head = {"role": "value", "scores_answers": False}
    contracts = {name: each.pop("contract") for name, each in listed.items() if "contract" in each}
    card = listed["judge"].pop("card")
    assert (card["kind"], card["base"]["source"]) == ("reward", "base")
    assert {name: card[name] for name in ORIGIN} == ORIGIN
    assert card.keys() == {"kind", "base", *ORIGIN}
    assert listed == {
        "arm": {"name": "arm", "model": "arm", **lm, **reads},
        "anti": {"name": "anti", "model": "anti", **lm, **reads},
        "tune": {"name": "tune", "model": "tune", **lm, **reads},
        "taste": {"name": "taste", "role": "reward", "model": "taste", **scorer, **reads},
        "judge": {"name": "judge", "role": "reward", "model": "judge", **scorer, **reads},
        "worth": {"name": "worth", "role": "value", "model": "worth", **scorer, **reads},
        "state": {"name": "state", "model": "state.safetensors", **head, "scores_candidates": False},
        "tokens": {"name": "tokens", "model": "tokens.safetensors", **head, "scores_candidates": True},
        "calm": {
            "name": "calm",
            "role": "vector",
            "model": "calm.safetensors",
            "scores_candidates": False,
            "scores_answers": False,
        },
        "brief": {
            "name": "brief",
            "role": "program",
            "model": "length",
            "scores_candidates": False,
            "scores_answers": True,
        },
        "foreign": {"name": "foreign", "model": "foreign", **lm, **reads, "vocabulary": "translated"},
    }
    assert contracts.keys() == {"taste", "judge", "worth"}
    for contract in contracts.values():
        assert contract["ok"] is True
        batches = next(each for each in contract["findings"] if each["name"] == "batches")
        assert batches.pop("finding").startswith("the same scores at batch 1, 2 and 7")
        assert batches == {"name": "batches", "ok": True}


def test_guides_of_other_tokens_are_listed_as_such(place: Path, start: Callable[..., Any]) -> None:
    """A base with merged words beside guides that know bytes: only text carries over."""
    with load(place / "foreign", {name: guides(place)[name] for name in ("arm", "taste")}) as llm:
        listed = httpx2.get(start(llm).url + "/v1/guides").json()["data"]
    assert [(each["vocabulary"], each["scores_candidates"], each["scores_answers"]) for each in listed] == [
        ("text only", False, False),
        ("text only", False, True),
    ]


def test_metrics_count_each_model_and_how_often_steering_changed_a_token(url: str) -> None:
    before = metrics(url)
    told = httpx2.post(url + CHAT, json=body(decoding=GENARM)).json()["decoding"]
    after = metrics(url)

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    for name, tokens in told["model_tokens"].items():
        assert grew(f'trimtab:model_tokens_total{{guide="{name}"}}') == tokens > 0
    assert grew('trimtab:intervention_rate_count{strategy="genarm"}') == 1
    rate = grew('trimtab:intervention_rate_sum{strategy="genarm"}')
    assert rate == pytest.approx(told["steering"][0]["intervention_rate"], abs=1e-5)
    assert rate > 0


def test_the_doctor_tells_what_each_guide_is(place: Path, configured: dict[str, Any], monkeypatch: Any) -> None:
    def told(**settings: Any) -> dict[str, Any]:
        engine = EngineSettings.model_validate({"device": "cpu", "pool_tokens": 1024, **settings})
        checks = examine(Settings(server=ServerSettings(port=0), engine=engine))
        return {check.name: check for check in checks}

    found = told(model=str(place / "base"), guides=configured)
    assert all(check.ok for check in found.values())
    assert found["guide tune"].finding == "lm tune, vocabulary same, context of 256 tokens, chat template"
    assert found["guide foreign"].finding == "lm foreign, vocabulary translated, context of 256 tokens, chat template"
    assert found["guide brief"].finding == "program length"
    assert found["guide judge"].finding.endswith(", chat template, trained on our own words (CC0-1.0)")
    for name in ("taste", "judge", "worth"):
        assert found[f"batches of {name}"].finding.startswith("the same scores at batch 1, 2 and 7")
        assert found[f"padding of {name}"].finding == "none: every answer has pages of its own"
    assert "batches of brief" not in found

    def lopsided(self: object, pairs: Sequence[Any]) -> list[float]:
        return [len(pair.answer) / len(pairs) for pair in pairs]

    monkeypatch.setattr("trimtab.engine.rewards.causal.CausalReward.score", lopsided)
    (problem,) = (
        check
        for check in told(model=str(place / "base"), guides={"taste": configured["taste"]}).values()
        if not check.ok
    )
    assert problem.line.startswith("problem  batches of taste: scores differ by ")
    assert problem.line.partition(" -> ")[2].startswith("set max_batch_tokens to 1")
