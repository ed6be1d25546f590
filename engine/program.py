"""The sequence-level part of a request: a generator that yields ops and is resumed when the engine has done them.

A program reads like its paper's algorithm. It touches neither tensors nor threads, and it is resumed once per op,
never once per token. The engine answers the pending ops of all live programs with shared batches.
"""

import math
from collections.abc import Collection, Generator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from trimtab.engine.errors import GuideError
from trimtab.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Extend:
    """Decode each sequence until it finishes, or until it has grown by `max_tokens`. Answers None."""

    sequences: Many[Sequence]
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """Reward of each sequence's answer as it stands. Answers a list of floats in the order of `sequences`."""

    sequences: Many[Sequence]
    reward: str


@dataclass(frozen=True, slots=True)
class Propose:
    """Ask which tokens each sequence would go on with; nothing is drawn.

    Answers, in the order of `sequences`, the best `k` tokens with their scores, best first: what the next token would
    be drawn from, steered and edited, before temperature. Banned tokens are left out, and a sequence that has ended
    gets an empty answer. Forks that are made now share the last token's keys and values.
    """

    sequences: Many[Sequence]
    k: int


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw one token for each sequence from the softmax of `scores`, as its request samples. Answers None.

    The tokens are those of the last Propose, all or some of them. The token is added as if the engine had decoded it.
    """

    sequences: Many[Sequence]
    scores: Many[Mapping[int, float]]
    """per sequence, by token id; those of a sequence that has ended are not looked at"""
    values: Mapping[str, Many[Mapping[int, float]]] = field(default_factory=dict)
    """for traces: what each guide gave the tokens, in the order of `sequences`"""


Op = Extend | Score | Propose | Draw


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program returns: the choices, in order, and every candidate it considered with its reward."""

    choices: Many[Sequence]
    candidates: Many[tuple[Sequence, float | None]]


@dataclass(frozen=True, slots=True)
class Context:
    """What a program starts from: the prompt, stored, and the number of choices that the request wants."""

    prompt: Sequence
    choices: int

    def stream(self, sequences: Many[Sequence]) -> None:
        """Send the text of `sequences` as it grows, as choices 0, 1, ...: each token drawn is final."""
        for index, sequence in enumerate(sequences):
            sequence.choice = index

    def branch(self, sequence: Sequence, tokens: Collection[int]) -> list[Sequence]:
        """One look ahead for each of `tokens`: a fork of `sequence` with the token added, ended if the token ends it.

        It decodes greedily, else as the request steers and edits, and keeps no reports: it is no answer, so free it.
        """
        sampling = self.prompt.plan.sampling.model_copy(update={"temperature": 0.0, "logprobs": None})
        forks = sequence.fork(len(tokens), replace(self.prompt.plan, sampling=sampling, trace=False))
        for fork, token in zip(forks, tokens, strict=True):
            fork.push(token)
        return forks

    def choose(self, sequences: Many[Sequence], rewards: Many[float], reward: str) -> Answer:
        """Answer with the sequences of the highest rewards, best first; ties fall to the earlier one, NaN loses."""
        if all(map(math.isnan, rewards)):
            raise GuideError(reward, "gave NaN for every candidate")
        order = sorted(range(len(sequences)), key=lambda i: (math.isnan(rewards[i]), -rewards[i], i))
        best = [sequences[i] for i in order[: self.choices]]
        return Answer(best, list(zip(sequences, rewards, strict=True)))


class Program(Protocol):
    """One search method with its parameters."""

    def rows(self, choices: int) -> int:
        """Sequences that decode at the same time at most."""
        ...

    def run(self, context: Context) -> Generator[Op, Any, Answer]: ...
