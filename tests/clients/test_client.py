"""The Python client against the wire format."""

from typing import Any

import pytest

from trimtab.clients.client import Answer, ClientError, Label, TrimtabClient

ASK = [{"role": "user", "content": "Hi"}]


def test_stream_yields_text_then_the_answer(scripted: Any) -> None:
    with TrimtabClient(scripted.url + "/") as client:
        *pieces, answer = client.stream_chat("tiny", ASK, decoding={"strategy": "best_of_n"}, seed=3)
    assert pieces == ["Hel", "lo"]
    assert isinstance(answer, Answer)
    assert answer.text == "Hello"
    assert answer.finish_reason == "stop"
    assert answer.usage["completion_tokens"] == 2
    assert answer.decoding["chosen"] == [1]
    (body,) = scripted.bodies
    assert body["decoding"] == {"strategy": "best_of_n"}
    assert body["seed"] == 3
    assert "temperature" not in body


def test_text_with_unicode_line_ends_stays_whole(scripted: Any) -> None:
    scripted.pieces = ["a\u2028b", "\x85\n"]
    with TrimtabClient(scripted.url) as client:
        assert client.chat("tiny", ASK).text == "a\u2028b\x85\n"


def test_chat_returns_the_answer(scripted: Any) -> None:
    with TrimtabClient(scripted.url) as client:
        assert client.chat("tiny", ASK, max_tokens=4).text == "Hello"
        assert client.models() == ["tiny"]
        assert client.strategies()[0]["name"] == "best_of_n"
    assert scripted.bodies[0]["max_tokens"] == 4


def test_a_refusal_carries_the_servers_words(scripted: Any) -> None:
    scripted.refusal = {"message": "no such key", "type": "x", "param": "decoding.m", "code": "unknown_parameter"}
    with TrimtabClient(scripted.url) as client, pytest.raises(ClientError, match="no such key") as refused:
        client.chat("tiny", ASK)
    assert refused.value.status == 400
    assert refused.value.code == "unknown_parameter"


def test_a_failure_in_the_stream_is_raised(scripted: Any) -> None:
    scripted.failure = {"message": "guide failed", "type": "server_error", "param": None, "code": "guide_error"}
    with TrimtabClient(scripted.url) as client, pytest.raises(ClientError, match="guide failed"):
        client.chat("tiny", ASK)


def test_scores_and_labels_of_answers(scripted: Any) -> None:
    with TrimtabClient(scripted.url) as client:
        assert client.score("taste", [("Hi", "yes"), (ASK, "no")]) == [0.5, -1.0]
        assert client.classify("mood", [("Hi", "yes")]) == [Label("glad", (0.25, 0.75))]
    first, second = scripted.bodies
    assert first == {
        "model": "taste",
        "pairs": [{"prompt": "Hi", "answer": "yes"}, {"messages": ASK, "answer": "no"}],
    }
    assert second == {"model": "mood", "pairs": [{"prompt": "Hi", "answer": "yes"}]}


def test_a_score_that_is_refused(scripted: Any) -> None:
    scripted.refusal = {"message": "no such guide", "type": "x", "param": "model", "code": "model_not_found"}
    with TrimtabClient(scripted.url) as client, pytest.raises(ClientError, match="no such guide"):
        client.score("tast", [("Hi", "yes")])


def test_no_server_is_told_with_the_way_out() -> None:
    with TrimtabClient("http://127.0.0.1:9") as client, pytest.raises(ClientError, match="trimtab serve"):
        client.models()
