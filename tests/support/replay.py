"""Searches restated in plain Python: answers of a table, drawn in float64 at the numbers that the engine counts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from zlib import crc32

import numpy as np
from toy import Logits

from trimtab.kernels.philox import uniforms


def noise(text: str) -> float:
    """A reward that looks random: in [0, 1), a function of the text."""
    return crc32(text.encode()) / 2**32


def letter(token: int) -> str:
    """The text of one of the first 94 tokens of a toy."""
    return chr(ord("!") + token)


@dataclass(eq=False)
class Path:
    """One answer, partial or ended."""

    stream: int
    answer: tuple[int, ...] = ()
    ended: bool = False
    value: float = 0.0
    """for the search that is restated"""


@dataclass
class Replay:
    """The draws of one request; random streams are numbered in the order of the forks."""

    logits: Logits
    prompt: Sequence[int]
    seed: int
    length: int
    """tokens of an answer at most"""
    eos: int | None = None
    temperature: float = 1.0
    stop: str | None = None
    _streams: "count[int]" = field(default_factory=count)

    def begin(self, n: int) -> list[Path]:
        return [Path(next(self._streams)) for _ in range(n)]

    def fork(self, path: Path, n: int) -> list[Path]:
        return [Path(next(self._streams), path.answer, path.ended, path.value) for _ in range(n)]

    def extend(self, path: Path, tokens: int | None = None, separator: str | None = None) -> None:
        """Draw until the answer ends, has grown by `tokens`, or what was drawn now holds `separator`."""
        start = len(path.answer)
        while not path.ended and len(path.answer) - start != tokens:
            prefix = (*self.prompt, *path.answer)
            z = self.logits(prefix) / self.temperature
            p = np.exp(z - z.max())
            (u,) = uniforms([self.seed], [path.stream], [len(prefix)])
            path.answer += (int(np.searchsorted(np.cumsum(p), u * p.sum(), side="right")),)
            path.ended = path.answer[-1] == self.eos or len(path.answer) == self.length
            path.ended |= self.stop is not None and self.stop in self.text(path)
            if separator is not None and separator in self.text(Path(0, path.answer[start:])):
                break

    def text(self, path: Path) -> str:
        text = "".join(map(letter, (token for token in path.answer if token != self.eos)))
        return text if self.stop is None else text.split(self.stop)[0] if path.ended else text

    def judge(self, path: Path, reward: Callable[[str], float] = noise) -> float:
        return reward(self.text(path))

    def logprobs(self, logits: Logits, path: Path) -> list[float]:
        """Of each token of the answer under a table."""
        told = []
        for place, token in enumerate(path.answer):
            z = logits((*self.prompt, *path.answer[:place]))
            told.append(float(z[token] - z.max() - np.log(np.exp(z - z.max()).sum())))
        return told
