"""Terminal chat with a running server; also works on piped input."""

import asyncio
import contextlib
import importlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trimtab.clients import show
from trimtab.clients.aio import AsyncTrimtabClient
from trimtab.clients.client import Answer, ClientError, Piece, Progress, TrimtabClient
from trimtab.clients.comparison import Comparison
from trimtab.clients.fields import ChatFields

HELP = """\
/strategy NAME key=value ...   decode with another strategy from now on; without a name: plain sampling
/strategies                    list the strategies
/compare NAME key=value ...    several strategies on the last question, or the next one, side by side
/why                           what shaped each token of the last answer
/system TEXT                   instruct the model from now on; without a text: no longer
/temperature NUMBER            0 is greedy; without a number: the server's default
/model NAME                    talk to another model or preset; without a name: list them
/save FILE                     write the conversation as JSON
/reset                         forget the conversation
/help                          this text
/quit                          leave (also: end of input); Ctrl-C stops an answer"""
CLEAR = "\r\x1b[K"
"""to the beginning of the line, and nothing on it"""


def run(
    url: str,
    *,
    model: str | None = None,
    system: str | None = None,
    strategy: str | None = None,
    temperature: float | None = None,
    max_tokens: int | None = None,
) -> None:
    """Read lines from standard input and print answers until it ends; raises ClientError without a server."""
    with TrimtabClient(url) as client:
        chat = Chat(client, model or client.models()[0], system=system, temperature=temperature, max_tokens=max_tokens)
        if strategy:
            chat.choose(strategy)
        interactive = sys.stdin.isatty()
        if interactive:
            with contextlib.suppress(ImportError):
                importlib.import_module("readline")  # lets `input` edit lines and remember them
            print(f"{chat.model} at {client.url}; /help lists the commands")
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                print("\n/quit leaves")
                continue
            if line == "/quit":
                return
            if line:
                chat.take(line)


