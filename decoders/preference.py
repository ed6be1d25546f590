"""What the person who asks would like: `decoding.preference`, which fills in what the parts of a request leave out.

In a request it is one of

    {"weights": {"positivity": 0.75, "brevity": 0.25}}    attributes of the server, each from -1 (its opposite) to 1
    {"text": "I am new to this and like short answers."}
    {"infer": "pro"}                                       a preference guide weighs its rewards by the prompt
    {"profile": "anna"}                                    weights, text or infer, stored under an id

and every strategy or part that can follow it takes from it what it does not name itself: `reward` of a search is the
weighted sum of what measures the attributes, and so on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Final, Self, TypeGuard

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from trimtab.decoders.attributes import MAX_ATTRIBUTES, Attribute, Level
from trimtab.decoders.invalid import check_keys, invalid, meant
from trimtab.decoders.library.errors import NotFound
from trimtab.decoders.params import WeigherName
from trimtab.decoders.rewards import Expression
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import Guide, PreferenceGuide

if TYPE_CHECKING:  # it is filled in by what is defined here
    from trimtab.decoders.params import Params

PATH: Final = "decoding.preference"
MAX_TEXT: Final = 4000
"""characters of a preference in words"""
Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]


@dataclass(frozen=True, slots=True)
class Personal:
    """What preferences of one request may refer to."""

    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    guides: Mapping[str, Guide] = field(default_factory=dict)
    profile: Callable[[str], Mapping[str, Any]] | None = None
    """the preference stored under an id for the caller; raises NotFound"""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A preference as parts read it: weights of known attributes, or words."""

    weights: Mapping[str, float] = field(default_factory=dict)
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    """those that are weighed"""
    text: str | None = None

    @property
    def measures(self) -> dict[str, Expression]:
        """What measures each attribute whose weight is not 0; InvalidRequest where there is none, or nothing does."""
        found: dict[str, Expression] = {}
        if not self._counting:
            raise InvalidRequest(
                "the preference weighs nothing that answers can be scored by: give attributes weights other than 0, or "
                "name a `reward` in the strategy",
                param=PATH,
            )
        for name in self._counting:
            reward = self.attributes[name].reward
            if reward is None:
                raise InvalidRequest(
                    f"attribute {name!r} has no reward, so that no search can go by it: name a `reward` in the "
                    "strategy, leave the attribute out, or configure a reward for it",
                    param=f"{PATH}.weights.{name}",
                )
            found[name] = reward
        return found

    @property
    def reward(self) -> Expression:
        """The sum of the attributes' rewards by their weights; InvalidRequest as of `measures`."""
        return Expression(sum=tuple(reward.scaled(self.weights[name]) for name, reward in self.measures.items()))

    @property
    def arms(self) -> dict[str, float]:
        """Weights of the language models that write with more of an attribute; those without one are left out."""
        arms: dict[str, float] = {}
        for name, weight in self.weights.items():
            arm = self.attributes[name].arm
            if arm is not None:
                arms[arm] = arms.get(arm, 0.0) + weight
        return arms

    @property
    def _counting(self) -> list[str]:
        return [name for name, weight in self.weights.items() if weight]


@dataclass(frozen=True, slots=True)
class Inferred:
    """A preference that a guide tells from the prompt, while the request runs."""

    guide: str
    names: Mapping[str, str]
    """the attribute behind each of the guide's rewards"""
    decoding: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """of the request, as it came"""
    personal: Personal = field(default_factory=Personal, compare=False)

    @property
    def even(self) -> Resolved:
        """Weights that are all alike, which stand for those that are not known yet."""
        return self._resolved(dict.fromkeys(self.names.values(), 1.0 / len(self.names)))

    def weights(self, told: Mapping[str, float]) -> dict[str, float]:
        """Weights of attributes, from those that the guide gives its rewards."""
        return {self.names[reward]: weight for reward, weight in told.items()}

    def _resolved(self, weights: dict[str, float]) -> Resolved:
        return Resolved(weights, {name: self.personal.attributes[name] for name in weights})


class Filling:
    """Fills in the parameters of one request from its preference."""

    def __init__(self, preference: Resolved | None) -> None:
        self._preference = preference
        self.filled: dict[str, tuple[str, ...]] = {}
        """keys that were filled in, by the path of their part"""

    def __call__(self, params: "type[Params]", given: dict[str, Any], path: str) -> dict[str, Any]:
        """The parameters of a strategy, or of the part at `path`, with what the preference adds."""
        if self._preference is None:
            return given
        full = params.preferred(given, self._preference)
        if added := tuple(key for key in full if key not in given or full[key] is not given[key]):
            self.filled[path] = added
        return full

    def check(self) -> None:
        """Raise InvalidRequest if there is a preference and nothing has used it."""
        if self._preference is not None and not self.filled:
            raise InvalidRequest(
                "nothing here goes by the preference: add the prompt part persona, steer by genarm or panacea, or "
                "search with best_of_n or rps, and leave out what the preference says",
                param=PATH,
            )


