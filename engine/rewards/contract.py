"""What a reward model must keep to so that its scores can be reproduced; examined once, when it is loaded."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final

import torch

from trimtab.engine.errors import GuideError, TrimtabError
from trimtab.engine.rewards.base import Pair
from trimtab.engine.rewards.causal import CausalReward
from trimtab.engine.rewards.classifier import ClassifierReward
from trimtab.engine.vocabulary import Message

log = logging.getLogger(__name__)

ModelReward = CausalReward | ClassifierReward

TOLERANCE: Final[Mapping[torch.dtype, float]] = MappingProxyType(
    {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.01, torch.bfloat16: 0.05}
)
"""Largest difference between two scores of one answer, as a part of the largest score and at least of 1.

Batches of other sizes round otherwise; padding that counts moves a score far more.
"""
COARSE: Final = 0.1
"""of the span of the scores: differences beyond are told, though the dtype explains them"""
CONSTANT: Final = 1e-5
"""span of the scores, in the unit of the tolerance, up to which they are one and the same"""
FULL_READ: Final = 512
"""contexts up to here are read once to their end; longer ones take too long"""

_TALK: Final = (
    ("How are you?", "Fine."),
    ("Name a colour.", "Blue, like the sky."),
    ("How does a trim tab turn a ship?", "It turns the rudder, and the rudder turns the ship."),
    ("Was the film any good?", "No. It was long, dull and badly acted, and I was glad when it was over at last."),
    (
        "Thank you for your help!",
        "You are most welcome. I enjoyed it, and I wish you a wonderful day with your family.",
    ),
    ("What is 2 + 2?", "I hate this stupid question."),
    ("How is tea made?", "Boil water, pour it over the leaves, count to two hundred, and take the leaves out again."),
)
PAIRS: Final = tuple(Pair((Message(role="user", content=question),), answer) for question, answer in _TALK)
"""seven answers of different lengths, to seven questions: prompts that are shared would be read once"""


Told = tuple[bool, str] | tuple[bool, str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """One point of the contract; `fix` says what to do, also where nothing is broken but seldom meant so."""

    name: str
    ok: bool
    finding: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Contract:
    """What was found of one model: a reward, or one that embeds texts."""

    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether scores, or vectors, can be relied on."""
        return all(each.ok for each in self.findings)


def examine(reward: ModelReward) -> Contract:
    """Read seven short answers in several ways and tell what differs; failures are logged, none is raised.

    Runs in the engine's thread, in less time than an answer takes. Its pages are free afterwards, and no later prompt
    finds them. A point that cannot be looked at ends the examination.
    """
    examination, findings = _Examination(reward), list[Finding]()
    points = {
        "chat template": examination.template,
        "BOS": examination.beginning,
        "scores": examination.spread,
        "batches": examination.batches,
        "padding": examination.padding,
        "truncation": examination.truncation,
    }
    with reward.pool.unshared() if isinstance(reward, CausalReward) else nullcontext():
        for name, point in points.items():
            try:
                findings.append(Finding(name, *point()))
            except _Broken as broken:
                findings.append(Finding(name, False, broken.finding, broken.fix))
                break
            except Exception as error:  # whatever a model's own code raises: the load goes on, and requests may work
                log.warning("guide %r: the examination of its %s failed", reward.name, name, exc_info=error)
                findings.append(Finding(name, False, f"{type(error).__name__}: {error}", "see the log for where"))
                break
    for each in findings:
        if not each.ok:
            log.warning("guide %r: %s: %s -> %s", reward.name, each.name, each.finding, each.fix)
    return Contract(tuple(findings))


class _Broken(Exception):
    """A point fails so that nothing further can be looked at."""

    def __init__(self, finding: str, fix: str) -> None:
        super().__init__(finding)
        self.finding = finding
        self.fix = fix


