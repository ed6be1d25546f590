"""What steering did to an answer, as JSON: a summary always, and token by token if it was asked for."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from trimtab.engine.results import Steering, TokenTrace
from trimtab.engine.vocabulary import Vocabulary

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


def number(value: float | None) -> float | None:
    """As JSON can carry it: null for what is not finite."""
    return None if value is None or not math.isfinite(value) else round(value, DIGITS)
