"""Searches as clients meet them: whole and streamed answers, progress, candidates, failures, and clients that leave."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
from gate import Gate
from openai import OpenAI
from steered import furnish, guides, load
from wire import CHAT, TEXT, empty, leaving, metrics

from trimtab.clients.client import TrimtabClient
from trimtab.decoders.registry import strategies
from trimtab.engine.rewards import Judgement, Pair, Reward
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.server.settings import ServerSettings

ASK = [{"role": "user", "content": "Hi"}]
TREE = {"reward": "taste", "simulations": 6, "parallel": 2, "block": 4}
STEPS = {"value": "taste", "n": 4, "m": 2, "step_tokens": 4}
SMALL: dict[str, dict[str, Any]] = {
    "beam_search": STEPS,
    "best_of_n": {"reward": {"sum": ["taste", {"guide": "brief", "weight": 0.1}]}, "n": 3, "export": "best_and_worst"},
    "cards": {"reward": "taste", "target": 2.0, "entropy": 2.0, "max_segment": 4, "attempts": 4},
    "cbs": {"tuned": "arm", "w": 2, "k": 2, "chunk": 4},
    "cd_blockwise": {"value": "taste", "k": 3, "block": 4},
    "darwin": {"reward": "taste", "mutations": 2, "mutation_tokens": 8, "m": 4, "elite": 1},
    "deal": {"reward": "taste", "beams": 2, "k": 3, "lookahead": 2},
    "dts": TREE,
    "dts_star": TREE,
    "dvts": STEPS,
    "gsi": {"draft": "arm", "value": "taste", "n": 2, "step_tokens": 4},
    "particle_filter": {"reward": "taste", "n": 3, "block": 4},
    "ppo_mcts": {"value": "state", "simulations": 4, "k": 3},
    "qalign": {"reward": "taste", "steps": 4},
    "refine": {"guide": "arm", "n": 2, "reward": "taste"},
    "rps": {"preference": {"taste": 1.0, "judge": 0.5}, "directions": 2},
    "rsd": {"draft": "arm", "value": "taste", "delta": 0.0, "step_tokens": 4},
    "sample": {},
    "self_consistency": {"n": 3, "extract": "text"},
    "speculative_rejection": {"reward": "taste", "n": 4, "schedule": [4]},
    "tqstar": {"reward": "taste", "k": 2, "rollout": 2},
    "treebon": {"dpo": "arm", "reward": "taste", "n": 4, "children": 2, "segment": 3},
    "ts_llm": {"value": "worth", "simulations": 3, "width": 2, "step_tokens": 4},
}
"""every search, as small as it goes"""


class Moody:
    """A reward that fails on some answers."""

    name = "moody"

    def judge(self, pairs: list[Pair]) -> list[Judgement]:
        if any(len(pair.answer) % 2 for pair in pairs):
            raise RuntimeError("secret path /srv/models")
        return [Judgement(float(len(pair.answer)), (0.0,)) for pair in pairs]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = furnish(tmp_path_factory.mktemp("searched"))
    for model in ("base", "arm"):  # room for conversations that a search writes itself
        config = place / model / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 2048}))
    return place


@pytest.fixture(scope="module")
def searching(place: Path) -> Iterator[LLM]:
    with load(place / "base", guides(place), threads=1) as llm:
        cast(dict[str, Reward], llm.rewards)["moody"] = Moody()
        yield llm


@pytest.fixture(scope="module")
def url(searching: LLM, start_shared: Callable[..., Any]) -> str:
    return str(start_shared(searching).url)


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    """OpenAI's client, which validates every response strictly."""
    with OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60, _strict_response_validation=True) as c:
        yield c