class Preference(BaseModel):
    """A person's preference: exactly one of its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    weights: dict[str, Level] | None = Field(
        None, min_length=1, max_length=MAX_ATTRIBUTES, description="weight of each attribute, -1 (its opposite) to 1"
    )
    text: Text | None = Field(None, description="in words")
    infer: WeigherName | None = Field(None, description="preference guide that weighs its rewards by the prompt")
    profile: str | None = Field(None, description="id of a stored preference")

    @classmethod
    def parse(cls, given: object, *, path: str = PATH) -> Self:
        """From its form in a request; InvalidRequest that names the key under `path`."""
        if not isinstance(given, Mapping):
            raise InvalidRequest('a preference is an object, as {"weights": {"brevity": 0.5}}', param=path)
        check_keys(given, cls.model_fields, path, "key", "a preference is one of")
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise invalid(error, path) from None

    def check(self, personal: Personal, *, path: str = PATH) -> None:
        """Raise InvalidRequest unless what it names is known: of one that is to be stored, too."""
        for name in self.weights or {}:
            known_attribute(personal.attributes, name, f"{path}.weights.{name}")
        if self.infer is not None:
            self._guide(personal, path)

    def stored(self, personal: Personal) -> "Preference":
        """What stands behind a profile; itself if it is none."""
        if self.profile is None:
            return self
        if personal.profile is None:
            raise InvalidRequest("no profiles are kept here: give weights, text or infer", param=f"{PATH}.profile")
        try:
            stored = personal.profile(self.profile)
        except NotFound as error:
            raise InvalidRequest(str(error), param=f"{PATH}.profile") from None
        behind = Preference.parse(stored, path=f"{PATH}.profile")
        if behind.profile is not None:
            raise InvalidRequest("the profile names another: store weights, text or infer", param=f"{PATH}.profile")
        return behind

    def resolve(self, personal: Personal) -> Resolved | Inferred:
        """By the server's attributes and guides; InvalidRequest that names what is not known."""
        own = self.stored(personal)
        own.check(personal)
        if own.infer is not None:
            rewards = own._guide(personal, PATH).head.rewards
            return Inferred(own.infer, _attributes_of(own.infer, rewards, personal), personal=personal)
        weights = own.weights or {}
        return Resolved(weights, {name: personal.attributes[name] for name in weights}, own.text)

    def _guide(self, personal: Personal, path: str) -> PreferenceGuide:
        guide = personal.guides.get(self.infer or "")
        if not isinstance(guide, PreferenceGuide):
            fitting = [name for name, each in personal.guides.items() if isinstance(each, PreferenceGuide)]
            known = ", ".join(sorted(fitting)) or "none (add one under `guides` in the configuration)"
            raise InvalidRequest(
                f"{self.infer!r} is no preference guide{meant(self.infer or '', fitting)}; configured: {known}",
                param=f"{path}.infer",
            )
        return guide

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            has = " and ".join(given) or "none of them"
            raise ValueError(f"a preference is one of weights, text, infer and profile, and this one has {has}")
        return self


def known_attribute(attributes: Mapping[str, Attribute], name: str, path: str) -> Attribute:
    """The attribute of this name; InvalidRequest, with the nearest name, if there is none."""
    if name not in attributes:
        valid = ", ".join(attributes) or "none (add some under `attributes` in the configuration)"
        hint = meant(name, attributes) or ";"
        raise InvalidRequest(f"no attribute is named {name!r}{hint} configured: {valid}", param=path)
    return attributes[name]


def is_shared(given: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value of the key `preference` is this object, where a strategy has a parameter of the same name.

    The parameters of strategies are texts, or objects of numbers.
    """
    if not isinstance(given, Mapping) or not given or not given.keys() <= Preference.model_fields.keys():
        return False
    return any(not isinstance(value, int | float) for value in given.values())


def _attributes_of(guide: str, rewards: tuple[str, ...], personal: Personal) -> Mapping[str, str]:
    """The attribute that each reward measures: its namesake, or the first; InvalidRequest where there is none."""
    found: dict[str, str] = {}
    for reward in rewards:
        fitting = [name for name, each in personal.attributes.items() if each.reward and each.reward.guide == reward]
        if not fitting:
            raise InvalidRequest(
                f"preference guide {guide!r} weighs reward {reward!r}, which is the reward of no attribute: add one "
                "under `attributes` in the configuration",
                param=f"{PATH}.infer",
            )
        found[reward] = reward if reward in fitting else fitting[0]
    return MappingProxyType(found)
