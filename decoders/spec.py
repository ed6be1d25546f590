"""The `decoding` object of a request: validated, resolved, and turned into a program and parts that steer it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, get_args

from pydantic import BaseModel, ValidationError

from trimtab.decoders.invalid import check_keys, invalid, meant
from trimtab.decoders.params import Params
from trimtab.decoders.preference import Filling, Inferred, Personal, Preference, is_shared
from trimtab.decoders.prompt.base import PromptPart
from trimtab.decoders.prompt.framing import Framing
from trimtab.decoders.registry import Strategy, strategies
from trimtab.decoders.search.base import Search
from trimtab.decoders.search.driver import SearchProgram
from trimtab.decoders.search.sample import Sample
from trimtab.decoders.select import Rule, Watch, parse_rule
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.budget import Budget
from trimtab.engine.errors import InvalidRequest

MAX_PARTS = 8
Trace = Literal["tokens", "search", "both"]
"""what `trace` tells of: what shaped each token, what the search wrote on the way, or both"""
RESERVED = ("strategy", "preference", "prompt", "steer", "trace", "select", "budget")
"""keys of `decoding` that every strategy shares"""
_PLACES = {
    "search": "works on whole answers: name it as `strategy`, and in lists what goes with it",
    "steer": "shapes the next token: put it into `steer`, or name it as `strategy`",
    "prompt": "changes what the models read: put it into `prompt`, or name it as `strategy`",
}
"""what is said of a strategy in the list of another kind"""


@dataclass(frozen=True, slots=True)
class DecodingSpec:
    """A strategy and the parts listed beside it, with all their parameters filled in."""

    strategy: str
    params: Params
    """a program, or a part that goes with plain sampling"""
    prompts: tuple[tuple[str, PromptPart], ...] = ()
    """method and parameters, in the order of `prompt`, in which they act"""
    listed: tuple[tuple[str, Steer], ...] = ()
    """method and parameters, in the order of `steer`; the order changes nothing"""
    trace: Trace | None = None
    """what is told of the way to the answer"""
    select: Rule | None = None
    """how the choices are found among a search's answers; None: as the strategy has it"""
    budget: Budget = field(default_factory=Budget)
    laid_prompts: tuple[tuple[str, PromptPart], ...] = ()
    """prompt parts that the operator's floor lays under those of the request; they act first"""
    laid: tuple[tuple[str, Steer], ...] = ()
    """parts that steer, likewise"""
    watch: Watch | None = None
    """what the floor demands of the search's end"""
    inferred: Inferred | None = None
    """a preference that a guide tells while the request runs; the parts are filled in by even weights until then"""
    filled: Mapping[str, tuple[str, ...]] = field(default_factory=dict, compare=False)
    """parameters that the preference has filled in, by the path of the part"""
    asked: "DecodingSpec | None" = None
    """what the request said, where a floor has changed it"""

    @classmethod
    def parse(cls, decoding: Mapping[str, Any] | None, personal: Personal | None = None) -> "DecodingSpec":
        """Validate a `decoding` object as it came over the wire; absent means plain sampling.

        `personal` is what its preference may refer to. Raises InvalidRequest that names the key and the nearest valid
        one.
        """
        given = dict(decoding or {})
        known = strategies()
        chosen = _known(given.pop("strategy", "sample"), known, "decoding.strategy")
        prompts = _objects(given.pop("prompt", []), "prompt", "urial")
        parts = _objects(given.pop("steer", []), "steer", "genarm")
        trace = given.pop("trace", None)
        select = given.pop("select", None)
        budget = parse_budget(given.pop("budget", {}))
        own = "preference" in chosen.params.model_fields and not is_shared(given.get("preference"))
        preference = None
        if not own and "preference" in given:
            preference = Preference.parse(given.pop("preference")).resolve(personal or Personal())
        fill = Filling(preference.even if isinstance(preference, Inferred) else preference)
        params = _validate(chosen, fill(chosen.params, given, "decoding"), "decoding", RESERVED)
        _check_trace(trace)
        framing = [_part(part, known, f"decoding.prompt.{i}", "prompt", fill) for i, part in enumerate(prompts)]
        listed = [_part(part, known, f"decoding.steer.{i}", "steer", fill) for i, part in enumerate(parts)]
        fill.check()
        rule = None if select is None else parse_rule(select)
        spec = cls(
            chosen.name,
            params,
            tuple((name, cast(PromptPart, part)) for name, part in framing),
            tuple((name, cast(Steer, part)) for name, part in listed),
            trace,
            rule,
            budget,
            filled=fill.filled,
            inferred=replace(preference, decoding=decoding or {}) if isinstance(preference, Inferred) else None,
        )
        spec._check_combination()
        for name, count in (("prompt", len(spec.prompt_parts)), ("steer", len(spec.parts))):
            if count > MAX_PARTS:
                raise InvalidRequest(
                    f"the request has {count} parts under {name} and may have {MAX_PARTS}", param=f"decoding.{name}"
                )
        return spec

    @property
    def program(self) -> SearchProgram:
        """What the engine runs."""
        preparing = tuple((i, part) for i, (_, _, part) in enumerate(self._prompting) if part.prepares)
        rule = self.select or self.search.rule()
        return SearchProgram(self.search, rule, watch=self.watch, preparing=preparing, laid=len(self.laid_prompts))

    @property
    def search(self) -> Search:
        """The search; plain sampling where the strategy is one that steers."""
        return self.params if isinstance(self.params, Search) else Sample()

    @property
    def measured(self) -> bool:
        """Whether something weighs answers by their likelihood or their distance from the base."""
        rule = self.select or self.search.rule()
        return self.search.measures or rule.needs_logprob or self.budget.max_kl is not None

    @property
    def traces_tokens(self) -> bool:
        """Whether the request asks what shaped each token."""
        return self.trace in ("tokens", "both")

    @property
    def traces_search(self) -> bool:
        """Whether the request asks what the search wrote on the way."""
        return self.trace in ("search", "both")

    @property
    def parts(self) -> tuple[Steer, ...]:
        """What steers the next token, that of `strategy` first."""
        return tuple(part for _, part in self._located)

    @property
    def prompt_parts(self) -> tuple[PromptPart, ...]:
        """What changes what the models read: a floor's, that of `strategy`, and those listed."""
        return tuple(part for _, _, part in self._prompting)

    @property
    def prompting(self) -> list[tuple[str, PromptPart]]:
        """The same, each with its path."""
        return [(path, part) for path, _, part in self._prompting]

    @property
    def prepares(self) -> bool:
        """Whether texts are written before the search, which then begins from another prompt."""
        return any(part.prepares for part in self.prompt_parts)

    @property
    def temperature(self) -> float | None:
        """Temperature of the strategy, or the first part, whose paper has one, for requests that set none."""
        named = (self.params, *(part for _, part in (*self.listed, *self.laid)))
        return next((each.temperature for each in named if each.temperature is not None), None)

    def check(self, *, choices: int, rewards: Collection[str]) -> None:
        """Raise InvalidRequest if this server or this request cannot run the strategy."""
        self.params.check(choices=choices, rewards=rewards)

    def frame(self, framing: Framing) -> None:
        """Let every prompt part say what it puts around conversations; errors name the part's place in the request."""
        for path, method, part in self._prompting:
            framing.begin(method, path)
            part.frame(framing)

    def reframe(self, framing: Framing, before: "DecodingSpec") -> Framing:
        """A copy of the framing of `before`, where those prompt parts have spoken anew that are not as they were."""
        other = framing.copied()
        for number, ((path, _, part), (_, _, old)) in enumerate(zip(self._prompting, before._prompting, strict=True)):
            if part != old:
                other.begin_again(number, path)
                part.frame(other)
        return other

    def steer(self, draft: Draft) -> None:
        """Let every part ask `draft` for what it needs; errors name the part's place in the request."""
        located: list[tuple[str, PromptPart | Steer]] = [*self.prompting, *self._located]
        for path, part in located:
            draft.where, draft.filled = path, self.filled.get(path, ())
            part.steer(draft)
        draft.where, draft.filled = "decoding", ()
        if self.search.one_voice:
            draft.one_voice()
        self.search.call(draft)
        for name, expression in self.search.expressions().items():
            for guide, rewards in expression.preferences:
                draft.weigh(guide, rewards, field=name)
        if self.inferred is not None:
            draft.weigh(self.inferred.guide, self.inferred.names, field="preference.infer")

    def dump(self) -> dict[str, Any]:
        """As it is echoed in the response, without what a floor added; `parse` of it gives an equal spec."""
        if self.asked is not None:
            return self.asked.dump()
        told: dict[str, Any] = {"strategy": self.strategy, **self._told(self.params, "decoding")}
        if self.inferred is not None:
            told["preference"] = {"infer": self.inferred.guide}
        for key, parts in (("prompt", self.prompts), ("steer", self.listed)):
            if parts:
                told[key] = [
                    {"method": method, **self._told(part, f"decoding.{key}.{i}")}
                    for i, (method, part) in enumerate(parts)
                ]
        if self.trace is not None:
            told["trace"] = self.trace
        if self.select is not None:
            told["select"] = self.select.model_dump()
        if limits := self.budget.model_dump(exclude_none=True):
            told["budget"] = limits
        return told

    @property
    def corners(self) -> "list[DecodingSpec]":
        """What an inferred preference may become at the extremes: all weight on one reward; none if it is given."""
        names = () if self.inferred is None else tuple(self.inferred.names)
        return [self.weighed({each: float(each == name) for each in names}) for name in names]

    def weighed(self, told: Mapping[str, float]) -> "DecodingSpec":
        """What the request asks for, by the weights that the guide gives its rewards; without a floor."""
        assert self.inferred is not None
        weights = {"weights": self.inferred.weights(told)}
        return DecodingSpec.parse({**self.inferred.decoding, "preference": weights}, self.inferred.personal)

    def _told(self, part: Params, path: str) -> dict[str, Any]:
        """The parameters of a part, without those that are yet to be told by a guide."""
        unknown = () if self.inferred is None else self.filled.get(path, ())
        return {key: value for key, value in part.model_dump().items() if key not in unknown}

    def _check_combination(self) -> None:
        """Raise InvalidRequest for parts that each are right and cannot stand together."""
        if self.select is not None and self.search.most() is None and not self.select.may_refuse:
            raise InvalidRequest(
                f"{self.strategy!r} makes one answer for each choice, so that only rule 'abstain' has something to "
                "decide: leave `select` out, or search with best_of_n",
                param="decoding.select",
            )
        if self.select is not None and self.select.needs_reward and not self.search.expressions():
            raise InvalidRequest(
                f"this rule goes by rewards: name a `reward` for strategy {self.strategy!r}",
                param="decoding.select",
            )
        if self.budget.reward_at_least is not None and not self.search.expressions():
            raise InvalidRequest(
                f"reward_at_least needs a reward and strategy {self.strategy!r} has none: leave it out",
                param="decoding.budget.reward_at_least",
            )

    @property
    def _prompting(self) -> list[tuple[str, str, PromptPart]]:
        """The prompt parts, each with its path and its name."""
        placed = [(f"floor.prompt.{i}", method, part) for i, (method, part) in enumerate(self.laid_prompts)]
        if isinstance(self.params, PromptPart):
            placed.append(("decoding", self.strategy, self.params))
        return placed + [(f"decoding.prompt.{i}", method, part) for i, (method, part) in enumerate(self.prompts)]

    @property
    def _located(self) -> list[tuple[str, Steer]]:
        """The parts, each with its path."""
        first: list[tuple[str, Steer]] = [("decoding", self.params)] if isinstance(self.params, Steer) else []
        first += [(f"decoding.steer.{i}", part) for i, (_, part) in enumerate(self.listed)]
        return first + [(f"floor.steer.{i}", part) for i, (_, part) in enumerate(self.laid)]


