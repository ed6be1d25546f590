"""Both Python clients against the wire format."""

from typing import Any, get_type_hints

import pytest

from trimtab.clients.client import Answer, ClientError, Label, Piece, TrimtabClient
from trimtab.clients.decoding import BestOfN
from trimtab.clients.fields import ChatFields, CompletionFields
from trimtab.clients.stream import ToolCallDelta
from trimtab.server.schema.chat import ChatRequest
from trimtab.server.schema.completions import CompletionRequest

ASK = [{"role": "user", "content": "Hi"}]


def test_stream_yields_text_then_the_answer(client: Any, scripted: Any) -> None:
    *pieces, answer = client.stream(
        scripted.url + "/", "stream_chat", "tiny", ASK, decoding={"strategy": "best_of_n"}, seed=3
    )
    assert pieces == ["Hel", "lo"]
    assert isinstance(answer, Answer)
    assert (answer.text, answer.finish_reason, answer.model) == ("Hello", "stop", "tiny")
    assert answer.usage["completion_tokens"] == answer.usage.completion_tokens == 2
    assert answer.decoding["chosen"] == [1]
    assert (answer.decoding.reward(), answer.decoding.model_tokens, answer.decoding.seconds) == (0.75, 9, 1.5)
    (body,) = scripted.bodies
    assert body["decoding"] == {"strategy": "best_of_n"}
    assert body["seed"] == 3
    assert "temperature" not in body


def test_text_with_unicode_line_ends_stays_whole(client: Any, scripted: Any) -> None:
    scripted.pieces = ["a\u2028b", "\x85\n"]
    assert client.ask(scripted.url, "chat", "tiny", ASK).text == "a\u2028b\x85\n"
    assert client.stream(scripted.url, "stream_chat", "tiny", ASK)[-1].text == "a\u2028b\x85\n"


def test_chat_returns_the_answer(client: Any, scripted: Any) -> None:
    answer = client.ask(scripted.url, "chat", "tiny", ASK, max_tokens=4, decoding=BestOfN(n=2, reward="brevity"))
    assert answer.text == "Hello"
    (body,) = scripted.bodies
    assert body == {
        "model": "tiny",
        "messages": ASK,
        "max_tokens": 4,
        "decoding": {"strategy": "best_of_n", "n": 2, "reward": "brevity"},
    }
    assert client.ask(scripted.url, "models") == ["tiny"]
    assert client.ask(scripted.url, "strategies")[0]["name"] == "best_of_n"


def test_a_field_that_does_not_exist_is_refused_before_anything_is_sent(client: Any, scripted: Any) -> None:
    with pytest.raises(TypeError, match="'temprature'; do you mean 'temperature'"):
        client.ask(scripted.url, "chat", "tiny", ASK, temprature=0.5)
    with pytest.raises(TypeError, match="'echo'"):
        client.stream(scripted.url, "stream_chat", "tiny", ASK, echo=True)
    with pytest.raises(TypeError, match="'tools'"):
        client.ask(scripted.url, "complete", "tiny", "Hi", tools=[])
    assert not scripted.bodies


@pytest.mark.parametrize(
    ("fields", "request_model"), [(ChatFields, ChatRequest), (CompletionFields, CompletionRequest)]
)
def test_fields_are_those_of_the_api(fields: type, request_model: Any) -> None:
    own = set(get_type_hints(fields)) - {"request_id"}
    made_by_the_client = {"model", "messages", "prompt", "stream", "stream_options"}
    assert own == set(request_model.model_fields) - made_by_the_client


def test_a_refusal_carries_the_servers_words(client: Any, scripted: Any) -> None:
    scripted.refusal = {"message": "no such key", "type": "x", "param": "decoding.m", "code": "unknown_parameter"}
    with pytest.raises(ClientError, match="no such key") as refused:
        client.ask(scripted.url, "chat", "tiny", ASK)
    assert (refused.value.status, refused.value.code) == (400, "unknown_parameter")
    assert refused.value.param == "decoding.m"


def test_a_failure_in_the_stream_is_raised(client: Any, scripted: Any) -> None:
    scripted.failure = {"message": "guide failed", "type": "server_error", "param": None, "code": "guide_error"}
    with pytest.raises(ClientError, match="guide failed") as failed:
        client.stream(scripted.url, "stream_chat", "tiny", ASK)
    assert failed.value.code == "guide_error"


def test_scores_and_labels_of_answers(client: Any, scripted: Any) -> None:
    assert client.ask(scripted.url, "score", "taste", [("Hi", "yes"), (ASK, "no")]) == [0.5, -1.0]
    assert client.ask(scripted.url, "classify", "mood", [("Hi", "yes")]) == [Label("glad", (0.25, 0.75))]
    first, second = scripted.bodies
    assert first == {
        "model": "taste",
        "pairs": [{"prompt": "Hi", "answer": "yes"}, {"messages": ASK, "answer": "no"}],
    }
    assert second == {"model": "mood", "pairs": [{"prompt": "Hi", "answer": "yes"}]}


def test_a_score_that_is_refused(client: Any, scripted: Any) -> None:
    scripted.refusal = {"message": "no such guide", "type": "x", "param": "model", "code": "model_not_found"}
    with pytest.raises(ClientError, match="no such guide"):
        client.ask(scripted.url, "score", "tast", [("Hi", "yes")])


def test_no_server_is_told_with_the_way_out(client: Any) -> None:
    with pytest.raises(ClientError, match="trimtab serve"):
        client.ask("http://127.0.0.1:9", "models", options={"retries": 0})


def test_tool_calls_grow_by_their_index(client: Any, scripted: Any) -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        named = {"id": f"call-{index}", "type": "function"} if "name" in function else {}
        return {"index": index, **named, "function": function}

    usual = scripted.stream
    parts = [
        [call(0, name="add", arguments="")],
        [call(0, arguments='{"a"'), call(1, name="stop", arguments="{}")],
        [call(0, arguments=": 1}")],
    ]

    def stream(body: dict[str, Any]) -> Any:
        opening, *rest = usual(body)
        yield opening
        for calls in parts:
            choice = {"index": 0, "delta": {"tool_calls": calls}, "finish_reason": None}
            yield {**opening, "choices": [choice]}
        yield from rest

    scripted.pieces, scripted.stream = [], stream
    *deltas, answer = client.stream(scripted.url, "stream_chat", "tiny", ASK)
    assert deltas[0] == ToolCallDelta(0, 0, "call-0", "add", "")
    assert [delta.arguments for delta in deltas if delta.index == 0] == ["", '{"a"', ": 1}"]
    first, second = answer.choices[0].tool_calls
    assert (first.id, first.name, first.arguments) == ("call-0", "add", '{"a": 1}')
    assert (second.id, second.name, second.arguments) == ("call-1", "stop", "{}")


def test_the_key_is_nowhere_to_be_seen() -> None:
    with TrimtabClient(api_key="secret-key") as client:
        assert "secret-key" not in repr(client) + repr(vars(client))


def test_a_piece_is_a_string_that_knows_its_choice() -> None:
    assert Piece("a", 3) == "a"
    assert Piece("a", 3).choice == 3
