"""The terminal chat, driven by lines of input."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from trimtab.clients import show
from trimtab.clients.chat import Chat, run
from trimtab.clients.client import ClientError, TrimtabClient
from trimtab.clients.results import Decoding


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Feed lines as piped input and return what was printed."""

    def talk(url: str, *lines: str, **options: Any) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        run(url, **options)
        return capsys.readouterr().out

    return talk


def test_piped_lines_are_answered_with_their_cost(talk: Any, scripted: Any) -> None:
    assert talk(scripted.url, "Hi") == "Hello\n[best_of_n, reward 0.75 (mean 0.5), 2 tokens, 9 spent, 1.50 s]\n"
    assert scripted.bodies[0]["model"] == "tiny"


def test_candidates_without_a_reward_do_not_count_in_the_mean(talk: Any, scripted: Any) -> None:
    candidates = [{"reward": None, "tokens": 1}, {"reward": 0.5, "tokens": 2}, {"reward": 0.25, "tokens": 2}]
    usual = scripted.decoding({})
    scripted.decoding = lambda _: {**usual, "candidates": candidates}
    assert "reward 0.5 (mean 0.375)" in talk(scripted.url, "Hi")


def test_who_acted_is_told(talk: Any, scripted: Any) -> None:
    usual = scripted.decoding({})
    scripted.decoding = lambda _: {
        **usual,
        "preset": "kind",
        "policy": {"name": "floor", "applied": ["n"]},
        "stopped_by": "deadline",
    }
    assert "[best_of_n, preset kind, policy floor, reward 0.75" in (told := talk(scripted.url, "Hi"))
    assert "stopped by deadline" in told


def test_the_conversation_grows_and_is_reset(talk: Any, scripted: Any) -> None:
    lines = ("one", "two", "/reset", "three", "/quit", "four")
    talk(scripted.url, *lines, system="Be kind.", temperature=0.5, max_tokens=9)
    roles = [[message["role"] for message in body["messages"]] for body in scripted.bodies]
    assert roles == [["system", "user"], ["system", "user", "assistant", "user"], ["system", "user"]]
    assert scripted.bodies[1]["messages"][2]["content"] == "Hello"
    assert all((body["temperature"], body["max_tokens"]) == (0.5, 9) for body in scripted.bodies)


def test_what_is_set_goes_for_the_next_question(talk: Any, scripted: Any) -> None:
    out = talk(
        scripted.url, "/system Be brief.", "/temperature 0.25", "a", "/system", "/temperature", "/temperature hot", "b"
    )
    first, second = scripted.bodies
    assert first["messages"][0] == {"role": "system", "content": "Be brief."}
    assert first["temperature"] == 0.25
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "user"]
    assert "temperature" not in second
    assert "as a number, not 'hot'" in out


def test_strategy_is_sent_until_it_is_changed(talk: Any, scripted: Any) -> None:
    talk(scripted.url, "a", "/strategy best_of_n n=4 reward=brevity", "b", "/strategy", "c", strategy="best_of_n n=2")
    sent = [body.get("decoding") for body in scripted.bodies]
    assert sent == [
        {"strategy": "best_of_n", "n": 2},
        {"strategy": "best_of_n", "n": 4, "reward": "brevity"},
        None,
    ]


def test_a_refused_message_is_not_remembered(talk: Any, scripted: Any) -> None:
    scripted.refusal = {"message": "no", "type": "x", "param": None, "code": None}
    assert talk(scripted.url, "a", "b").count("error: no") == 2
    assert [len(body["messages"]) for body in scripted.bodies] == [1, 1]


def test_commands_that_ask(talk: Any, scripted: Any) -> None:
    out = talk(
        scripted.url, "/help", "/strategies", "/nonsense", "/strategy best_of_n four", "/why", "/compare", "/save"
    )
    assert "/strategy NAME key=value" in out
    assert "best_of_n: Draw n. (parameters: n)" in out
    assert "unknown command /nonsense" in out
    assert "write 'four' as key=value" in out
    assert "there is no answer yet" in out
    assert "name strategies" in out
    assert "name a file" in out


