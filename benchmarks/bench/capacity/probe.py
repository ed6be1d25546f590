"""Asks a server what a model of its load needs to know: answers of a set length, and what its engine counted."""

import re
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from trimtab.bench.errors import BenchError
from trimtab.clients.client import ClientError, TrimtabClient
from trimtab.clients.results import Answer

_WORDS = ("river", "stone", "lamp", "garden", "winter", "letter", "bridge", "music", "harbour", "mountain")


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    decoding: Mapping[str, Any]
    prompt: int
    """tokens, with those of the chat template"""
    answer: int
    """tokens; no answer ends early"""
    seed: int
    label: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """What came of it."""

    asked: Asked
    began: float
    ended: float
    """seconds of time.perf_counter"""
    tokens: Mapping[str, int]
    """that each model processed, by model"""
    forwards: Mapping[str, int]
    prompt: int
    """tokens"""


class Probe:
    """Clients of one server."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._salt = uuid4().hex  # a server that was asked before has its prompts in the cache
        with closing(TrimtabClient(url)) as client:
            self.model = client.models()[0]
            self._framed = len(client.tokenize(_messages("", 0)).ids)

    def messages(self, tokens: int, seed: int) -> list[dict[str, str]]:
        """A conversation of about so many tokens."""
        words = (_WORDS[(seed * 7 + place * place) % len(_WORDS)] for place in range(max(1, tokens - self._framed)))
        return _messages(" ".join(words), seed)

    def counted(self) -> tuple[float, float]:
        """Decode steps so far, and the sum of the sequences in each."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as reply:
            text = reply.read().decode()
        found = [
            re.search(rf"^trimtab:rows_per_step_{part}(?:{{[^}}]*}})? (\S+)", text, re.M) for part in ("count", "sum")
        ]
        if not all(found):
            raise BenchError("/metrics tells no trimtab:rows_per_step: the server is another version than this")
        steps, rows = (float(each[1]) for each in found if each is not None)
        return steps, rows

    def ask(self, asked: Asked) -> Told:
        """Ask once, and wait for the answer; raises BenchError with what the server says against it."""
        with closing(TrimtabClient(self.url, retries=0)) as client:
            return self._ask(client, asked)

    def closed(self, jobs: Sequence[Asked], concurrency: int, done: Callable[[Told], None] | None = None) -> list[Told]:
        """Ask all, so many at a time, each as another has ended."""
        left, told, failed = deque(jobs), list[Told](), list[BenchError]()

        def work() -> None:
            with closing(TrimtabClient(self.url, retries=0)) as client:
                while not failed:
                    try:
                        job = left.popleft()
                    except IndexError:
                        return
                    try:
                        told.append(self._ask(client, job))
                    except BenchError as error:
                        failed.append(error)
                        return
                    if done is not None:
                        done(told[-1])

        workers = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, len(jobs)))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failed:
            raise failed[0]
        return told

    def _ask(self, client: TrimtabClient, asked: Asked) -> Told:
        began = time.perf_counter()
        try:
            answer = client.chat(
                self.model,
                self.messages(asked.prompt, asked.seed),
                decoding=asked.decoding or None,
                max_tokens=asked.answer,
                ignore_eos=True,
                seed=asked.seed,
                temperature=1.0,
                cache_salt=f"{self._salt}/{asked.label}/{asked.seed}",
            )
        except ClientError as error:
            raise BenchError(f"{dict(asked.decoding)} was refused: {error}") from None
        return _told(asked, began, answer)


def _told(asked: Asked, began: float, answer: Answer) -> Told:
    report = answer.decoding
    return Told(
        asked,
        began,
        time.perf_counter(),
        dict(report["model_tokens"]),
        dict(report["forwards"]),
        answer.usage.prompt_tokens,
    )


def _messages(text: str, seed: int) -> list[dict[str, str]]:
    """The system message is there for cfg, which is about it."""
    return [{"role": "system", "content": "You answer briefly."}, {"role": "user", "content": f"{text} {seed}"}]
