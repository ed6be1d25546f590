"""Streams byte for byte, as files in golden/.

`GOLDEN=write pytest tests/server/test_golden.py` writes them anew; read the difference before you commit it. Ids, times
and the version are replaced by words. Borders of chunks never depend on time here: the engine is played by the test,
which waits until what it said was sent.
"""

import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from trimtab.engine.errors import GuideError
from trimtab.engine.results import Candidate, Choice, Delta, Result, TokenLogprob, TokenTrace, Usage
from trimtab.server.schema.stream import ChatChunk, StreamError, TextChunk
from trimtab.server.settings import ServerSettings

GOLDEN = Path(__file__).parent / "golden"
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ASKED = {"model": "fake", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
PROMPT = {"model": "fake", "prompt": "Hi", "stream": True}
USAGE = {"stream_options": {"include_usage": True}}
VARIABLE = (
    (r'"id":"(chatcmpl|cmpl)-[0-9a-f]{32}"', r'"id":"\1-ID"'),
    (r'"created":\d+', '"created":TIME'),
    (r'"system_fingerprint":"trimtab-[^"]*"', '"system_fingerprint":"trimtab-VERSION"'),
)


class Stage:
    """Plays the engine for one streamed request, and reads what the client gets."""

    def __init__(self, fake: Any, url: str, path: str, body: dict[str, Any], wait_until: Any) -> None:
        self.fake = fake
        self.received = b""
        self._news = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url + path, body))
        self._thread.start()
        wait_until(lambda: len(fake.submitted) == 1)
        if path == CHAT or body.get("echo"):  # what is sent before the engine has said anything
            self.seen('"role"' if path == CHAT else '"text"')

    def say(
        self, text: str, *, choice: int = 0, ids: Sequence[int] = (65,), logprobs: Any = None, trace: Any = None
    ) -> None:
        """One delta of the engine, and the chunk that tells of it."""
        before = len(self.received)
        self.fake._deliver(-1, Delta(choice, text, tuple(ids), logprobs, trace=trace))
        self._wait(lambda: len(self.received) > before)

    def end(self, *choices: Choice, search: bool = False) -> str:
        """The engine's result; returns the whole stream."""
        candidates = tuple(
            Candidate(each.text, len(each.token_ids), each.finish_reason, None, i) for i, each in enumerate(choices)
        )
        usage = Usage(2, 0, len(choices), {"base": 3}, {"base": 2}, {"total": 1.5}, 0)
        self.fake._deliver(-1, Result(choices, candidates, usage, 7, "finished"))
        return self.rest()

    def rest(self) -> str:
        """What has come once the server has closed the stream."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        return self.received.decode()

    def seen(self, text: str) -> None:
        """Wait until the client has got this."""
        self._wait(lambda: text.encode() in self.received)

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self._news.wait(10), self.received
            self._news.clear()

    def _read(self, url: str, body: dict[str, Any]) -> None:
        with httpx2.stream("POST", url, json=body, timeout=20) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            for piece in response.iter_raw():
                self.received += piece
                self._news.set()


def ended(text: str, reason: str = "stop", *, stop: str | int | None = None, ids: Sequence[int] = (65,)) -> Choice:
    return Choice(text, tuple(ids), reason, stop, None)  # type: ignore[arg-type]


def logprob(token: int) -> tuple[TokenLogprob, ...]:
    return (TokenLogprob(token, -0.5, ((token, -0.5), (66, -1.25))),)


def plain(stage: Stage) -> str:
    for piece in ("Hé", ' "you"', "\n\u2028"):
        stage.say(piece)
    return stage.end(ended('Hé "you"\n\u2028'))


def two_choices(stage: Stage) -> str:
    stage.say("a", choice=0)
    stage.say("A", choice=1)
    stage.say("b", choice=0)
    return stage.end(ended("ab"), ended("A", "length"))


def with_logprobs(stage: Stage) -> str:
    stage.say("H", ids=(39,), logprobs=logprob(39))
    stage.say("", ids=(127,), logprobs=logprob(127))  # the first byte of a character
    stage.say("é", ids=(102,), logprobs=logprob(102))
    return stage.end(ended("Hé", ids=(39, 127, 102)))


def record(token: int, kl: float) -> TokenTrace:
    top = ((token, -0.5), (66, float("-inf")))
    return TokenTrace(token, "steered", -0.5, -0.25, 1.5, 2.0, kl, (("kind", 0.75), ("short", None)), top, top)


def with_trace(stage: Stage) -> str:
    """Half a character has no text yet; the words at the end are the program's own."""
    records = tuple(record(token, kl) for token, kl in ((39, 0.1), (127, 0.2), (102, float("nan"))))
    stage.say("H", ids=(39,), trace=records[:1])
    stage.say("", ids=(127,), trace=records[1:2])
    stage.say("é", ids=(102,), trace=records[2:])
    stage.say(".", ids=(13,), trace=())
    return stage.end(replace(ended("Hé.", ids=(39, 127, 102, 13)), trace=records))