def body(strategy: str = "best_of_n", parameters: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    decoding = {"strategy": strategy, **(SMALL[strategy] if parameters is None else parameters)}
    return {"model": "base", "messages": ASK, "max_tokens": 12, "seed": 1, "decoding": decoding, **changes}


def ask(client: OpenAI, sent: dict[str, Any]) -> Any:
    decoding = sent["decoding"]
    known = {name: value for name, value in sent.items() if name != "decoding"}
    return client.chat.completions.create(**known, extra_body={"decoding": decoding})


def events(response: httpx2.Response) -> list[dict[str, Any]]:
    """The chunks of a stream; JSON that is not strict is an error."""
    assert response.status_code == 200, response.text
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [strict(event.removeprefix("data: ")) for event in events if event[0] != ":"]


def strict(text: str) -> dict[str, Any]:
    def refuse(name: str) -> float:
        raise ValueError(f"{name} is not JSON")

    parsed: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return parsed


def test_every_search_is_tried_here() -> None:
    assert set(SMALL) == {each.name for each in strategies().values() if each.kind == "search"}


@pytest.mark.parametrize("strategy", SMALL)
def test_a_stream_is_the_whole_answer_in_parts(client: OpenAI, url: str, strategy: str) -> None:
    whole = ask(client, body(strategy))
    chunks = list(ask(client, body(strategy, stream=True)))
    (choice,) = whole.choices
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == choice.message.content
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason
    told, streamed = whole.decoding, strict(json.dumps(chunks[-1].decoding))
    assert told["spec"] == streamed["spec"]
    assert told["chosen"] == streamed["chosen"]
    assert told["stopped_by"] == streamed["stopped_by"] == "finished"
    assert told.get("report", {}).keys() == streamed.get("report", {}).keys()
    assert [each["tokens"] for each in told["candidates"]] == [each["tokens"] for each in streamed["candidates"]]
    if told["chosen"] != [None]:
        chosen = told["candidates"][told["chosen"][0]]
        assert chosen["choice"] == 0
        assert chosen.get("text", choice.message.content) == choice.message.content
    assert metrics(url)["trimtab:kv_pages_used"] == 0


@pytest.mark.parametrize("strategy", ["best_of_n", "cards", "cd_blockwise", "self_consistency"])
def test_streams_of_two_choices(client: OpenAI, strategy: str) -> None:
    whole = ask(client, body(strategy, n=2))
    texts = ["", ""]
    for chunk in ask(client, body(strategy, n=2, stream=True)):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_text_that_is_certain_comes_before_the_end(url: str) -> None:
    chunks = events(httpx2.post(url + CHAT, json=body("cd_blockwise", stream=True, ignore_eos=True)))
    assert sum(bool(choice["delta"].get("content")) for c in chunks for choice in c["choices"]) == 3  # 12 tokens, by 4


def test_candidates_tell_what_each_guide_gave(client: OpenAI, searching: LLM) -> None:
    told = ask(client, body()).decoding
    assert len(told["candidates"]) == 3
    for each in told["candidates"]:
        taste, brief = each["rewards"]["taste"], each["rewards"]["brief"]
        assert brief == -len(each["text"])
        assert each["reward"] == pytest.approx(taste + 0.1 * brief, abs=1e-5)
        assert each["value"] is None
    best, worst = (f(told["candidates"], key=lambda each: each["reward"]) for f in (max, min))
    assert told["report"]["pair"] == {
        "chosen": best["text"],
        "rejected": worst["text"],
        "chosen_reward": best["reward"],
        "rejected_reward": worst["reward"],
    }
    blocks = ask(client, body("speculative_rejection", {**SMALL["speculative_rejection"], "alpha": 0.5})).decoding
    dropped = [each for each in blocks["candidates"] if each["reward"] is None]
    assert len(dropped) == 2
    assert all(isinstance(each["value"], float) for each in blocks["candidates"])
    plain = ask(client, body("sample")).decoding
    assert set(plain["candidates"][0]) == {"tokens", "reward", "finish_reason", "choice"}
    assert "report" not in plain


def test_pairs_are_the_best_and_the_worst_of_n(url: str, tmp_path: Path) -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("Hi", "Ho", "He")]
    with TrimtabClient(url) as client:
        written = client.pairs(
            "base", conversations, tmp_path / "pairs.jsonl", n=3, reward="taste", max_tokens=8, seed=4
        )
        answer = client.chat(
            "base",
            conversations[1],
            decoding={"strategy": "best_of_n", "n": 3, "reward": "taste"},
            max_tokens=8,
            seed=5,
        )
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert written == 3
    assert [row["prompt"] for row in rows] == conversations
    ranked = sorted(answer.decoding["candidates"], key=lambda each: each["reward"])
    assert rows[1]["chosen"] == [{"role": "assistant", "content": ranked[-1]["text"]}]
    assert rows[1]["rejected"] == [{"role": "assistant", "content": ranked[0]["text"]}]
    assert rows[1]["rejected_reward"] == pytest.approx(ranked[0]["reward"], abs=1e-5)