def test_models_are_listed_and_chosen(talk: Any, scripted: Any) -> None:
    out = talk(scripted.url, "/model", "/model other", "/model tiny", "a", model="tiny:kind")
    assert "  tiny\n" in out
    assert "no model is called 'other'; there are: tiny" in out
    assert scripted.bodies[0]["model"] == "tiny"


def test_a_conversation_is_saved(talk: Any, scripted: Any, tmp_path: Path) -> None:
    path = tmp_path / "told.json"
    out = talk(scripted.url, "é", f"/save {path}", f"/save {tmp_path}/no/where", system="Be kind.", strategy="x n=2")
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "model": "tiny",
        "decoding": {"strategy": "x", "n": 2},
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "é"},
            {"role": "assistant", "content": "Hello"},
        ],
    }
    assert f"3 messages in {path}" in out
    assert "error: cannot write" in out


def test_a_model_cannot_control_the_terminal(talk: Any, scripted: Any) -> None:
    scripted.pieces = ["\x1b[2J", "a\r\x07\x9bb\tc\n"]
    assert talk(scripted.url, "Hi").startswith("\ufffd[2Ja\ufffd\ufffd\ufffdb\tc\n\n[")


def test_ctrl_c_stops_an_answer_and_nothing_else(talk: Any, scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = show.plain

    def interrupted(text: str) -> str:
        if len(scripted.bodies) == 1:
            raise KeyboardInterrupt
        return plain(text)

    monkeypatch.setattr(show, "plain", interrupted)
    out = talk(scripted.url, "a", "b")
    assert out.startswith("\n[stopped]\nHello\n[")
    assert [len(body["messages"]) for body in scripted.bodies] == [1, 1]


def test_progress_is_shown_until_there_is_text(scripted: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    told = {
        "phase": "decode",
        "candidates": 4,
        "finished": 1,
        "best_reward": 0.5,
        "model_tokens": 9,
        "milliseconds": 900,
    }
    usual = scripted.stream

    def stream(body: dict[str, Any]) -> Any:
        opening, first, *rest = usual(body)
        step = {**opening, "choices": [], "progress": told}
        yield from (opening, step, first, step, *rest)

    scripted.stream = stream
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with TrimtabClient(scripted.url) as client:
        Chat(client, "tiny").take("Hi")
    assert scripted.bodies[0]["stream_options"] == {"include_usage": True, "include_progress": True}
    clear = "\r\x1b[K"
    assert capsys.readouterr().out.startswith(f"{clear}[1 of 4 finished, best 0.5, 0.9 s]{clear}Hello\n[")


def test_strategies_side_by_side(talk: Any, tiny: str) -> None:
    compare = "/compare sample best_of_n n=2 reward=taste best_of_n n=2 reward=nope genarm arm=arm"
    before, after = (  # the model may say anything, other ends of lines and marks of no width included
        talk(tiny, *lines, max_tokens=6).removesuffix("\n").split("\n") for lines in ((compare, "Hi"), ("Hi", compare))
    )
    assert before[0].startswith("the next question goes to: sample, best_of_n n=2 reward=taste, ")
    for table in (before[1:], after[-9:]):
        assert max(map(cell_len, table)) <= 100
        names = [line.split()[0] for line in table[1::2]]
        assert table[0].split()[-6:] == ["reward", "KL", "tokens", "spent", "seconds", "finish"]
        assert names == ["sample", "best_of_n", "best_of_n", "genarm"]
        assert table[6].startswith("  error: no reward guide is named 'nope'")
        assert table[7].split()[-3 - 2] != "-", "KL of steered tokens"


def test_why_asks_again_with_a_trace_and_the_same_seed(talk: Any, tiny: str) -> None:
    out = talk(tiny, "Hi", "/why", strategy="genarm arm=arm alpha=4.0", max_tokens=6)
    answer, _, why = out.partition("genarm: 6 tokens, 6 by steered; KL from the base ")
    assert "explains the new one" not in answer
    assert "were moved, in brackets" in why
    lines = why.splitlines()
    header = next(index for index, line in enumerate(lines) if line.startswith("token"))
    distances = [float(line.split(" steered ")[1].split()[0]) for line in lines[header + 1 :]]
    assert distances == sorted(distances, reverse=True)
    assert distances
    assert all(distance >= show.MOVED for distance in distances)
    assert max(map(len, lines)) <= show.WIDTH


def test_why_sends_the_seed_of_the_answer_once(talk: Any, scripted: Any) -> None:
    token = {"text": "Hello", "source": "base", "kl": 0.0}
    usual = scripted.decoding({})
    scripted.decoding = lambda body: {**usual, "seed": 77, **({"trace": [[token]]} if body.get("seed") == 77 else {})}
    talk(scripted.url, "Hi", "/why", "/why", strategy="x n=2")
    first, again = scripted.bodies
    assert "seed" not in first
    assert again["decoding"] == {"strategy": "x", "n": 2, "trace": "tokens"}
    assert again["messages"] == first["messages"]


def test_why_of_auto_draws_the_setting_again_at_its_temperature(talk: Any, scripted: Any) -> None:
    token = {"text": "Hello", "source": "base", "kl": 0.0}
    usual = {**scripted.decoding({}), "auto": {"setting": "best_of_2", "temperature": 0.7}}
    scripted.decoding = lambda body: {**usual, "seed": 77, **({"trace": [[token]]} if body.get("seed") == 77 else {})}
    talk(scripted.url, "Hi", "/why", strategy='auto budget={"deadline_ms":800}')
    first, again = scripted.bodies
    assert first["decoding"] == {"strategy": "auto", "budget": {"deadline_ms": 800}}
    assert again["decoding"] == {"strategy": "best_of_n", "n": 2, "trace": "tokens"}
    assert (again["temperature"], "temperature" in first) == (0.7, False)


def test_why_of_an_answer_that_nothing_moved(talk: Any, tiny: str) -> None:
    out = talk(tiny, "Hi", "/why", max_tokens=6)
    assert "by base; KL from the base 0 nats, 0 a token; none was moved" in out


def test_why_marks_what_another_model_wrote() -> None:
    def token(text: str, source: str, kl: float | None) -> dict[str, Any]:
        return {"text": text, "source": source, "kl": kl, "top_base": [{"id": 1, "text": " sea", "logprob": -0.5}]}

    trace = [
        token("The", "base", 0.0),
        token(" old", "nudge", 0.1),
        token(" sea", "nudge", 1.0),
        token(" is", "base", 0.2),
    ]
    told = {
        "spec": {"strategy": "nudging"}, "chosen": [0], "candidates": [{"tokens": 4, "reward": None, "choice": 0}],
        "steering": [{"tokens": 4, "kl": 1.3}], "trace": [trace], "model_tokens": {}, "milliseconds": {"total": 1.0},
    }  # fmt: skip
    out = show.console()
    with out.capture() as printed:
        out.print(show.why(Decoding.of(told)))
    lines = [line.rstrip() for line in printed.get().splitlines()]
    assert (
        lines[0]
        == "nudging: 4 tokens, 2 by base, 2 by nudge; KL from the base 1.3 nats, 0.33 a token; 2 were moved, in"
    )
    assert "The [old sea] is" in lines
    assert [line.split()[0] for line in lines[-2:]] == ["2", "1"]
    assert lines[-2].endswith("the same")
    assert lines[-1].endswith('" sea"')


def test_values_are_json_or_strings() -> None:
    with TrimtabClient("http://127.0.0.1:9") as client:
        chat = Chat(client, "tiny")
        chat.choose('x a=1 b=0.5 c=true d=word e=["p","q"]')
        assert chat.decoding == {"strategy": "x", "a": 1, "b": 0.5, "c": True, "d": "word", "e": ["p", "q"]}
        with pytest.raises(ClientError, match="'a'"):
            chat.choose("x a")
        with pytest.raises(ClientError, match="before 'a=1'"):
            chat.choose("a=1")
