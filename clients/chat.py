"""Terminal chat with a running server; also works on piped input."""

import json
import sys
from collections.abc import Mapping
from typing import Any

from trimtab.clients.client import Answer, ClientError, TrimtabClient

HELP = """\
/strategy NAME key=value ...   decode with another strategy from now on; without a name: plain sampling
/strategies                    list the strategies
/reset                         forget the conversation
/help                          this text
/quit                          leave (also: end of input)"""


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
            print(f"{chat.model} at {client.url}; /help lists the commands")
        while True:
            try:
                line = input("> " if interactive else "").strip()
            except (EOFError, KeyboardInterrupt):
                return
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
        self._client = client
        self._temperature = temperature
        self._max_tokens = max_tokens
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._opening)

    def take(self, line: str) -> None:
        """One line of input: a command or a message; errors are printed and change nothing."""
        command, _, rest = line.partition(" ")
        try:
            if not line.startswith("/"):
                self._say(line)
            elif command == "/help":
                print(HELP)
            elif command == "/reset":
                self.messages = list(self._opening)
            elif command == "/strategies":
                for each in self._client.strategies():
                    parameters = ", ".join(each["schema"].get("properties", {})) or "none"
                    print(f"{each['name']}: {each['summary']} (parameters: {parameters})")
            elif command == "/strategy":
                self.choose(rest)
            else:
                print(f"unknown command {command}; /help lists them")
        except ClientError as error:
            print(f"error: {error}")

    def choose(self, words: str) -> None:
        """Set the strategy from `NAME key=value ...`; values are JSON, or else strings."""
        name, *assignments = words.split() or [""]
        values = {}
        for assignment in assignments:
            key, equals, value = assignment.partition("=")
            if not equals:
                raise ClientError(f"write {assignment!r} as key=value")
            values[key] = _value(value)
        self.decoding = {"strategy": name, **values} if name else None

    def _say(self, text: str) -> None:
        messages = [*self.messages, {"role": "user", "content": text}]
        stream = self._client.stream_chat(
            self.model,
            messages,
            decoding=self.decoding,
            temperature=self._temperature,
            max_tokens=self._max_tokens,
        )
        try:
            for piece in stream:
                if isinstance(piece, Answer):
                    self.messages = [*messages, {"role": "assistant", "content": piece.text}]
                    print(f"\n[{cost_line(piece)}]")
                else:
                    print(piece, end="", flush=True)
        except KeyboardInterrupt:
            print("\n[stopped]")
        finally:
            stream.close()


def cost_line(answer: Answer) -> str:
    """Strategy, reward of the chosen candidate, tokens and time of one answer."""
    decoding = answer.decoding
    parts = [str(decoding["spec"]["strategy"])]
    candidates, chosen = decoding["candidates"], decoding["chosen"][0]
    if chosen is not None and candidates[chosen]["reward"] is not None:
        rewards = [candidate["reward"] for candidate in candidates if candidate["reward"] is not None]
        parts.append(f"reward {candidates[chosen]['reward']:.3g} (mean {sum(rewards) / len(rewards):.3g})")
    spent = sum(decoding["model_tokens"].values())
    parts.append(f"{answer.usage['completion_tokens']} tokens, {spent} spent")
    parts.append(_seconds(decoding["milliseconds"]))
    return ", ".join(parts)


def _seconds(milliseconds: Mapping[str, float]) -> str:
    return f"{milliseconds.get('total', 0.0) / 1000:.2f} s"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
