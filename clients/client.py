"""A small synchronous client of a trimtab server."""

import json
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx2


class ClientError(Exception):
    """The server refused the request or cannot be reached; `status` is None when no answer came."""

    def __init__(self, message: str, *, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer; `decoding` says what the strategy did and what it cost."""

    text: str
    finish_reason: str
    usage: Mapping[str, Any]
    decoding: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Label:
    """The likeliest label of an answer, and the probabilities of all labels of the guide."""

    name: str
    probs: tuple[float, ...]


Asked = tuple[str | Sequence[Mapping[str, str]], str]
"""a prompt, or the messages of a conversation, and an answer"""


class TrimtabClient:
    """Talks to the server at `url`; `timeout` is the longest silence in seconds."""

    def __init__(self, url: str = "http://127.0.0.1:8000", *, timeout: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self._http = httpx2.Client(base_url=self.url, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def models(self) -> list[str]:
        """Ids of the models that are served."""
        return [card["id"] for card in self._ask("GET", "/v1/models")["data"]]

    def strategies(self) -> list[dict[str, Any]]:
        """Every strategy with its parameters' JSON Schema."""
        listed: list[dict[str, Any]] = self._ask("GET", "/v1/strategies")["data"]
        return listed

    def chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        decoding: Mapping[str, Any] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> Answer:
        """The whole answer; raises ClientError."""
        for piece in self.stream_chat(
            model, messages, decoding=decoding, temperature=temperature, max_tokens=max_tokens, seed=seed
        ):
            if isinstance(piece, Answer):
                return piece
        raise ClientError("the stream ended without an answer")

    def stream_chat(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        decoding: Mapping[str, Any] | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
    ) -> Generator[str | Answer, None, None]:
        """Text as it comes, then the Answer; raises ClientError. Leaving the loop cancels the request."""
        asked = {"decoding": decoding, "temperature": temperature, "max_tokens": max_tokens, "seed": seed}
        body = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in asked.items() if value is not None},
        }
        text, finish_reason = [], ""
        for chunk in self._events("/v1/chat/completions", body):
            if "error" in chunk:
                raise ClientError(chunk["error"]["message"], code=chunk["error"]["code"])
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content")
                finish_reason = choice["finish_reason"] or finish_reason
                if piece:
                    text.append(piece)
                    yield piece
            if "decoding" in chunk:
                yield Answer("".join(text), finish_reason, chunk["usage"], chunk["decoding"])

    def score(self, guide: str, pairs: Iterable[Asked]) -> list[float]:
        """Scores of answers by a reward guide, in order; raises ClientError.

        A pair holds what was asked, as a prompt or as messages, and the answer.
        """
        return [each["score"] for each in self._judged("/v1/score", guide, pairs)]

    def classify(self, guide: str, pairs: Iterable[Asked]) -> list[Label]:
        """Labels of answers by a reward guide, in order; raises ClientError. Pairs are as for `score`."""
        return [Label(each["label"], tuple(each["probs"])) for each in self._judged("/v1/classify", guide, pairs)]

    def pairs(
        self,
        model: str,
        conversations: Iterable[Sequence[Mapping[str, str]]],
        path: Path | str,
        *,
        n: int,
        reward: str | Mapping[str, Any],
        temperature: float | None = None,
        max_tokens: int | None = None,
        seed: int | None = None,
        parallel: int = 4,
    ) -> int:
        """Write a preference pair for each conversation, the best and the worst of n answers; returns how many.

        `path` gets lines of JSON in the conversational form that DPO trainers read. A conversation whose answers all
        have the same reward is left out. With a seed, the i-th conversation is answered with seed + i. Raises
        ClientError; the lines before it stay.
        """
        decoding = {"strategy": "best_of_n", "n": n, "reward": reward, "export": "best_and_worst"}

        def pair(index: int, messages: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
            own_seed = None if seed is None else seed + index
            answer = self.chat(
                model, messages, decoding=decoding, temperature=temperature, max_tokens=max_tokens, seed=own_seed
            )
            return _row(messages, answer, n)

        asked = list(conversations)
        written = 0
        with ThreadPoolExecutor(parallel) as pool, Path(path).open("w", encoding="utf-8") as file:
            for row in pool.map(pair, range(len(asked)), asked):
                if row is not None:
                    file.write(json.dumps(row) + "\n")
                    written += 1
        return written

    def _events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            with self._http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    response.read()
                    raise _refused(response)
                for line in _lines(response):
                    if line.startswith(b"data: ") and line != b"data: [DONE]":
                        yield json.loads(line.removeprefix(b"data: "))
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error

    def _judged(self, path: str, guide: str, pairs: Iterable[Asked]) -> list[dict[str, Any]]:
        told = [
            {"prompt": asked, "answer": answer}
            if isinstance(asked, str)
            else {"messages": list(asked), "answer": answer}
            for asked, answer in pairs
        ]
        data: list[dict[str, Any]] = self._ask("POST", path, {"model": guide, "pairs": told})["data"]
        return data

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, json=body)
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        if response.status_code != 200:
            raise _refused(response)
        answer: dict[str, Any] = response.json()
        return answer

    def _unreachable(self, error: Exception) -> ClientError:
        return ClientError(f"no answer from {self.url} ({error}): is `trimtab serve` running there?")


def _row(messages: Sequence[Mapping[str, str]], answer: Answer, n: int) -> dict[str, Any] | None:
    """A line of a file of preferences; None where no answer was better than another."""
    pair = answer.decoding["report"].get("pair")
    if pair is None:
        return None
    told = {name: [{"role": "assistant", "content": pair[name]}] for name in ("chosen", "rejected")}
    rewards = {name: pair[name] for name in ("chosen_reward", "rejected_reward")}
    return {"prompt": list(messages), **told, **rewards, "n": n, "seed": answer.decoding["seed"]}


def _lines(response: httpx2.Response) -> Iterator[bytes]:
    """Lines as server-sent events end them; str.splitlines would also split at U+2028 inside a text."""
    rest = b""
    for data in response.iter_bytes():
        *lines, rest = (rest + data).split(b"\n")
        yield from lines


def _refused(response: httpx2.Response) -> ClientError:
    try:
        error = response.json()["error"]
        return ClientError(error["message"], status=response.status_code, code=error["code"])
    except (ValueError, KeyError, TypeError):
        return ClientError(f"HTTP {response.status_code}, and not from a trimtab server", status=response.status_code)
