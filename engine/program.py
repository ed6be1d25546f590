"""The sequence-level part of a request: a generator that yields ops and is resumed when the engine has done them.

A program reads like its paper's algorithm. It touches neither tensors nor threads, and it is resumed once per op,
never once per token. The engine answers the pending ops of all live programs with shared batches.
"""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from trimtab.engine.budget import Budget
from trimtab.engine.outgoing import Outgoing
from trimtab.engine.plan import BASE
from trimtab.engine.sequence import Sequence
from trimtab.engine.vocabulary import Message

if TYPE_CHECKING:
    from trimtab.engine.request import Opener


@dataclass(frozen=True, slots=True)
class Until:
    """Where a step of an answer ends, beside the end of the answer itself."""

    strings: tuple[str, ...] = ()
    """after the token with which the step's text holds one of these"""
    endings: tuple[str, ...] = ()
    """after a token with which the step's text ends in one of these"""
    entropy: float | None = None
    """before a token at which the base's distribution has this entropy or more, nats"""
    min_tokens: int = 1
    """of the step: before, none of these counts"""


@dataclass(frozen=True, slots=True)
class Extend:
    """Decode each sequence until it finishes, has grown by `max_tokens` or has completed a step. Answers None.

    Sequences that have finished are left alone. Those beyond the rows of the request wait for their turn.
    """

    sequences: Many[Sequence]
    max_tokens: int | None = None
    until: Until | None = None
    first: bool = False
    """answer as soon as one of them has finished; the others have grown by then as far as they have"""


