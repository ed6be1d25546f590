"""Robust Preference Selection: answer under several directions near the user's, choose by the user's own
(Mao et al. 2025, arXiv 2510.20498).

A preference is a direction v over attributes, each with a reward r_i. k directions within an angle of v are drawn, the
system message states each, and of the k answers the one with the highest v . r is returned.
"""

from collections.abc import Generator
from collections.abc import Sequence as Many
from math import isnan, radians
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator

from trimtab.decoders.params import JudgeName, Weight
from trimtab.decoders.preference import PATH, Resolved
from trimtab.decoders.prompt.system import with_system
from trimtab.decoders.registry import strategy
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search, SearchContext
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.program import Answer, Op
from trimtab.engine.vocabulary import Message

Floats = NDArray[np.float64]
_PROPOSALS = 256
"""points drawn at a time, of which some are dropped"""


@strategy("rps", paper="Mao et al. 2025, arXiv 2510.20498", cost="k answers, k scores an attribute", needs=("reward",))
class RobustPreferenceSelection(Search):
    """Answer under preferences near the user's, return the best by the user's own."""

    rows_field: ClassVar[str] = "directions"
    preferable: ClassVar[frozenset[str]] = frozenset({"preference"})
    preference: dict[JudgeName, Weight] = Field(
        min_length=2,
        max_length=8,
        description="weight of each attribute, by the name of the reward that measures it; only their ratios count",
    )
    rewards: dict[str, Expression] | None = Field(
        None, description="what measures attributes, where it is not the reward of the same name"
    )
    directions: int = Field(5, ge=1, le=32, description="directions to answer under, one answer each")
    angle: float = Field(30.0, ge=0.0, le=90.0, description="degrees that a direction may lie off the user's")

    @field_validator("preference")
    @classmethod
    def _has_a_direction(cls, preference: dict[str, float]) -> dict[str, float]:
        if not any(preference.values()):
            raise ValueError("a preference of zeros has no direction: give an attribute a weight")
        return preference

    @model_validator(mode="after")
    def _measures_what_counts(self) -> Self:
        for name in self.rewards or {}:
            if name not in self.preference:
                raise ValueError(f"rewards: {name!r} is no attribute of the preference: leave it out")
        return self

    @classmethod
    def preferred(cls, given: dict[str, Any], preference: Resolved) -> dict[str, Any]:
        """The direction of the preference's weights, with what measures its attributes.

        Attributes of weight 0 are part of it, where they have a reward: directions near it weigh them.
        """
        if given.get("preference") is not None:
            return given
        counting = preference.measures
        measures = {name: each.reward for name, each in preference.attributes.items() if each.reward is not None}
        if len(measures) < 2:
            raise InvalidRequest(
                f"rps needs two attributes with rewards, and of this preference only {next(iter(counting))!r} has "
                "one: weigh another, which may have weight 0, or search with best_of_n",
                param=PATH,
            )
        others = {name: reward for name, reward in measures.items() if reward != Expression.of(name)}
        weights = {name: preference.weights[name] for name in measures}
        return {**given, "preference": weights, **({"rewards": others} if others else {})}

    def rows(self, choices: int) -> int:
        return self.directions

    def most(self) -> int:
        return self.directions

    def expressions(self) -> dict[str, Expression]:
        own = self.rewards or {}
        terms = tuple(
            own.get(name, Expression.of(name)).scaled(float(weight))
            for name, weight in zip(self.preference, self._direction, strict=True)
        )
        return {"preference": Expression(sum=terms)}

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        directions = nearby(self._direction, radians(self.angle), self.directions, context.random)
        answers = [context.start(self._conversation(context.messages, each)) for each in directions]
        yield from context.finish(answers, self.expressions()["preference"])
        return context.choose(
            answers,
            attributes=list(self.preference),
            directions=directions.tolist(),
            rewards=[None if each.reward is None or isnan(each.reward) else each.reward for each in answers],
        )

    @property
    def _direction(self) -> Floats:
        """The preference as a unit vector, in the order of its attributes."""
        weights = np.array(list(self.preference.values()), dtype=np.float64)
        weights /= np.abs(weights).max()  # squares of tiny weights would be 0
        return np.asarray(weights / np.linalg.norm(weights))

    def _conversation(self, messages: Many[Message], direction: Floats) -> tuple[Message, ...]:
        """The conversation whose system message states the direction, after what it says already."""
        stated = ", ".join(
            f"{name} {round(100 * part)} %" for name, part in zip(self.preference, direction, strict=True)
        )
        return with_system(messages, f"Preferences for the answer: {stated}.")


def nearby(direction: Floats, angle: float, count: int, random: np.random.Generator) -> Floats:
    """Unit vectors (count, d) uniform on the cap within `angle` radians of a unit vector (d,), d being 2 or more.

    A point of the cap lies at an angle t of density sin(t)^(d-2) from the axis: t is proposed with density t^(d-2),
    whose inverse is known, and kept with (sin(t) / t)^(d-2). Where no entry of `direction` is negative, points with a
    negative entry are drawn again; of a cap up to 90 degrees at least one point in 2^(d-1) stays.
    """
    dimension = len(direction)
    found = np.empty((0, dimension))
    while len(found) < count:
        tilt = angle * random.random(_PROPOSALS) ** (1.0 / (dimension - 1))
        kept = random.random(_PROPOSALS) < np.sinc(tilt / np.pi) ** (dimension - 2)
        aside = random.normal(size=(_PROPOSALS, dimension))
        aside -= np.outer(aside @ direction, direction)
        aside /= np.linalg.norm(aside, axis=1, keepdims=True)
        points = np.cos(tilt)[:, None] * direction + np.sin(tilt)[:, None] * aside
        if (direction >= 0.0).all():
            kept &= (points >= 0.0).all(axis=1)
        found = np.concatenate([found, points[kept]])
    return found[:count]
