"""Answers that an adapter learns from: written, rated or sampled ones, as rows of ids in groups with scores."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tqdm import tqdm

from trimtab.engine.loading import LoadedModel
from trimtab.engine.vocabulary import Message, Vocabulary
from trimtab.training.data import Preference, Prompted, Rating, read_any
from trimtab.training.errors import DataError
from trimtab.training.options import ArmOptions, ExpertOptions
from trimtab.training.rollouts import policy, rollouts
from trimtab.training.rows import Row, answer_row, closing_id
from trimtab.training.run import open_base, open_folder

Turns = tuple[tuple[str, str], ...]
"""role and content of the messages before an answer"""


class Scored(NamedTuple):
    """One answer."""

    record: int
    """of the data, from 0"""
    prompt: Turns
    """empty for a text of its own"""
    row: Row
    score: float


class Contrast(NamedTuple):
    """A better and a worse answer to one prompt."""

    record: int
    prompt: Turns
    chosen: Row
    rejected: Row


@dataclass(frozen=True)
class Answers:
    """The base, and the data read for it."""

    loaded: LoadedModel
    groups: list[list[Scored]]
    """answers that are compared: a pair of the data, or all rated or sampled answers to a prompt"""
    preferences: bool
    """whether they are pairs of the data"""
    records: int
    policy: str | None
    """who wrote them; None if the data holds them"""

    @property
    def settings(self) -> dict[str, str]:
        """What decides a run beside the options: the answers, which a reward may have chosen."""
        return {"answers": hashlib.sha256(repr(self.groups).encode()).hexdigest()}

    def contrasts(self) -> list[Contrast]:
        """Return the best and the worst answer of every group, the first ones of equals; DataError if none differ."""
        found = []
        for group in _differing(self.groups):
            best, worst = max(group, key=_score), min(group, key=_score)
            found.append(Contrast(best.record, best.prompt, best.row, worst.row))
        return found

    def imitated(self, keep: Literal["best", "worst"], share: float) -> list[Scored]:
        """Return this share of each group, at least one answer; of all answers, where each has a prompt of its own."""
        groups = self.groups
        if all(len(group) == 1 for group in groups):
            groups = [[answer for group in groups for answer in group]]
        if share < 1.0:
            groups = _differing(groups)
        ranked = [sorted(group, key=_score, reverse=keep == "best") for group in groups]
        return [answer for group in ranked for answer in group[: max(1, round(share * len(group)))]]


def open_answers(options: ArmOptions | ExpertOptions) -> Answers:
    """Read the data, sample and score answers if it is prompts alone, and load the base."""
    records = read_any(options.data, (Preference, Rating, Prompted))
    open_folder(options)
    prompts = [record.messages for record in records if isinstance(record, Prompted)]
    # Before the base is loaded: the engine that samples holds a copy of its own.
    sampled = rollouts(options, options.sampled, prompts, seed=options.schedule.seed) if prompts else []
    loaded = open_base(options)
    vocabulary = Vocabulary(loaded.tokenizer, loaded.embedding_rows)
    eos_id, limit = closing_id(loaded, vocabulary), loaded.context_length

    def scored(index: int, messages: Sequence[Message], answer: str, score: float) -> Scored:
        return Scored(index, _key(messages), answer_row(vocabulary, messages, answer, eos_id, limit), score)

    pairs, alone = [], []
    for index, record in enumerate(records):
        if isinstance(record, Preference):
            answers = ((record.chosen, 1.0), (record.rejected, 0.0))
            pairs.append([scored(index, record.messages, answer, score) for answer, score in answers])
        elif isinstance(record, Rating):
            alone.append(scored(index, record.pair.messages, record.pair.answer, record.score))
    for place, each in enumerate(sampled):
        row = Row([*each.prompt_ids, *each.tokens], len(each.prompt_ids))
        alone.append(Scored(place // options.sampled.answers, _key(each.messages), row, each.reward))
    return Answers(
        loaded,
        groups=pairs or _grouped(alone),
        preferences=bool(pairs),
        records=len(records),
        policy=policy(options, options.sampled) if sampled else None,
    )


def _key(messages: Sequence[Message]) -> Turns:
    return tuple((message["role"], message["content"]) for message in messages)


def _grouped(answers: Sequence[Scored]) -> list[list[Scored]]:
    groups: dict[Turns, list[Scored]] = {}
    for answer in answers:
        groups.setdefault(answer.prompt, []).append(answer)
    return list(groups.values())


def _score(answer: Scored) -> float:
    return answer.score


def _differing(groups: Sequence[list[Scored]]) -> list[list[Scored]]:
    """The groups with answers to tell apart; says how many are skipped."""
    found = [group for group in groups if len({answer.score for answer in group}) > 1]
    if not found:
        raise DataError(
            f"the answers to each of {len(groups)} prompts score the same: add answers that differ, sample more "
            "(--answers), or pass another --reward"
        )
    if len(found) < len(groups):
        tqdm.write(f"{len(groups) - len(found)} of {len(groups)} prompts skipped: their answers score the same")
    return found