@dataclass(frozen=True, slots=True)
class Score:
    """Reward of each sequence's answer as it stands. Answers a list of floats in the order of `sequences`.

    `reward` names a reward, or a value head of one value, which reads the base's last hidden state. NaN: the guide
    failed on this answer, and the server is set to let it lose.
    """

    sequences: Many[Sequence]
    reward: str


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Log-probabilities of answer tokens under one model, read in one pass, whoever wrote them.

    Answers a list of floats per sequence: of its answer's tokens from number `start` on (0 is the first). `model` is
    `base`, unsteered at temperature 1, or a language-model guide that the strategy called for at admission.
    """

    sequences: Many[Sequence]
    model: str
    start: int | Many[int] = 0
    """one for all, or one for each"""


@dataclass(frozen=True, slots=True)
class Preferences:
    """Ask how much each reward counts for the request's prompt. Answers a dict of weights, which sum to 1, by reward.

    `guide` names a preference guide, which reads the base's last hidden state at the end of the prompt.
    """

    guide: str


@dataclass(frozen=True, slots=True)
class Propose:
    """Ask which tokens each sequence would go on with; nothing is drawn.

    Answers, in the order of `sequences`, the best `k` tokens with their scores, best first: what the next token would
    be drawn from, steered and edited, before temperature. Banned tokens are left out, and a sequence that has ended
    gets an empty answer. Forks that are made now share the last token's keys and values, and the proposal.
    """

    sequences: Many[Sequence]
    k: int


@dataclass(frozen=True, slots=True)
class Draw:
    """Draw one token for each sequence from the softmax of `scores`, as its request samples. Answers None.

    The tokens are those of the last Propose, all or some of them; with one token the choice is made. The token is
    added as if the engine had decoded it.
    """

    sequences: Many[Sequence]
    scores: Many[Mapping[int, float]]
    """per sequence, by token id; those of a sequence that has ended are not looked at"""
    values: Mapping[str, Many[Mapping[int, float]]] = field(default_factory=dict)
    """for traces: what each guide gave the tokens, in the order of `sequences`"""


@dataclass(frozen=True, slots=True)
class Prefill:
    """Store the sequences as far as they go, so that forks which are made then share all of it. Answers None."""

    sequences: Many[Sequence]


Op = Extend | Score | LogProbs | Preferences | Propose | Draw | Prefill


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a program wants an answer to, beside the prompt."""

    messages: Many[Message]
    model: str = BASE
    """who writes: `base`, as the request steers it, or a language-model guide alone"""
    helper: bool = False
    """the answer is a text for the program: nothing is put around the messages, and no grammar binds it"""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program returns."""

    choices: Many[Sequence]
    candidates: Many[Sequence]
    """everything that was considered; rewards stand on the sequences"""
    report: Mapping[str, Any] = field(default_factory=dict)
    """numbers of the search for the response"""
    stopped_by: str = "finished"


Commit = Callable[[int, Sequence, int], None]
Start = Callable[[Conversation], Sequence]


@dataclass(slots=True)
class Context:
    """What a program starts from: the prompt, stored, and the number of choices that the request wants."""

    prompt: Sequence
    choices: int
    messages: tuple[Message, ...]
    """the conversation that is answered; rewards read that of the request, which it begins as"""
    budget: Budget
    random: np.random.Generator
    """for the choices of the search itself; begins with the request's seed"""
    committing: Commit
    starting: Start
    restarting: Callable[[Sequence], None]
    reopening: "Callable[[Opener], Sequence]"
    sent: Mapping[int, Outgoing]
    """per choice: what was declared final"""

    def stream(self, sequences: Many[Sequence]) -> None:
        """Send the text of `sequences` as it grows, as choices 0, 1, ...: each token drawn is final."""
        for index, sequence in enumerate(sequences):
            sequence.choice = index

    def commit(self, sequence: Sequence, choice: int = 0) -> None:
        """Send the answer so far as final text of a choice; the choice has to begin with it."""
        self.committing(choice, sequence, sequence.generated)

    def commit_shared(self, sequences: Many[Sequence], choice: int = 0) -> None:
        """Send what the answers of all `sequences`, one of which will be the choice, begin with."""
        alike = (len(set(tokens)) == 1 for tokens in zip(*(each.answer for each in sequences), strict=False))
        self.committing(choice, sequences[0], sum(takewhile(bool, alike)))

    def fits(self, sequence: Sequence, choice: int) -> bool:
        """Whether the answer begins with what was sent of a choice."""
        return choice not in self.sent or self.sent[choice].begins(sequence)

    def retell(self, choice: int) -> Sequence:
        """What was sent of a choice, as an answer of its own."""
        if choice not in self.sent:
            return self._written(())
        answer = self._written(self.sent[choice].tokens)
        answer.trace = self.sent[choice].trace.copy()
        return answer

    def branch(self, sequence: Sequence, tokens: Collection[int]) -> list[Sequence]:
        """One look ahead for each of `tokens`: a fork of `sequence` with the token added, ended if the token ends it.

        It decodes greedily, else as the request steers and edits, and keeps no reports: it is no answer, so free it.
        """
        sampling = self.prompt.plan.sampling.model_copy(update={"temperature": 0.0, "logprobs": None})
        forks = sequence.fork(len(tokens), replace(sequence.plan, sampling=sampling, trace=False))
        for fork, token in zip(forks, tokens, strict=True):
            fork.candidate = False
            fork.push(token)
        return forks

    def voiced(self, sequence: Sequence, n: int, model: str) -> list[Sequence]:
        """`n` forks that one model alone goes on writing: `base` unsteered, or a guide that the strategy called for.

        The other models read nothing meanwhile and catch up when they are asked again.
        """
        voice = sequence.lanes.index(sequence.lane(model))
        forks = sequence.fork(n, self.prompt.plan.alone)
        for fork in forks:
            fork.voice = voice
        return forks

    def steered(self, sequence: Sequence, n: int) -> list[Sequence]:
        """`n` forks that the base goes on writing, steered as the request has it."""
        forks = sequence.fork(n, self.prompt.plan)
        for fork in forks:
            fork.voice = None
        return forks

    def say(self, text: str) -> Sequence:
        """A finished answer with a text of the program's own, as far as the answer may be long; no grammar binds it."""
        answer = self._written(self.prompt.base.model.vocabulary.continuation(text))
        answer.finish = answer.finish or "stop"
        return answer

    def start(self, messages: Many[Message], model: str = BASE, *, helper: bool = False) -> Sequence:
        """An empty answer to another conversation, steered like the request; with a guide's name, by that model alone.

        Raises InvalidRequest if the conversation does not fit the model. It may become a choice like any fork of the
        prompt, unless another vocabulary wrote it. A `helper` may not, is free of the request's grammar, and is to be
        freed.
        """
        return self.starting(Conversation(messages, model, helper))

    def reopen(self, opener: "Opener") -> None:
        """Let `opener` make this and every other conversation from here on, before anything was answered.

        The prompt is what it makes of the messages of the request. Raises InvalidRequest if that does not fit.
        """
        self.prompt = self.reopening(opener)

    def restart(self, messages: Many[Message]) -> None:
        """Let another conversation take the place of the prompt, before anything was answered.

        Raises InvalidRequest if it does not fit the model. Rewards go on reading the messages of the request.
        """
        self.prompt = self.starting(Conversation(messages))
        self.messages = tuple(messages)
        self.restarting(self.prompt)

    def _written(self, tokens: Iterable[int]) -> Sequence:
        """An answer of given tokens, up to the first that ends it."""
        (answer,) = self.prompt.fork(1, self.prompt.plan.alone)
        answer.grammar = None
        for token in tokens:
            if answer.finish is None:
                answer.push(token)
        return answer


class Program(Protocol):
    """One search method with its parameters."""

    def rows(self, choices: int) -> int:
        """Sequences that it would have decode at the same time at most."""
        ...

    def run(self, context: Context) -> Generator[Op, Any, Answer]: ...

    def interrupted(self, context: Context, reason: str) -> Generator[Op, Any, Answer]:
        """End with the best of what there is: `run` has been closed, its sequences are in the prompt's family.

        Nothing may be decoded any more; one batch may be scored.
        """
        ...