def test_rules_of_selection_and_refusals(client: OpenAI, url: str) -> None:
    abstain = {"rule": "abstain", "tau": 1e3, "message": "No."}
    before = metrics(url)
    answer = ask(client, body(parameters={"n": 3, "reward": "taste", "select": abstain}))
    assert answer.choices[0].message.content == "No."
    assert answer.decoding["stopped_by"] == "abstained"
    assert answer.decoding["chosen"] == [None]
    assert answer.decoding["report"]["abstain_tau"] == 1e3
    assert len(answer.decoding["candidates"]) == 3
    name = 'trimtab:request_stopped_total{by="abstained",strategy="best_of_n"}'
    assert metrics(url)[name] == before.get(name, 0) + 1


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("include_usage", [False, True])
def test_progress_is_told_between_the_texts(url: str, path: str, include_usage: bool) -> None:
    options = {"include_progress": True, "include_usage": include_usage}
    sent = body("cd_blockwise", stream=True, stream_options=options, ignore_eos=True)
    if path == TEXT:
        del sent["messages"]
        sent["prompt"] = "Hi"
    chunks = events(httpx2.post(url + path, json=sent))
    told = [chunk["progress"] for chunk in chunks if "progress" in chunk]
    assert told
    assert all(chunk["choices"] == [] for chunk in chunks if "progress" in chunk)
    assert all(("usage" in chunk) == include_usage for chunk in chunks)
    keys = {"phase", "candidates", "finished", "best_reward", "model_tokens", "milliseconds"}
    assert all(set(each) == keys for each in told)
    for name in ("model_tokens", "milliseconds"):
        assert [each[name] for each in told] == sorted(each[name] for each in told)
    assert told[-1]["model_tokens"] < sum(chunks[-1]["decoding"]["model_tokens"].values())


def test_openais_client_reads_over_progress(client: OpenAI) -> None:
    sent = body("best_of_n", stream=True, stream_options={"include_progress": True})
    chunks = list(ask(client, sent))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == ask(client, body("best_of_n")).choices[0].message.content
    told = [c.progress for c in chunks if not c.choices]
    assert told[-1]["phase"] == "score"
    assert told[-1]["finished"] == told[-1]["candidates"] == 3


def test_progress_of_several_prompts_names_the_prompt(url: str) -> None:
    sent = {**body("best_of_n", stream=True, stream_options={"include_progress": True}), "prompt": ["Hi", "Ho"]}
    del sent["messages"]
    told = [chunk["progress"] for chunk in events(httpx2.post(url + TEXT, json=sent)) if "progress" in chunk]
    assert {each["prompt"] for each in told} == {0, 1}


def test_unread_progress_costs_one_chunk(fake: Any, start: Any, wait_until: Any, gate: Gate) -> None:
    running = start(fake)
    sent = {"model": "fake", "messages": ASK, "stream": True, "stream_options": {"include_progress": True}}
    with httpx2.stream("POST", running.url + CHAT, json=sent) as response:
        wait_until(lambda: len(fake.submitted) == 1)
        assert fake.submitted[0][0].request.progress
        running.service.bridge._loop.call_soon_threadsafe(gate.before(lambda: None))  # nothing is read meanwhile
        gate.reach(1)
        for tokens in range(50):
            fake.progress("decode", model_tokens=tokens)
        fake.progress("score", best_reward=float("inf"), model_tokens=50)
        gate.open()
        fake.end("a")
        received = response.read().decode()
    told = [strict(line[6:])["progress"] for line in received.split("\n\n") if '"progress"' in line]
    (only,) = told
    assert (only["phase"], only["model_tokens"], only["milliseconds"]) == ("score", 50, 1.235)
    assert only["best_reward"] is None
    assert 'reason="error"' not in httpx2.get(running.url + "/metrics").text