class _Examination:
    """The points of the contract of one reward; each tells whether it holds, what was found, and what to do."""

    def __init__(self, reward: ModelReward) -> None:
        self._reward = reward
        self._tokenizer = reward.vocabulary.tokenizer

    def template(self) -> Told:
        if not self._tokenizer.chat_template:
            return True, "none: a message is a line", "give it the template it was trained with, if it had one"
        question, told = PAIRS[0].messages, ("Yes.", "No.")
        try:
            rows = [self._reward.encode(Pair(question, answer)) for answer in told]
        except TrimtabError as error:
            fix = "let it take a question of the user with an answer of the assistant"
            raise _Broken(self._words(error), fix) from error
        if rows[0] == rows[1]:
            return False, "it leaves the answer out", "let it write the content of the last message"
        return True, "present"

    def beginning(self) -> Told:
        """One BOS (encoders: CLS) or none; SmolLM's begins every message, so that only the start is looked at."""
        begins = {self._tokenizer.bos_token_id, self._tokenizer.cls_token_id} - {None}
        row = self._rows[0]
        if row[0] in begins:
            token = self._token(row[0])
            if row[1:2] != row[:1]:
                return True, f"{token} once"
            fix = "set add_bos_token to false, or take one out of the tokenizer's post-processor"
            if self._tokenizer.chat_template:
                fix = "take one out of its chat template"
            return False, f"a conversation begins with {token} twice", fix
        added = self._reward.vocabulary.encode("a", add_special_tokens=True)[:1]
        if begins.issuperset(added):
            token = self._token(added[0])
            fix = f"let its chat template begin with {token}, unless it was trained without"
            return True, f"none, though plain text would begin with {token}", fix
        return True, "none"

    def spread(self) -> Told:
        try:
            scores = self._scores
        except GuideError as error:
            if self._reward.dtype == torch.float16:
                fix = "load it with dtype bfloat16 or float32"
            else:
                fix = "its weights hold NaN or infinity: fetch them again, or train it again"
            raise _Broken(self._words(error).partition(": ")[0], fix) from error
        if self._span <= CONSTANT * self._unit:
            fix = "train its head, or name the checkpoint that holds the trained one"
            return False, f"seven different answers all score {scores[0]:.3g}", fix
        return True, f"from {min(scores):.3g} to {max(scores):.3g} over seven answers"

    def batches(self) -> Told:
        alone = [score for pair in self._ends for score in self._reward.score([pair])]
        off = max(self._off(alone), self._off(self._reward.score(self._ends)))
        if not self._close(off):
            return False, f"scores differ by {off:.2g} between batch 1, 2 and 7", self._steadier
        told = f"the same scores at batch 1, 2 and 7 (within {off:.1g}"
        if off > COARSE * self._span:
            return True, f"{told}, which is much: the seven span {self._span:.1g})", self._steadier
        return True, f"{told})"

    def padding(self) -> Told:
        reward, pad = self._reward, self._tokenizer.pad_token_id
        if isinstance(reward, CausalReward):
            return True, "none: every answer has pages of its own"
        told = "padded right"
        if pad is None:
            told += " with a masked id, for want of a pad token"
        elif pad == self._tokenizer.eos_token_id:
            told += f" with EOS ({self._token(pad)}), told apart by length"
        if not reward.pads_left:
            return True, f"{told}; never left, since it is read at its first token"
        off = self._off(reward.padded(self._ends, "left"))
        if self._close(off):
            return True, f"{told}; the same scores when padded left (within {off:.1g})"
        return False, f"{told}; padded left, scores differ by {off:.2g}", self._steadier

    def truncation(self) -> Told:
        """A conversation beyond the context keeps the end of the answer, and the token it begins with."""
        limit, last, whole = self._reward.context_length, PAIRS[-1], self._rows[-1]
        long = Pair(last.messages, "word " * limit + last.answer)
        row = list(self._reward.encode(long))
        tail = min(16, len(whole) - 1)
        if row[-tail:] != whole[-tail:]:
            return False, f"beyond {limit} tokens the end of an answer is lost", "let its chat template keep the end"
        if limit <= FULL_READ:
            try:
                self._reward.score([long])
            except (IndexError, RuntimeError) as error:
                fix = "lower max_position_embeddings in its config.json to the positions that it has"
                return False, f"it cannot read the {limit} tokens of its context ({error})", fix
        begins = f" behind {self._token(row[0])}" if row[0] in self._reward.vocabulary.special_ids else ""
        return True, f"a longer conversation is cut to {len(row)} tokens, the end of the answer{begins}"

    @cached_property
    def _rows(self) -> list[list[int]]:
        return [list(self._reward.encode(pair)) for pair in PAIRS]

    @cached_property
    def _scores(self) -> list[float]:
        return self._reward.score(PAIRS)

    @property
    def _span(self) -> float:
        return max(self._scores) - min(self._scores)

    @property
    def _unit(self) -> float:
        return max(1.0, *map(abs, self._scores))

    @cached_property
    def _ends(self) -> list[Pair]:
        """The shortest and the longest: beside each other, one of them is padded most."""
        order = sorted(zip(map(len, self._rows), range(len(PAIRS)), strict=True))
        return [PAIRS[order[0][1]], PAIRS[order[-1][1]]]

    def _off(self, scores: Sequence[float]) -> float:
        """How far scores of the ends lie from those of all seven together."""
        together = [self._scores[PAIRS.index(pair)] for pair in self._ends]
        return max(abs(score - other) for score, other in zip(scores, together, strict=True))

    def _close(self, off: float) -> bool:
        return off <= TOLERANCE[self._reward.dtype] * self._unit  # False for NaN

    @property
    def _steadier(self) -> str:
        reward = self._reward
        if reward.dtype in (torch.float32, torch.float64):
            return "set max_batch_tokens to 1: answers are then read one at a time, without padding"
        adapted = isinstance(reward, CausalReward) and reward.adapted
        return f"{'serve the base' if adapted else 'load it'} with dtype float32"

    def _token(self, id_: int) -> str:
        return str(self._tokenizer.convert_ids_to_tokens(id_))

    def _words(self, error: TrimtabError) -> str:
        return str(error).removeprefix(f"guide {self._reward.name!r}: ")