def parse_budget(given: object) -> Budget:
    """Validate a `budget` as it came over the wire; InvalidRequest that names the key."""
    if not isinstance(given, Mapping):
        raise InvalidRequest('budget is an object, as {"deadline_ms": 4000}', param="decoding.budget")
    check_keys(given, Budget.model_fields, "decoding.budget", "budget", "budgets are")
    try:
        return Budget.model_validate(given)
    except ValidationError as error:
        raise _invalid(error, "decoding.budget", Budget) from None


def _check_trace(given: object) -> None:
    """Raise InvalidRequest unless there is such a trace."""
    known = get_args(Trace)
    if given is not None and given not in known:
        listed = ", ".join(map(repr, known))
        raise InvalidRequest(
            f"trace is {given!r}{meant(str(given), known)}; make it one of {listed}, or leave it out",
            param="decoding.trace",
        )


def _known(name: object, known: Mapping[str, Strategy], path: str) -> Strategy:
    if name == "auto":
        raise InvalidRequest(
            "strategy 'auto' is the server's, alone and not as a part: it chooses one of the settings of a profile "
            "(docs/auto.md); name a strategy here",
            param=path,
        )
    if not isinstance(name, str) or name not in known:
        raise InvalidRequest(
            f"unknown strategy {name!r}{meant(str(name), known)}; GET /v1/strategies lists them", param=path
        )
    return known[name]


