"""The part of `trimtab doctor` that looks at guides, once they are loaded."""

from collections.abc import Iterator

from trimtab.engine.errors import TrimtabError
from trimtab.engine.rewards import Pair, Reward
from trimtab.engine.vocabulary import Message
from trimtab.llm import LLM
from trimtab.server.doctor import Check
from trimtab.server.guides import describe
from trimtab.server.schema.responses import GuideCard

SIZES = (1, 2, 7)
"""answers in a batch"""
TOLERANCE = 0.05
"""of the largest score, at least of 1: bfloat16 rounds otherwise at other sizes; padding that counts moves far more"""


def guide_checks(llm: LLM) -> Iterator[Check]:
    """What each guide is, and whether each classifier scores an answer alike in any company."""
    for card in describe(llm):
        yield Check(f"guide {card.name}", True, _told(card))
        if card.scores_answers and card.role != "program":
            yield _batching(llm.rewards[card.name])


def _told(card: GuideCard) -> str:
    parts = [f"{card.role} {card.model}"]
    if card.vocabulary is not None:
        parts.append(f"vocabulary {card.vocabulary}")
    if card.context_length is not None:
        parts.append(f"context of {card.context_length} tokens")
    if card.chat_template is not None:
        parts.append("chat template" if card.chat_template else "no chat template")
    if card.role != "program" and card.scores_answers and not card.scores_candidates:
        parts.append("scores whole answers only")
    return ", ".join(parts)


def _batching(reward: Reward) -> Check:
    question = (Message(role="user", content="How does a trim tab turn a ship?"),)
    pairs = [Pair(question, "It turns the rudder, which turns the ship. " * count) for count in range(1, 8)]
    name = f"batches of {reward.name}"
    try:
        scored = [
            [score for at in range(0, len(pairs), size) for score in reward.score(pairs[at : at + size])]
            for size in SIZES
        ]
    except TrimtabError as error:
        return Check(name, False, str(error))
    alone = scored[0]
    off = max(abs(score - other) for each in scored for score, other in zip(each, alone, strict=True))
    if off > TOLERANCE * max(1.0, *map(abs, alone)):
        return Check(
            name, False, f"scores differ by {off:.2g} with the size of the batch", "load it with dtype float32"
        )
    return Check(name, True, f"scores are equal at batch 1, 2 and 7 (within {off:.1g})")
