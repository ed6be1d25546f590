"""What the demo's preference guide learns from: questions that end in a wish, from brief to cheerful in five steps.

The answers are those that the base gave to the questions alone, whole and cut after their first sentence. The one that
scores best by a wish's weights is chosen, and the one that scores worst rejected.
"""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trimtab.engine.rewards import Pair
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import Message
from trimtab.llm import LLM
from trimtab.training.preference import read_rewards
from trimtab.training.rollouts import Rollout

WISHES: Final[tuple[tuple[float, tuple[str, ...]], ...]] = (
    (
        0.0,
        (
            "Answer in as few words as you can.",
            "Keep it very short.",
            "One short line is enough.",
            "Ten words at most, please.",
            "I have no time: just the main point.",
            "A single sentence, nothing more.",
        ),
    ),
    (
        0.25,
        (
            "Keep it short, and friendly where that fits.",
            "A short answer will do; a kind one is welcome.",
            "Few words, please, but nice ones.",
            "Please be brief, with a hint of good humour.",
            "Just a line or two, on the friendly side.",
            "Short above all, and not too gloomy.",
        ),
    ),
    (
        0.5,
        (
            "Make it short and cheerful.",
            "Be friendly and brief.",
            "A short and happy answer, please.",
            "Cheer me up in a few words.",
            "Say it quickly and with a smile.",
            "Be as kind as you are brief.",
        ),
    ),
    (
        0.75,
        (
            "Sound happy, and do not go on for too long.",
            "Be cheerful; it need not be long.",
            "A good mood matters most, length a little.",
            "Tell it with delight, without too many words.",
            "Be warm and positive, and mind the length.",
            "Mostly I want something nice to read, not a novel.",
        ),
    ),
    (
        1.0,
        (
            "Be as cheerful as you can.",
            "Make me smile.",
            "Fill it with joy, and take your time.",
            "Tell me about everything that is wonderful about it.",
            "I love happy stories: go on as long as you like.",
            "Be warm, kind and full of enthusiasm.",
        ),
    ),
)
"""the weight of the first reward, the other has the rest; and how people say so"""


def write_wishes(path: Path, groups: Sequence[Sequence[Rollout]], rewards: Path) -> int:
    """Write a pair for each question and wish as JSON Lines and return their number.

    `groups` holds the answers to each question; `rewards` is a YAML file with the two rewards.
    """
    pools = [_pool([rollout.answer for rollout in group]) for group in groups]
    questions = [group[0].messages for group in groups]
    scores = _standardised(_scored(questions, pools, rewards))
    pairs = list(_pairs(questions, pools, scores))
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    return len(pairs)


def _pool(answers: Sequence[str]) -> list[str]:
    """The answers, and the first sentence of each, without what is empty."""
    first = (re.split(r"(?<=[.!?])\s", answer.strip(), maxsplit=1)[0] for answer in answers)
    return list(dict.fromkeys(text for text in (*answers, *first) if text.strip()))


def _scored(
    questions: Sequence[tuple[Message, ...]], pools: Sequence[Sequence[str]], rewards: Path
) -> list[NDArray[np.float64]]:
    """Scores (answers, rewards) of every question's pool."""
    guides = read_rewards(rewards)
    pairs = [Pair(question, text) for question, pool in zip(questions, pools, strict=True) for text in pool]
    with LLM(settings=EngineSettings(model="demo", guides=guides)) as llm:
        columns = np.array([llm.score(name, pairs) for name in guides]).T
    return np.split(columns, np.cumsum([len(pool) for pool in pools])[:-1])


def _standardised(scores: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    """Less the mean, over the standard deviation, of all answers."""
    known = np.concatenate(scores)
    return [(each - known.mean(axis=0)) / known.std(axis=0) for each in scores]


def _pairs(
    questions: Sequence[tuple[Message, ...]], pools: Sequence[Sequence[str]], scores: Sequence[NDArray[np.float64]]
) -> Iterator[dict[str, Any]]:
    for index, (question, pool, known) in enumerate(zip(questions, pools, scores, strict=True)):
        for weight, wishes in WISHES:
            wish = wishes[index % len(wishes)]
            worth = known @ np.array([weight, 1.0 - weight])
            *before, last = question
            asked = {**last, "content": f"{last['content']} {wish}"}
            chosen, rejected = pool[int(worth.argmax())], pool[int(worth.argmin())]
            yield {"prompt": [*before, asked], "chosen": chosen, "rejected": rejected}