def token_ids(stage: Stage) -> str:
    stage.say("H", ids=(39,))
    stage.say("", ids=(127,))
    stage.say("é", ids=(102, 257))
    return stage.end(ended("Hé", ids=(39, 127, 102, 257)))


def split_character(stage: Stage) -> str:
    """The engine holds half of a character back; the stream tells nothing of it."""
    stage.say("H", ids=(39,))
    stage.fake._deliver(-1, Delta(0, "", (127,), None))
    stage.say("é", ids=(102,))
    return stage.end(ended("Hé", ids=(39, 127, 102)))


def stop_string(stage: Stage) -> str:
    """`END` came in two pieces: the first of them was held back."""
    stage.say("tail")
    stage.fake._deliver(-1, Delta(0, "", (36, 45), None))
    return stage.end(ended("tail", stop="END"))


def search(stage: Stage) -> str:
    """Progress twice, a silence, then the answer at once."""
    stage.fake.progress("decode", finished=4)
    stage.seen('"phase":"decode"')
    stage.seen(": keep-alive")
    stage.fake.progress("score", finished=4, best_reward=2.0)
    stage.seen('"phase":"score"')
    stage.say("best")
    return stage.end(ended("best"))


def failure(stage: Stage) -> str:
    stage.say("so f")
    stage.fake.fail(GuideError("kind", "score is nan"))
    return stage.rest()


SCENES: dict[str, tuple[str, dict[str, Any], Callable[[Stage], str]]] = {
    "chat": (CHAT, ASKED, plain),
    "chat_usage": (CHAT, {**ASKED, **USAGE}, plain),
    "chat_two_choices": (CHAT, {**ASKED, "n": 2}, two_choices),
    "chat_logprobs": (CHAT, {**ASKED, "logprobs": True, "top_logprobs": 2}, with_logprobs),
    "chat_trace": (
        CHAT,
        {**ASKED, "stream_options": {"include_usage": True, "include_trace": True}, "decoding": {"trace": "tokens"}},
        with_trace,
    ),
    "chat_token_ids": (CHAT, {**ASKED, "return_token_ids": True}, token_ids),
    "chat_split_character": (CHAT, ASKED, split_character),
    "chat_stop_string": (CHAT, {**ASKED, "stop": "END"}, stop_string),
    "chat_search": (
        CHAT,
        {
            **ASKED,
            "stream_options": {"include_usage": True, "include_progress": True},
            "decoding": {"strategy": "best_of_n", "n": 4, "reward": "brevity"},
        },
        search,
    ),
    "chat_error": (CHAT, ASKED, failure),
    "completions": (TEXT, PROMPT, plain),
    "completions_echo": (TEXT, {**PROMPT, "echo": True}, plain),
    "completions_logprobs": (TEXT, {**PROMPT, "logprobs": 2}, with_logprobs),
    "completions_usage": (TEXT, {**PROMPT, **USAGE, "n": 2}, two_choices),
    "completions_error": (TEXT, PROMPT, failure),
}


@pytest.fixture
def transcript(fake: Any, start: Any, wait_until: Any, request: pytest.FixtureRequest) -> str:
    """The stream of one scene with everything replaced that differs between runs."""
    path, body, play = SCENES[request.param]
    running = start(fake, ServerSettings(keep_alive=0.3 if play is search else 60.0))
    told = play(Stage(fake, running.url, path, body, wait_until))
    for pattern, word in VARIABLE:
        told = re.sub(pattern, word, told)
    return re.sub(r"(: keep-alive\n\n)+", ": keep-alive\n\n", told)


@pytest.mark.parametrize(("transcript", "name"), [(name, name) for name in SCENES], indirect=["transcript"], ids=SCENES)
def test_a_stream_is_what_it_was(transcript: str, name: str) -> None:
    file = GOLDEN / f"{name}.sse"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(transcript, encoding="utf-8", newline="")
    assert transcript == file.read_bytes().decode()


@pytest.mark.parametrize("name", SCENES)
def test_a_stream_is_what_the_document_says(name: str) -> None:
    model = ChatChunk if SCENES[name][0] == CHAT else TextChunk
    for data in values((GOLDEN / f"{name}.sse").read_text(encoding="utf-8")):
        (StreamError if "error" in data else model).model_validate(data)


def test_no_file_is_left_over() -> None:
    assert {file.stem for file in GOLDEN.glob("*.sse")} == set(SCENES)


def values(stream: str) -> Iterator[dict[str, Any]]:
    """The JSON of every event."""
    *events, done, rest = stream.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    for event in events:
        if not event.startswith(":"):
            yield json.loads(event.removeprefix("data: ").replace('"created":TIME', '"created":0'))