def test_a_silent_search_keeps_its_stream_alive(
    searching: LLM, start: Any, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start(searching, ServerSettings(keep_alive=0.05))
    with monkeypatch.context() as patch:
        patch.setattr(searching.rewards["taste"], "judge", gate.before(searching.rewards["taste"].judge))
        with httpx2.stream("POST", running.url + CHAT, json=body(stream=True)) as response:
            gate.reach(1)
            received = response.iter_bytes()
            heard = b""
            while heard.count(b": keep-alive\n\n") < 3:
                heard += next(received)
            gate.open()
            rest = heard + b"".join(received)
    assert b"data: [DONE]" in rest
    assert b'"stopped_by":"finished"' in rest


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("strategy", ["best_of_n", "cards", "ppo_mcts", "treebon", "rps", "dts", "refine"])
def test_a_client_that_leaves_a_search_frees_everything(
    searching: LLM,
    url: str,
    wait_until: Any,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str,
    stream: bool,
) -> None:
    runner = searching._worker.engine.runner
    name = f'trimtab:request_failure_total{{reason="cancelled",strategy="{strategy}"}}'
    before = metrics(url).get(name, 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(runner, "decode", gate.before(runner.decode))
        with leaving(url, body(strategy, stream=stream, ignore_eos=True)):
            gate.reach(5)
            assert metrics(url)["trimtab:kv_pages_used"] > 0
        wait_until(lambda: metrics(url).get(name, 0.0) == before + 1)
        gate.open()
        wait_until(lambda: empty(url))
    for model in searching.models.values():
        model.runner.pool.check([])


@pytest.mark.parametrize("stream", [False, True])
def test_a_reward_that_fails_is_named_and_nothing_else(url: str, stream: bool) -> None:
    sent = body(parameters={"n": 4, "reward": "moody"}, stream=stream)
    response = httpx2.post(url + CHAT, json=sent)
    error = (events(response)[-1] if stream else response.json())["error"]
    assert response.status_code == (200 if stream else 500)
    assert (error["message"], error["code"]) == ("guide 'moody' failed", "guide_error")
    assert "secret" not in response.text
    assert empty(url)


def test_an_answer_that_a_reward_fails_on_may_lose(place: Path, start: Any) -> None:
    settings = EngineSettings(
        model=str(place / "base"), device="cpu", threads=1, pool_tokens=2048, guides={}, reward_errors="lose"
    )
    with LLM(settings=settings) as llm:
        cast(dict[str, Reward], llm.rewards)["moody"] = Moody()
        url = start(llm).url
        sent = body(parameters={"n": 8, "reward": "moody"})
        told = httpx2.post(url + CHAT, json=sent).json()
        streamed = events(httpx2.post(url + CHAT, json={**sent, "stream": True}))[-1]
    for decoding in (told["decoding"], streamed["decoding"]):
        rewards = [each["reward"] for each in decoding["candidates"]]
        assert rewards == [float(len(c["text"])) if len(c["text"]) % 2 == 0 else None for c in decoding["candidates"]]
        assert [each["rewards"]["moody"] for each in decoding["candidates"]] == rewards
        assert None in rewards
        assert rewards[decoding["chosen"][0]] == max(reward for reward in rewards if reward is not None)


BEST = {"n": 2, "reward": "taste"}


@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({**BEST, "select": "sfot"}, "decoding.select", "did you mean 'soft'?"),
        ({**BEST, "select": {"rule": "soft", "temprature": 1}}, "decoding.select.temprature", "'temperature'"),
        ({**BEST, "select": {"rule": "abstain", "tau": 0.5, "then": "sfot"}}, "decoding.select.then", "'soft'"),
        ({**BEST, "select": {"rule": "soft", "temperature": -1}}, "decoding.select.temperature", "equal to 0"),
        ({**BEST, "budget": {"deadline": 4}}, "decoding.budget.deadline", "did you mean 'deadline_ms'?"),
        ({**BEST, "budget": {"deadline_ms": 0}}, "decoding.budget.deadline_ms", "equal to 1"),
        ({**BEST, "budget": 4}, "decoding.budget", "object"),
        ({**BEST, "budget": {"max_kl": 0.01}}, "decoding.budget.max_kl", "raise max_kl"),
        ({**BEST, "reward": {"sum": ["taste", {"guide": "brief", "weight": "x"}]}}, "decoding.reward.sum.1.weight", ""),
        ({**BEST, "reward": {"min": ["taste", "breif"]}}, "decoding.reward", "did you mean 'brief'?"),
        ({**BEST, "reward": {}}, "decoding.reward", "guide, sum, mean, min, ensemble"),
        ({**BEST, "export": "all"}, "decoding.export", "best_and_worst"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_what_cannot_be_searched_is_a_400_that_names_the_field(
    url: str, path: str, parameters: dict[str, Any], param: str, words: str
) -> None:
    sent = body(parameters=parameters, n=2)
    if path == TEXT:
        del sent["messages"]
        sent["prompt"] = "Hi"
    response = httpx2.post(url + path, json=sent)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert words in error["message"]


def test_rules_and_budgets_are_listed(url: str) -> None:
    listed = httpx2.get(url + "/v1/strategies").json()
    rules = {each["name"]: each for each in listed["rules"]}
    assert rules["soft"]["schema"]["properties"]["temperature"]
    assert rules["abstain"]["summary"].startswith("Refuse")
    assert len(rules) == len(listed["rules"]) == 10
    assert set(listed["budget"]["properties"]) >= {"deadline_ms", "max_model_tokens", "max_rows", "reward_at_least"}