class Chat:
    """One conversation and the strategy it is decoded with."""

    def __init__(
        self,
        client: TrimtabClient,
        model: str,
        *,
        system: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self.model = model
        self.decoding: dict[str, Any] | None = None
        self.messages: list[dict[str, str]] = []
        """what was said, without the system message"""
        self._client = client
        self._system = system
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._last: tuple[list[dict[str, str]], dict[str, Any] | None, Answer] | None = None
        """what was asked, how, and the answer to it"""
        self._waiting: dict[str, Any] | None = None
        """strategies that the next question is put to"""
        self._commands = {
            "/compare": self._compare,
            "/help": lambda _: print(HELP),
            "/model": self._choose_model,
            "/reset": self._reset,
            "/save": self._save,
            "/strategies": self._list_strategies,
            "/strategy": self.choose,
            "/system": self._instruct,
            "/temperature": self._heat,
            "/why": self._why,
        }

    def take(self, line: str) -> None:
        """One line of input: a command or a message; errors are printed and change nothing."""
        command, _, rest = line.partition(" ")
        try:
            if not line.startswith("/"):
                self._hear(line)
            elif command in self._commands:
                self._commands[command](rest.strip())
            else:
                print(f"unknown command {command}; /help lists them")
        except ClientError as error:
            print(f"error: {error}")
        except KeyboardInterrupt:
            print("\n[stopped]")

    def choose(self, words: str) -> None:
        """Set the strategy from `NAME key=value ...`; values are JSON, or else strings."""
        chosen = list(_strategies(words).values())
        if len(chosen) > 1:
            raise ClientError(f"write {chosen[1]['strategy']!r} as key=value")
        self.decoding = chosen[0] if chosen else None

    def _hear(self, text: str) -> None:
        if self._waiting is None:
            self._say(text)
            return
        strategies, self._waiting = self._waiting, None
        self._show(strategies, [*self._opening(), *self.messages, {"role": "user", "content": text}])

    def _say(self, text: str) -> None:
        messages = [*self.messages, {"role": "user", "content": text}]
        asked = [*self._opening(), *messages]
        live = sys.stdout.isatty()
        stream = self._client.stream_chat(self.model, asked, progress=live, **self._fields(self.decoding))
        said = told = False
        with contextlib.closing(stream):
            for event in stream:
                if isinstance(event, Progress):
                    if not said:  # once there is text, its line is not to be overwritten
                        told = True
                        print(f"{CLEAR}[{show.progress_line(event)}]", end="", flush=True)
                    continue
                if told and not said:
                    print(CLEAR, end="")
                said = True
                if isinstance(event, Answer):
                    self.messages = [*messages, {"role": "assistant", "content": event.text}]
                    self._last = asked, self.decoding, event
                    print(f"\n[{show.cost_line(event)}]")
                elif isinstance(event, Piece):
                    print(show.plain(event), end="", flush=True)

    def _compare(self, words: str) -> None:
        strategies = _strategies(words)
        if not strategies:
            raise ClientError("name strategies: /compare sample best_of_n n=4 reward=NAME")
        if self._last is None:
            self._waiting = strategies
            print("the next question goes to: " + ", ".join(strategies))
        else:
            self._show(strategies, self._last[0])

    def _show(self, strategies: Mapping[str, Any], asked: list[dict[str, str]]) -> None:
        """Ask, print the table; a Ctrl-C ends every request."""

        async def compare() -> Comparison:
            async with AsyncTrimtabClient(self._client.url) as client:
                return await client.compare(self.model, asked, strategies, **self._fields(None))

        show.console().print(show.comparison(asyncio.run(compare())))

    def _why(self, _: str) -> None:
        """Explain the last answer; one that was not traced is drawn again, with its seed."""
        if self._last is None:
            raise ClientError("there is no answer yet")
        asked, decoding, answer = self._last
        if not answer.decoding.trace:
            chosen = answer.decoding.raw.get("auto")  # asked again, auto might choose another setting
            ran = (decoding or {"strategy": "sample"}) if chosen is None else answer.decoding["spec"]
            traced = {**ran, "trace": "tokens"}
            fields = self._fields(traced)
            fields["seed"] = answer.decoding.seed
            if chosen is not None:
                fields["temperature"] = chosen["temperature"]
            again = self._client.chat(self.model, asked, **fields)
            if again.text != answer.text:
                print(
                    "[drawn again with its seed, the answer differs: numbers round differently beside other requests]"
                )
            answer = again
            self._last = asked, decoding, again
        if not answer.decoding.trace:
            raise ClientError("this answer has no tokens to explain")
        show.console().print(show.why(answer.decoding))

    def _instruct(self, text: str) -> None:
        self._system = text or None

    def _heat(self, text: str) -> None:
        try:
            self._temperature = float(text) if text else None
        except ValueError:
            raise ClientError(f"write the temperature as a number, not {text!r}") from None

    def _choose_model(self, name: str) -> None:
        known = self._client.models()
        if name and name not in known:
            raise ClientError(f"no model is called {name!r}; there are: {', '.join(known)}")
        self.model = name or self.model
        if not name:
            print("\n".join(f"{'*' if each == self.model else ' '} {each}" for each in known))

    def _save(self, path: str) -> None:
        if not path:
            raise ClientError("name a file: /save FILE")
        messages = [*self._opening(), *self.messages]
        told = {"model": self.model, "decoding": self.decoding, "messages": messages}
        try:
            Path(path).expanduser().write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        except OSError as error:
            raise ClientError(f"cannot write {path}: {error.strerror}") from error
        print(f"{len(messages)} messages in {path}")

    def _reset(self, _: str) -> None:
        self.messages, self._last, self._waiting = [], None, None

    def _list_strategies(self, _: str) -> None:
        for each in self._client.strategies():
            parameters = ", ".join(each["schema"].get("properties", {})) or "none"
            print(f"{each['name']}: {each['summary']} (parameters: {parameters})")

    def _opening(self) -> list[dict[str, str]]:
        return [{"role": "system", "content": self._system}] if self._system else []

    def _fields(self, decoding: Mapping[str, Any] | None) -> ChatFields:
        return {"decoding": decoding, "temperature": self._temperature, "max_tokens": self._max_tokens}


def _strategies(words: str) -> dict[str, dict[str, Any]]:
    """Strategies out of `NAME key=value ... NAME ...`, by what tells them apart; raises ClientError."""
    found: list[dict[str, Any]] = []
    labels: list[str] = []
    for word in words.split():
        key, equals, value = word.partition("=")
        if not equals:
            found.append({"strategy": word})
            labels.append(word)
        elif not found:
            raise ClientError(f"name a strategy before {word!r}")
        else:
            found[-1][key] = _value(value)
            labels[-1] += f" {word}"
    names = [each["strategy"] for each in found]
    short = [name if names.count(name) == 1 else label for name, label in zip(names, labels, strict=True)]
    return dict(zip(short, found, strict=True))


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
