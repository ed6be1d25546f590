"""Rules that `select` may name. Written by `make docs` from the registry: change it there."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from trimtab.clients.decoding.base import Rule


@dataclass(frozen=True, slots=True, kw_only=True)
class Argmax(Rule):
    """The highest reward."""

    name: ClassVar[str] = "argmax"


@dataclass(frozen=True, slots=True, kw_only=True)
class Soft(Rule):
    """Soft best-of-n: drawn with P(i) ~ exp(r_i / temperature) (Verdun et al. 2025, arXiv 2505.03156)."""

    name: ClassVar[str] = "soft"

    temperature: Annotated[float | None, "lambda; 0 is argmax, large is uniform; 1.0 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson(Rule):
    """The best of the first n = 1 + Poisson(mu) answers (Khalaf et al. 2025, arXiv 2506.19248)."""

    name: ClassVar[str] = "poisson"

    mu: Annotated[float | None, "mean of n - 1; where n exceeds the pool, all of it competes; 3.0 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chi2(Rule):
    """Pessimism by chi-squared regularisation: drawn by `chi2_weights` (Huang et al. 2025, arXiv 2503.21878)."""

    name: ClassVar[str] = "chi2"

    beta: Annotated[float | None, "pull towards the base; 0 is argmax, large is uniform; 1.0 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RegularisedBestOfN(Rule):
    """Regularised best-of-n: the highest r + alpha * log p_base(answer) (Jinnai et al. 2024, arXiv 2404.01054)."""

    name: ClassVar[str] = "rbon"

    alpha: Annotated[float | None, "weight of the base's log-probability; 0 is argmax; 0.01 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MinimumBayesRisk(Rule):
    """The answer most like all others: the highest sum_j sim(y_i, y_j) (Kumar and Byrne 2004, N04-1022)."""

    name: ClassVar[str] = "mbr"

    similarity: Annotated[
        Literal["token_f1", "rouge_l", "exact"] | None, "of two answers: shared words, ROUGE-L, or the same text"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Majority(Rule):
    """An answer of the largest group of answers that say the same (Wang et al. 2022, arXiv 2203.11171)."""

    name: ClassVar[str] = "majority"

    extract: Annotated[Literal["number", "boxed", "last_line", "text"] | None, "how the vote of an answer is read"] = (
        None
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedVote(Rule):
    """As majority, each vote weighing exp(r / temperature): positive whatever the sign of the rewards."""

    name: ClassVar[str] = "weighted_vote"

    extract: Annotated[Literal["number", "boxed", "last_line", "text"] | None, "how the vote of an answer is read"] = (
        None
    )
    temperature: Annotated[float | None, "T; large is majority, small is argmax; 1.0 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble(Rule):
    """The highest mean, least, or mean without variance of several judges (Coste et al. 2023, arXiv 2310.02743)."""

    name: ClassVar[str] = "ensemble"

    aggregate: Annotated[
        Literal["mean", "min", "pessimistic"] | None, "of the guides' rewards; pessimistic is mean - c * variance"
    ] = None
    c: Annotated[float | None, "pessimistic: what disagreement costs; 0.5 if not given, 0 is mean"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Abstain(Rule):
    """Refuse if no reward reaches a threshold, else let another rule choose."""

    name: ClassVar[str] = "abstain"

    tau: Annotated[float | None, "least reward that is worth an answer"] = None
    calibration: Annotated[
        Sequence[float] | None, "scores of which the threshold is a conformal quantile, in place of tau"
    ] = None
    alpha: Annotated[float | None, "with calibration: share of bad pools that may pass; 0.1 if not given"] = None
    then: Annotated[Rule | None, "rule that chooses where the threshold is reached"] = None
    message: Annotated[str | None, "what a refusal says"] = None
