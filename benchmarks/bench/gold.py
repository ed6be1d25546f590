"""Gold measures: what an answer is worth to a judge that steering never asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.bench.errors import BenchError
from trimtab.clients.calls import Asked
from trimtab.clients.client import TrimtabClient

NONE = "none"
VADER = "vader"
ENGLISH = "en"

AT_ONCE = 64
"""answers that a guide is sent with one request: the server scores them between the steps of running answers"""


@dataclass(frozen=True, slots=True)
class Gold:
    """A judge of answers."""

    scores: Callable[[Sequence[Asked]], list[float]]
    """of pairs of a conversation and an answer, in order"""
    language: str | None = None
    """the only one that it reads; None: any"""

    def reads(self, language: str) -> bool:
        """Whether it can judge answers to prompts of a language."""
        return self.language in (None, language)


def gold_of(name: str, client: TrimtabClient) -> Gold | None:
    """Return the measure of this name: `vader`, a guide of the server that scores answers, or None for `none`.

    Raises BenchError for a package or a guide that is not there.
    """
    if name == NONE:
        return None
    if name == VADER:
        return _vader()
    scorers = [guide.name for guide in client.guides() if guide.scores_answers]
    if name not in scorers:
        raise BenchError(
            f"no gold measure {name!r}: take {VADER}, {NONE} or a guide that scores answers; {client.url} has "
            + (", ".join(scorers) or "none")
        )

    def scores(pairs: Sequence[Asked]) -> list[float]:
        parts = (pairs[start : start + AT_ONCE] for start in range(0, len(pairs), AT_ONCE))
        return [score for part in parts for score in client.score(name, part)]

    return Gold(scores)


def _vader() -> Gold:
    """The compound score of VADER (Hutto and Gilbert 2014), -1 to 1: English word lists and rules, read once.

    It reads the answer alone, and would take every language for English: the German article "die" is a death to it.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer  # type: ignore[import-untyped]
    except ModuleNotFoundError as missing:
        if missing.name != "vaderSentiment":
            raise
        raise BenchError(
            f"--gold {VADER} needs the package vaderSentiment: pip install 'trimtab[bench]', or --gold {NONE}"
        ) from None
    analyzer = SentimentIntensityAnalyzer()
    return Gold(lambda pairs: [float(analyzer.polarity_scores(text)["compound"]) for _, text in pairs], ENGLISH)
