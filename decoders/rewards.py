"""Reward expressions: what an answer is worth, from one guide or from several.

In a request an expression is the name of a reward guide, or an object:

    {"guide": "helpful", "weight": 2.0, "transform": "log_sigmoid", "reference": 1.5}
    {"sum": ["helpful", {"guide": "harmless", "transform": "quantile", "samples": 16}]}
    {"min": [...]}, {"mean": [...]}, {"ensemble": ["judge-a", "judge-b", "judge-c"], "pessimism": 0.5}
    {"sum": ["helpful", "harmless"], "weights": "balance"}

The last one asks the preference guide `balance` how much each reward counts for the prompt at hand (Preference
Orchestrator, Liu et al. 2025, arXiv 2511.10656).

Transforms, of a guide's reward r, with K base answers to the same prompt where they are needed:

- standardise: (r - mean) / sd of the base answers, or of the answers scored together if K is 0; 0 if sd is 0
- log_sigmoid: log sigma(r - reference), the reference given or a quantile of the base answers. The sum of several is
  the log-probability that an answer is good in every respect (Wang et al. 2024, arXiv 2402.00742)
- quantile: q = share of base answers that r beats, ties counting half, the calibrated reward of InfAlign
  (Balashankar et al. 2024, arXiv 2412.19792); with `tilt` t its transform sign(t) exp(t q), which serves best-of-N for
  t > 0 and worst-of-N for t < 0
- clip: r within [low, high]
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, TypeAdapter, model_serializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from trimtab.decoders.params import JudgeName, Share, WeigherName, Weight, require_reward
from trimtab.engine.errors import GuideError

MAX_TERMS = 16
MAX_DEPTH = 4
"""of groups within groups, a term counting one"""

Floats = NDArray[np.float64]
Rewards = Mapping[str, Sequence[float]]
"""by guide, in the order of the answers"""
Preferences = Mapping[str, Mapping[str, float]]
"""by preference guide: the weight of each reward for the prompt"""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Terms = Annotated[tuple["Expression", ...], Field(min_length=1, max_length=MAX_TERMS, strict=False)]

_DEFAULTS: Mapping[str, Mapping[str, float | None]] = {
    "identity": {},
    "standardise": {"samples": 8},
    "log_sigmoid": {"reference": None, "quantile": 0.85, "samples": 8},
    "quantile": {"samples": 8, "tilt": None},
    "clip": {"low": None, "high": None},
}
"""what each transform takes"""
_NO_PREFERENCES: Final[Preferences] = MappingProxyType({})
_GROUPS = ("sum", "mean", "min", "ensemble")


class Expression(BaseModel):
    """One number for each answer, out of the rewards that its guides give; parsed from a name or an object."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    guide: JudgeName | None = Field(None, description="reward guide of this term")
    sum: Terms | None = Field(None, description="terms to add")
    mean: Terms | None = Field(None, description="terms to average")
    min: Terms | None = Field(None, description="terms of which the lowest counts")
    ensemble: Terms | None = Field(None, description="judges of one thing: mean - pessimism * variance over them")
    weights: WeigherName | None = Field(
        None, description="sum: preference guide that weighs the terms by the prompt, on top of their own weights"
    )
    weight: Weight = Field(1.0, description="factor of the whole term or group")
    transform: Literal["identity", "standardise", "log_sigmoid", "quantile", "clip"] = Field(
        "identity", description="what becomes of the guide's reward before it is weighed"
    )
    reference: Finite | None = Field(None, description="log_sigmoid: reward of an answer as likely good as not")
    quantile: Share | None = Field(None, description="log_sigmoid: the reference is this quantile of base answers")
    base_answers: int | None = Field(
        None, alias="samples", ge=0, le=64, description="base answers that rewards are compared with"
    )
    tilt: Annotated[float, Field(ge=-100.0, le=100.0)] | None = Field(
        None, description="quantile: sign(tilt) * exp(tilt * quantile) instead"
    )
    low: Finite | None = Field(None, description="clip: lowest value")
    high: Finite | None = Field(None, description="clip: highest value")
    pessimism: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = Field(
        None, description="ensemble: what one unit of variance costs"
    )

    @classmethod
    def of(cls, guide: str) -> Self:
        """The reward of one guide, as it is."""
        return cls(guide=guide)

    def scaled(self, factor: float) -> Self:
        """The expression times a factor."""
        return self.model_copy(update={"weight": factor * self.weight})

    @property
    def guides(self) -> tuple[str, ...]:
        """Names of the guides, each once, in order of appearance."""
        return tuple(dict.fromkeys(name for name, _ in self._leaves()))

    @property
    def samples(self) -> int:
        """Answers of the base to the prompt that the transforms need for comparison."""
        return max(term.base_answers or 0 for _, term in self._leaves())

    @property
    def preferences(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Names of the preference guides, each with the rewards that it weighs; once for each sum."""
        own = () if self.weights is None else ((self.weights, self.guides),)
        return own + tuple(each for term in self._members() for each in term.preferences)

    def values(self, raw: Rewards, calibration: Rewards, preferences: Preferences = _NO_PREFERENCES) -> list[float]:
        """One value for each answer; NaN where a guide of the expression gave NaN.

        `calibration` holds, where `samples` is not 0, each guide's rewards of base answers; `preferences` what the
        preference guides say of the prompt. Raises GuideError if all of the answers that a transform needs are NaN.
        """
        with np.errstate(invalid="ignore"):  # inf - inf: such an answer loses like any other NaN
            return list(map(float, self._value(raw, calibration, preferences)))

    def terms(self, raw: Rewards, calibration: Rewards) -> dict[str, list[float]]:
        """Transformed rewards by guide, before weights; of a guide that appears twice, those of its first term."""
        first: dict[str, Expression] = {}
        for name, term in self._leaves():
            first.setdefault(name, term)
        with np.errstate(invalid="ignore"):
            return {name: list(map(float, term._transformed(name, raw, calibration))) for name, term in first.items()}

    def check(self, rewards: Collection[str], *, path: str) -> None:
        """Raise InvalidRequest unless reward guides of these names are configured; `path` holds the expression."""
        for name in self.guides:
            require_reward(name, rewards, path=path)

    def _leaves(self) -> "list[tuple[str, Expression]]":
        if self.guide is not None:
            return [(self.guide, self)]
        return [leaf for term in self._members() for leaf in term._leaves()]

    def _members(self) -> "tuple[Expression, ...]":
        return self.sum or self.mean or self.min or self.ensemble or ()

    def _depth(self) -> int:
        return 1 + max((term._depth() for term in self._members()), default=0)

    def _settings(self) -> dict[str, Any]:
        """The parameters that are set, under their names in a request."""
        every = {name for takes in _DEFAULTS.values() for name in takes} | {"pessimism"}
        fields = ((field.alias or name, getattr(self, name)) for name, field in type(self).model_fields.items())
        return {name: value for name, value in fields if name in every and value is not None}

    def _value(self, raw: Rewards, calibration: Rewards, preferences: Preferences) -> Floats:
        if self.guide is not None:
            return self.weight * self._transformed(self.guide, raw, calibration)
        values: Floats = np.stack(
            [term._value(raw, calibration, preferences) for term in self._members()]
        )  # (terms, answers)
        combined: Floats
        if self.weights is not None:
            weights = preferences[self.weights]
            combined = np.array([weights[name] for name in self.guides]) @ values
        elif self.sum is not None:
            combined = values.sum(0)
        elif self.min is not None:
            combined = values.min(0)
        else:
            combined = values.mean(0) - (self.pessimism or 0.0) * values.var(0)
        return self.weight * combined

    def _transformed(self, name: str, raw: Rewards, calibration: Rewards) -> Floats:
        r = np.asarray(raw[name], dtype=np.float64)
        base = np.asarray(calibration[name][: self.base_answers] if self.base_answers else (), dtype=np.float64)
        base = base[~np.isnan(base)]
        if self.base_answers and not base.size:
            raise GuideError(name, "gave NaN for every base answer that rewards are to be compared with")
        match self.transform:
            case "identity":
                return r
            case "standardise":
                return _standardised(r, base if self.base_answers else r[~np.isnan(r)])
            case "log_sigmoid":
                return -np.logaddexp(0.0, self._reference(base) - r)
            case "quantile":
                return _tilted(_rank(r, base), self.tilt)
            case "clip":
                return np.clip(r, self.low, self.high)

    def _reference(self, base: Floats) -> float:
        if self.reference is not None:
            return self.reference
        assert self.quantile is not None, "a default fills it in"
        return float(np.quantile(base, self.quantile))

    @model_validator(mode="before")
    @classmethod
    def _filled_in(cls, given: Any) -> Any:
        """Turn a name into a term, and give a transform the defaults of its parameters."""
        if isinstance(given, cls):
            return given
        if isinstance(given, str):
            return {"guide": given}
        if not isinstance(given, dict):
            raise ValueError('a reward is the name of a guide or an object, as {"sum": ["helpful", "harmless"]}')
        present = {name: value for name, value in given.items() if value is not None}
        transform = present.get("transform")
        if not isinstance(transform, str) or "reference" in present:
            return present
        return {**_DEFAULTS.get(transform, {}), **present}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        kinds = [kind for kind in ("guide", *_GROUPS) if getattr(self, kind) is not None]
        if len(kinds) != 1:
            has = " and ".join(kinds) or "none of them"
            raise ValueError(f"a reward is one of guide, {', '.join(_GROUPS)}, and this one has {has}")
        (kind,) = kinds
        if kind != "guide" and self.transform != "identity":
            raise ValueError(f"a {kind} has no transform: give one to its terms")
        if self.weights is not None and (
            self.sum is None or any(term.guide is None for term in self.sum) or len(self.guides) < len(self.sum)
        ):
            raise ValueError("weights are for the terms of a sum, each of which is another guide")
        takes = ("pessimism",) if kind == "ensemble" else tuple(_DEFAULTS[self.transform])
        for name in self._settings():
            if name not in takes:
                what = f"transform {self.transform!r}" if kind == "guide" else kind
                raise ValueError(f"{name!r} is no parameter of {what}, which takes {', '.join(takes) or 'none'}")
        self._check_parameters()
        if len(self._leaves()) > MAX_TERMS or self._depth() > MAX_DEPTH:
            raise ValueError(f"a reward has {MAX_TERMS} terms and {MAX_DEPTH} levels at most")
        return self

    def _check_parameters(self) -> None:
        if self.transform == "log_sigmoid" and self.reference is not None and len(self._settings()) > 1:
            raise ValueError("the reference is given: leave quantile and samples out")
        if self.transform in ("log_sigmoid", "quantile") and self.reference is None and not self.base_answers:
            raise ValueError(f"{self.transform} compares with base answers: make samples 1 or more")
        if self.tilt == 0.0:
            raise ValueError("tilt 0 makes all answers alike: leave it out for the quantile itself")
        if self.transform == "clip":
            if self.low is None and self.high is None:
                raise ValueError("clip needs low, high or both")
            if self.low is not None and self.high is not None and self.low > self.high:
                raise ValueError(f"clip: low ({self.low:g}) is above high ({self.high:g})")

    @model_serializer(mode="plain")
    def _compact(self) -> str | dict[str, Any]:
        """A name, or the object that parses to an equal expression."""
        told: dict[str, Any] = {} if self.guide is None else {"guide": self.guide}
        for group in _GROUPS:
            if (terms := getattr(self, group)) is not None:
                told[group] = [term.model_dump() for term in terms]
        if self.weights is not None:
            told["weights"] = self.weights
        if self.weight != 1.0:
            told["weight"] = self.weight
        if self.transform != "identity":
            told["transform"] = self.transform
        told |= self._settings()
        return self.guide if self.guide is not None and len(told) == 1 else told

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """A string or an object, wherever an expression may stand."""
        reference = handler(core)
        definition = handler.resolve_ref_schema(reference)
        name = {**TypeAdapter(JudgeName).json_schema(), "description": "name of a reward guide"}
        as_object = dict(definition)
        definition.clear()
        definition["anyOf"] = [name, as_object]
        return reference


def _standardised(r: Floats, among: Floats) -> Floats:
    """(r - mean) / sd, population sd; 0 if all of `among` are equal, which rounding would hide from sd."""
    among = among[np.isfinite(among)]
    if not among.size or among.min() == among.max():
        return np.where(np.isnan(r), r, 0.0)
    return (r - float(among.mean())) / float(among.std())


def _rank(r: Floats, base: Floats) -> Floats:
    """Share of `base` below each r, ties counting half; NaN stays."""
    beaten = (base < r[:, None]) + 0.5 * (base == r[:, None])  # (answers, base answers)
    return np.where(np.isnan(r), r, beaten.sum(1) / len(base))


def _tilted(q: Floats, tilt: float | None) -> Floats:
    return q if tilt is None else np.sign(tilt) * np.exp(tilt * q)
