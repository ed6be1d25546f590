"""The terminal chat, driven by lines of input."""

import io
from typing import Any

import pytest

from trimtab.clients.chat import Chat, run
from trimtab.clients.client import ClientError, TrimtabClient


@pytest.fixture
def talk(scripted: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Feed lines as piped input and return what was printed."""

    def talk(*lines: str, **options: Any) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        run(scripted.url, **options)
        return capsys.readouterr().out

    return talk


def test_piped_lines_are_answered_with_their_cost(talk: Any, scripted: Any) -> None:
    assert talk("Hi") == "Hello\n[best_of_n, reward 0.75 (mean 0.5), 2 tokens, 9 spent, 1.50 s]\n"
    assert scripted.bodies[0]["model"] == "tiny"


def test_candidates_without_a_reward_do_not_count_in_the_mean(talk: Any, scripted: Any) -> None:
    candidates = [{"reward": None, "tokens": 1}, {"reward": 0.5, "tokens": 2}, {"reward": 0.25, "tokens": 2}]
    usual = scripted.decoding({})
    scripted.decoding = lambda _: {**usual, "candidates": candidates}
    assert "reward 0.5 (mean 0.375)" in talk("Hi")


def test_the_conversation_grows_and_is_reset(talk: Any, scripted: Any) -> None:
    talk("one", "two", "/reset", "three", "/quit", "four", system="Be kind.", temperature=0.5, max_tokens=9)
    roles = [[message["role"] for message in body["messages"]] for body in scripted.bodies]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert scripted.bodies[1]["messages"][2]["content"] == "Hello"
    assert all((body["temperature"], body["max_tokens"]) == (0.5, 9) for body in scripted.bodies)


def test_strategy_is_sent_until_it_is_changed(talk: Any, scripted: Any) -> None:
    talk("a", "/strategy best_of_n n=4 reward=brevity", "b", "/strategy", "c", strategy="best_of_n n=2")
    sent = [body.get("decoding") for body in scripted.bodies]
    assert sent == [
        {"strategy": "best_of_n", "n": 2},
        {"strategy": "best_of_n", "n": 4, "reward": "brevity"},
        None,
    ]


def test_a_refused_message_is_not_remembered(talk: Any, scripted: Any) -> None:
    scripted.refusal = {"message": "no", "type": "x", "param": None, "code": None}
    assert talk("a", "b").count("error: no") == 2
    assert [len(body["messages"]) for body in scripted.bodies] == [1, 1]


def test_commands_that_ask(talk: Any) -> None:
    out = talk("/help", "/strategies", "/nonsense", "/strategy best_of_n four")
    assert "/strategy NAME key=value" in out
    assert "best_of_n: Draw n. (parameters: n)" in out
    assert "unknown command /nonsense" in out
    assert "write 'four' as key=value" in out


def test_values_are_json_or_strings() -> None:
    with TrimtabClient("http://127.0.0.1:9") as client:
        chat = Chat(client, "tiny")
        chat.choose('x a=1 b=0.5 c=true d=word e=["p","q"]')
        assert chat.decoding == {"strategy": "x", "a": 1, "b": 0.5, "c": True, "d": "word", "e": ["p", "q"]}
        with pytest.raises(ClientError):
            chat.choose("x a")
