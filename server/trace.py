"""What steering and the search did, as JSON: a summary of each answer; token by token and as a tree if asked for."""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any

from trimtab.engine.results import Steering, TokenTrace, Tree
from trimtab.engine.vocabulary import TextStream, Vocabulary

DIGITS = 6


def summary(steering: Steering | None) -> dict[str, Any] | None:
    """Sums and rates of one answer; null for one that nothing steered."""
    return None if steering is None else {name: number(value) for name, value in asdict(steering).items()}


def tokens(trace: Sequence[TokenTrace], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """One record per token of an answer."""

    def text(token: int) -> str:
        return vocabulary.token_bytes(token).decode("utf-8", "replace")

    def top(best: tuple[tuple[int, float], ...]) -> list[dict[str, Any]]:
        return [{"id": token, "text": text(token), "logprob": number(logprob)} for token, logprob in best]

    return [
        {
            "id": each.id,
            "text": text(each.id),
            "source": each.source,
            "logprob_base": number(each.logprob_base),
            "logprob_steered": number(each.logprob_steered),
            "entropy": number(each.entropy),
            "entropy_base": number(each.entropy_base),
            "kl": number(each.kl),
            "values": {name: number(value) for name, value in each.values},
            "top_base": top(each.top_base),
            "top_steered": top(each.top_steered),
        }
        for each in trace
    ]


def tree(told: Tree, start: TextStream, silent: Collection[int]) -> dict[str, Any]:
    """What a search wrote: the texts on the way to an answer are the answer's, whatever is cut between two nodes.

    `start` is the text of an empty answer, and `silent` are tokens that end an answer and are no text.
    """
    going_on = {node.parent for node in told.nodes if node.token_ids}
    path: list[tuple[int | None, TextStream]] = [(None, start)]
    nodes = []
    for index, node in enumerate(told.nodes):
        while path[-1][0] != node.parent:
            path.pop()
        stream = path[-1][1].fork(whole=False)
        path.append((index, stream))
        text = "".join(stream.push(token) for token in node.token_ids if token not in silent)
        nodes.append(
            {
                "parent": node.parent,
                "text": text if index in going_on else text + stream.flush(),
                "tokens": len(node.token_ids),
                "value": node.value,
                "reward": node.reward,
                "fate": node.fate,
                "candidate": node.candidate,
                "choice": node.choice,
            }
        )
    return {"nodes": nodes, "omitted": told.omitted}


def number(value: float | None) -> float | None:
    """As JSON can carry it: null for what is not finite."""
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)
