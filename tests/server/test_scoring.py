"""POST /v1/score and /v1/classify over a real server: forms, numbers, refusals, clients that leave, draining."""

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from folders import adapter_folder, classifier_folder, vector_file
from gate import Gate
from tiny import tiny_folder
from wire import leaving, metrics

from trimtab import LLM, EngineSettings
from trimtab.clients.client import ClientError, TrimtabClient
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.rewards import Pair
from trimtab.engine.vocabulary import Message
from trimtab.server.settings import RequestLimits, ServerSettings

SCORE, CLASSIFY = "/v1/score", "/v1/classify"
STRICT = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system messages') }}{% endif %}"
    "[{{ m.role }}] {{ m.content }};{% endfor %}"
)


@pytest.fixture(scope="module")
def scoring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    place = tmp_path_factory.mktemp("scoring")
    base = tiny_folder(place / "base")
    classifier_folder(place / "taste", seed=1)
    mood = classifier_folder(place / "mood", seed=2, labels=3, template=STRICT)
    config = json.loads((mood / "config.json").read_text())
    named = {"0": "sad", "1": "calm", "2": "glad"}
    (mood / "config.json").write_text(json.dumps({**config, "id2label": named}))
    guides = {
        "taste": {"role": "reward", "model": str(place / "taste")},
        "mood": {"role": "reward", "model": str(mood), "label": "glad"},
        "judge": {"role": "reward", "model": str(adapter_folder(place / "judge", base, seed=3, score=True))},
        "brief": {"role": "program", "kind": "length", "direction": "shorter", "unit": "characters"},
        "tone": {"role": "vector", "model": str(vector_file(place / "tone.safetensors", seed=4))},
    }
    settings = {"model": str(base), "device": "cpu", "pool_tokens": 2048, "page_size": 8, "score_pairs": 2}
    with LLM(settings=EngineSettings.model_validate({**settings, "guides": guides})) as llm:
        yield llm


@pytest.fixture(scope="module")
def url(scoring: LLM, start_shared: Callable[..., Any]) -> str:
    limits = RequestLimits(max_pairs=6)
    served: str = start_shared(scoring, ServerSettings(limits=limits, max_body_bytes=50_000)).url
    return served


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.open()


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def ask(url: str, path: str, **body: object) -> dict[str, Any]:
    response = httpx2.post(url + path, json=body, timeout=60)
    assert response.status_code == 200, response.text
    told: dict[str, Any] = response.json()
    return told


def refused(url: str, path: str, **body: object) -> tuple[int, dict[str, Any]]:
    response = httpx2.post(url + path, json=body, timeout=60)
    return response.status_code, response.json()["error"]


def scores(url: str, **body: object) -> list[float]:
    told = ask(url, SCORE, **body)
    assert [each["index"] for each in told["data"]] == list(range(len(told["data"])))
    return [each["score"] for each in told["data"]]


PAIRS = [Pair((user("Hi"),), "yes"), Pair((user("Hi"),), "no, never"), Pair((user("You?"),), "")]
BODY = [{"prompt": pair.messages[0]["content"], "answer": pair.answer} for pair in PAIRS]


@pytest.mark.parametrize("guide", ["taste", "mood", "judge", "brief"])
def test_scores_are_those_of_the_guide(scoring: LLM, url: str, guide: str) -> None:
    told = ask(url, SCORE, model=guide, pairs=BODY)
    assert [each["score"] for each in told["data"]] == pytest.approx(scoring.score(guide, PAIRS), abs=1e-4)
    assert [each["object"] for each in told["data"]] == ["score"] * 3
    assert (told["object"], told["model"], told["id"][:6]) == ("list", guide, "score-")


def test_a_script_is_told_the_nearest_reward(scoring: LLM) -> None:
    with pytest.raises(InvalidRequest, match="did you mean 'taste'"):
        scoring.score("tast", PAIRS)
    with pytest.raises(InvalidRequest, match="no reward guide is named 'tone'"):
        scoring.score("tone", PAIRS)
    assert scoring.score("taste", []) == []