def _objects(given: object, key: str, example: str) -> list[Mapping[str, Any]]:
    if not isinstance(given, list) or not all(isinstance(part, Mapping) for part in given):
        raise InvalidRequest(f'{key} is a list of parts, as [{{"method": "{example}", ...}}]', param=f"decoding.{key}")
    return given


def _part(
    part: Mapping[str, Any], known: Mapping[str, Strategy], path: str, kind: str, fill: Filling
) -> tuple[str, Params]:
    given = dict(part)
    if "method" not in given:
        raise InvalidRequest(f"{path} names no strategy: give it a method", param=f"{path}.method")
    chosen = _known(given.pop("method"), known, f"{path}.method")
    if chosen.kind != kind:
        raise InvalidRequest(f"{chosen.name!r} {_PLACES[chosen.kind]}", param=f"{path}.method")
    return chosen.name, _validate(chosen, fill(chosen.params, given, path), path, ("method",))


def _validate(chosen: Strategy, given: Mapping[str, Any], path: str, reserved: tuple[str, ...]) -> Params:
    """The parameters of a strategy; InvalidRequest that names the key by its path."""
    valid = [*reserved, *chosen.params.model_fields]
    for key in given:
        if key not in valid:
            raise InvalidRequest(
                f"unknown decoding key {key!r}{meant(key, valid)}; strategy {chosen.name!r} takes: " + ", ".join(valid),
                param=f"{path}.{key}",
            )
    try:
        return chosen.params.model_validate(given)
    except ValidationError as error:
        raise _invalid(error, path, chosen.params) from None


def _invalid(error: ValidationError, path: str, params: type[BaseModel]) -> InvalidRequest:
    """The first thing that is wrong, with its path."""
    first = error.errors()[0]
    if first["type"] != "extra_forbidden":
        return invalid(error, path)
    where = ".".join(map(str, (path, *first["loc"])))  # a key inside a field that is an object
    key, valid = str(first["loc"][-1]), _keys(params, str(first["loc"][0]))
    return InvalidRequest(f"{where}: unknown key{meant(key, valid)}; it takes: {', '.join(valid)}", param=where)


def _keys(params: type[BaseModel], name: str) -> list[str]:
    """What a field that is an object may hold."""
    annotation = params.model_fields[name].annotation
    kinds = [each for each in (annotation, *get_args(annotation)) if isinstance(each, type)]
    objects = [each for each in kinds if issubclass(each, BaseModel)]
    return [field.alias or name for each in objects for name, field in each.model_fields.items()]
