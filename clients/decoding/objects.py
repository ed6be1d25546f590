"""Objects that parameters of strategies are made of. Written by `make docs` from the registry: change it there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from trimtab.clients.decoding.base import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget(Part):
    """Limits of one request; all of them are optional. Time and tokens may be passed by two ticks."""

    deadline_ms: Annotated[int | None, "milliseconds from arrival to the answer"] = None
    max_model_tokens: Annotated[int | None, "tokens that all models together process"] = None
    max_rows: Annotated[int | None, "sequences that decode at the same time; more take turns"] = None
    max_kl: Annotated[float | None, "nats: KL from the base at which an answer ends"] = None
    reward_at_least: Annotated[float | None, "reward of a finished answer at which the search is over"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Community(Part):
    """Whose view it is: a model's, or the base's under a text."""

    guide: Annotated[str | None, "a language-model guide, or `base` as it is"] = None
    system: Annotated[str | None, "what the system message says last where the base speaks for it"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint(Part):
    """Phrases that are to occur or not, and bounds on the number of words; each phrase and each bound is one
    condition.
    """

    keywords: Annotated[Sequence[str] | None, "phrases that are to occur; [] if not given"] = None
    forbidden: Annotated[Sequence[str] | None, "phrases that are not to occur; [] if not given"] = None
    min_words: Annotated[int | None, "words at least"] = None
    max_words: Annotated[int | None, "words at most"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(Part):
    """A question and how it is answered."""

    query: Annotated[str, "what is asked"]
    answer: Annotated[str, "how it is answered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression(Part):
    """One number for each answer, out of the rewards that its guides give; parsed from a name or an object."""

    guide: Annotated[str | None, "reward guide of this term"] = None
    sum: Annotated[Sequence["Reward"] | None, "terms to add"] = None
    mean: Annotated[Sequence["Reward"] | None, "terms to average"] = None
    min: Annotated[Sequence["Reward"] | None, "terms of which the lowest counts"] = None
    ensemble: Annotated[Sequence["Reward"] | None, "judges of one thing: mean - pessimism * variance over them"] = None
    weights: Annotated[
        str | None, "sum: preference guide that weighs the terms by the prompt, on top of their own weights"
    ] = None
    weight: Annotated[float | None, "factor of the whole term or group; 1.0 if not given"] = None
    transform: Annotated[
        Literal["identity", "standardise", "log_sigmoid", "quantile", "clip"] | None,
        "what becomes of the guide's reward before it is weighed",
    ] = None
    reference: Annotated[float | None, "log_sigmoid: reward of an answer as likely good as not"] = None
    quantile: Annotated[float | None, "log_sigmoid: the reference is this quantile of base answers"] = None
    samples: Annotated[int | None, "base answers that rewards are compared with"] = None
    tilt: Annotated[float | None, "quantile: sign(tilt) * exp(tilt * quantile) instead"] = None
    low: Annotated[float | None, "clip: lowest value"] = None
    high: Annotated[float | None, "clip: highest value"] = None
    pessimism: Annotated[float | None, "ensemble: what one unit of variance costs"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference(Part):
    """A person's preference: exactly one of its fields."""

    weights: Annotated[Mapping[str, float] | None, "weight of each attribute, -1 (its opposite) to 1"] = None
    text: Annotated[str | None, "in words"] = None
    infer: Annotated[str | None, "preference guide that weighs its rewards by the prompt"] = None
    profile: Annotated[str | None, "id of a stored preference"] = None


Reward = str | Expression | Mapping[str, Any]
"""the name of a guide, or what several are worth together"""