def test_every_form_says_the_same(url: str) -> None:
    expected = scores(url, model="taste", pairs=BODY[:2])
    messages = [{"role": "user", "content": "Hi"}]
    pairs = [{"messages": messages, "answer": each["answer"]} for each in BODY[:2]]
    ended = [[*messages, {"role": "assistant", "content": each["answer"]}] for each in BODY[:2]]
    answers = [each["answer"] for each in BODY[:2]]
    assert scores(url, model="taste", pairs=pairs) == pytest.approx(expected, abs=1e-4)
    assert scores(url, model="taste", conversations=ended) == pytest.approx(expected, abs=1e-4)
    assert scores(url, model="taste", text_1="Hi", text_2=answers) == pytest.approx(expected, abs=1e-4)
    assert scores(url, model="taste", text_1=["Hi", "Hi"], text_2=answers) == pytest.approx(expected, abs=1e-4)
    assert scores(url, model="taste", text_1=["Hi"], text_2=answers[1]) == pytest.approx(expected[1:], abs=1e-4)
    both = scores(url, model="brief", text_1=["a", "b", "c"], text_2="four")
    assert both == [-4.0, -4.0, -4.0]


def test_what_was_read_before_is_told_as_cached(url: str) -> None:
    turns = [{"role": "user", "content": "Tell me of the sea and of the wind."}]
    first = ask(url, SCORE, model="taste", pairs=[{"messages": turns, "answer": "Both are wide."}])["usage"]
    grown = [*turns, {"role": "assistant", "content": "Both are wide."}, {"role": "user", "content": "And?"}]
    second = ask(url, SCORE, model="taste", pairs=[{"messages": grown, "answer": "Cold."}])["usage"]
    assert first["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["prompt_tokens_details"] == {"cached_tokens": first["prompt_tokens"] // 8 * 8}
    assert second["prompt_tokens"] == second["total_tokens"] > first["prompt_tokens"]


def test_labels_with_their_probabilities(scoring: LLM, url: str) -> None:
    told = ask(url, CLASSIFY, model="mood", pairs=BODY)
    assert told["id"].startswith("classify-")
    for each, judgement in zip(told["data"], scoring.judge("mood", PAIRS).result(20), strict=True):
        masses = [math.exp(logit) for logit in judgement.logits]
        assert each["probs"] == pytest.approx([mass / sum(masses) for mass in masses], abs=1e-4)
        assert each["num_classes"] == 3
        assert each["label"] == ["sad", "calm", "glad"][each["probs"].index(max(each["probs"]))]
        assert judgement.score == judgement.logits[2]


@pytest.mark.parametrize("guide", ["taste", "judge", "brief"])
def test_a_guide_of_one_number_has_one_label(scoring: LLM, url: str, guide: str) -> None:
    told = ask(url, CLASSIFY, model=guide, input=["sure", "never!"])["data"]
    raw = scoring.score(guide, [Pair((), "sure"), Pair((), "never!")])
    assert [each["probs"] for each in told] == [[pytest.approx(1 / (1 + math.exp(-score)), abs=1e-4)] for score in raw]
    assert {(each["label"], each["num_classes"]) for each in told} == {("LABEL_0", 1)}
    (alone,) = ask(url, CLASSIFY, model=guide, input="sure")["data"]
    assert alone["probs"] == pytest.approx(told[0]["probs"], abs=1e-4)


def test_the_client_says_it_in_one_line(scoring: LLM, url: str) -> None:
    pairs = [("Hi", "yes"), ([{"role": "user", "content": "Hi"}], "no, never")]
    with TrimtabClient(url) as client:
        assert client.score("taste", pairs) == pytest.approx(scoring.score("taste", PAIRS[:2]), abs=1e-4)
        told = client.classify("mood", pairs)
        assert [len(label.probs) for label in told] == [3, 3]
        assert {label.name for label in told} <= {"sad", "calm", "glad"}
        with pytest.raises(ClientError, match="did you mean 'taste'") as error:
            client.score("tast", pairs)
    assert error.value.status == 404


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        ({"model": "tast"}, 404, "model", "did you mean 'taste'?"),
        ({"model": "tone"}, 400, "model", "role vector and scores no answers"),
        ({"model": "base"}, 400, "model", "the base model and scores no answers"),
        ({"model": "taste"}, 400, "pairs", "exactly one of pairs, conversations, text_2"),
        ({"model": "taste", "pairs": BODY, "text_1": "a", "text_2": "b"}, 400, "text_2", "exactly one of"),
        ({"model": "taste", "pairs": []}, 400, "pairs", "empty"),
        ({"model": "taste", "text_1": [], "text_2": []}, 400, "text_2", "empty"),
        ({"model": "taste", "pairs": BODY * 3}, 400, "pairs", "6 answers at most (server.limits.max_pairs), not 9"),
        ({"model": "taste", "text_1": "a"}, 400, "text_2", "text_2 is required"),
        ({"model": "taste", "text_1": ["a", "b"], "text_2": ["c"] * 3}, 400, "text_2", "text_1 has 2 texts"),
        ({"model": "taste", "text_1": 3, "text_2": "a"}, 400, "text_1", "list"),
        ({"model": "taste", "pairs": [{"answer": "a"}]}, 400, "pairs[0]", "either prompt or messages"),
        ({"model": "taste", "pairs": [{"prompt": "a"}]}, 400, "pairs[0].answer", "is required"),
        ({"model": "taste", "pairs": [{"prompt": "a", "anwser": "b"}]}, 400, "pairs[0].anwser", "answer"),
        ({"model": "taste", "conversations": [[user("a")]]}, 400, "conversations[0]", "must end with"),
        ({"model": "taste", "conversations": [[]]}, 400, "conversations[0]", "must end with"),
        ({"model": "taste", "paris": BODY}, 400, "paris", "did you mean 'pairs'?"),
        ({"model": "taste", "pairs": BODY, "truncate_prompt_tokens": 5}, 400, "truncate_prompt_tokens", "leave it out"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(url: str, body: dict[str, Any], status: int, param: str, says: str) -> None:
    code, error = refused(url, SCORE, **body)
    assert (code, error["param"]) == (status, param)
    assert says in error["message"]
    if status == 404:
        assert error["code"] == "model_not_found"


def test_a_conversation_that_the_template_refuses(url: str) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    code, error = refused(url, SCORE, model="mood", pairs=[{"messages": messages, "answer": "yes"}])
    assert (code, error["param"]) == (400, "messages")
    assert "no system messages" in error["message"]
    assert scores(url, model="taste", pairs=[{"messages": messages, "answer": "yes"}])


def test_a_long_conversation_loses_its_beginning(scoring: LLM, url: str) -> None:
    room = scoring.rewards["taste"].context_length  # type: ignore[attr-defined]
    long = [{"prompt": "a" * 3 * room, "answer": "the end"}]
    usage = ask(url, SCORE, model="taste", pairs=long)["usage"]
    assert usage["prompt_tokens"] == room
    assert scores(url, model="taste", pairs=long) != scores(url, model="taste", pairs=[{**long[0], "answer": "no"}])


def test_a_body_that_is_too_large(url: str) -> None:
    assert refused(url, SCORE, model="taste", text_1="a" * 60_000, text_2="b")[0] == 413


def test_a_client_that_leaves_takes_its_answers_with_it(
    scoring: LLM,
    start: Callable[..., Any],
    wait_until: Callable[..., None],
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = start(scoring)
    reward = scoring.rewards["taste"]
    monkeypatch.setattr(reward, "judge", gate.before(reward.judge))
    with leaving(running.url, {"model": "taste", "pairs": BODY * 3}, SCORE):
        gate.reach(1)  # two of nine answers are being judged
        assert running.service.bridge.open == 1
    wait_until(lambda: running.service.bridge.open == 0)
    gate.open()
    assert scores(running.url, model="brief", pairs=BODY[:1]) == [-3.0]
    assert gate.calls == 1


def test_draining_refuses_new_answers(scoring: LLM, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    running = start(scoring)
    monkeypatch.setattr(scoring._worker, "_draining", True)
    response = httpx2.post(running.url + SCORE, json={"model": "taste", "pairs": BODY}, timeout=20)
    assert response.status_code == 503
    assert response.headers["retry-after"]


def test_a_reward_that_fails_is_named(scoring: LLM, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pairs: object) -> None:
        raise RuntimeError("secret path /srv/models")

    monkeypatch.setattr(scoring.rewards["taste"], "judge", broken)
    code, error = refused(url, SCORE, model="taste", pairs=BODY)
    assert (code, error["code"], error["message"]) == (500, "guide_error", "guide 'taste' failed")


def test_scores_are_counted(scoring: LLM, url: str) -> None:
    name = 'trimtab:reward_batch_size_sum{guide="brief"}'
    before = metrics(url).get(name, 0)
    ask(url, SCORE, model="brief", pairs=BODY)
    assert metrics(url)[name] == before + 3
