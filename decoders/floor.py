"""An operator's floor: decoding that is laid under every request, and that no request can take away or weaken."""

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from trimtab.decoders.invalid import VIOLATION
from trimtab.decoders.named import named, rereading, shaping, writing
from trimtab.decoders.params import require_reward
from trimtab.decoders.prompt.base import PromptPart
from trimtab.decoders.registry import strategies
from trimtab.decoders.rewards import Expression
from trimtab.decoders.search.base import Search
from trimtab.decoders.search.sample import Sample
from trimtab.decoders.search.sampled import Sampled
from trimtab.decoders.select import Argmax, Guard, Rule, Watch
from trimtab.decoders.select.abstain import Abstain
from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.base import Steer
from trimtab.decoders.steer.draft import AS_IT_IS, Draft, PromptView
from trimtab.engine.budget import Budget
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import Guide
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Message, Vocabulary

LARGEST = 1e6
"""of a constant in a request's reward: beside a much larger one the operator's loses its digits"""


class Floor(BaseModel):
    """What is applied to every request, whatever it says of decoding."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt: tuple[dict[str, Any], ...] = Field(
        (), description="parts that every request is put to the models with, as `decoding.prompt` has them"
    )
    steer: tuple[dict[str, Any], ...] = Field((), description="parts that always steer, as `decoding.steer` has them")
    request_steer: bool = Field(
        False, description="let requests steer beside `steer`, where sums of logits may outweigh it"
    )
    reward: Expression | None = Field(None, description="added to the reward of every selection")
    request_weight: float = Field(
        1.0, ge=0.0, allow_inf_nan=False, description="what the request's own reward may weigh beside `reward`"
    )
    search: dict[str, Any] | None = Field(
        None, description="a strategy and its parameters, which take the place of plain sampling"
    )
    min_candidates: int = Field(
        2, ge=1, le=256, description="with `reward`: answers among which each choice is found, at least"
    )
    guard: tuple[Guard, ...] = Field((), description="least rewards of what is returned, one or several")
    budget: Budget = Field(default_factory=Budget, description="upper bounds of the request's budget")

    def apply(
        self, asked: DecodingSpec, *, choices: int, trusted: bool = False
    ) -> tuple[DecodingSpec, tuple[str, ...]]:
        """The request's decoding on this floor, and in words what was done to it.

        `trusted` decoding is a preset's as it stands: the operator may name what the floor is made of. Raises
        InvalidRequest of code `policy_violation` for a request that would get around it.
        """
        if not trusted:
            for each in (asked, *asked.corners):
                self._refuse(each)
        spec, told = asked, []
        if self.search is not None and isinstance(spec.search, Sample):
            steer = ((spec.strategy, spec.params),) if isinstance(spec.params, Steer) else ()
            prompt = ((spec.strategy, spec.params),) if isinstance(spec.params, PromptPart) else ()
            search = self._searching(self.search)
            spec = replace(
                spec,
                strategy=search.strategy,
                params=search.params,
                prompts=(*prompt, *spec.prompts),
                listed=(*steer, *spec.listed),
            )
            told.append(f"{search.strategy} in the place of plain sampling")
        laid, prompts = _parts(self.steer), _prompts(self.prompt)
        told += [f"{method} comes before the request" for method, _ in prompts]
        told += [f"{method} steers" for method, _ in laid]
        if self.reward is not None:
            params = self._rewarded(spec, choices)
            spec = replace(spec, params=params, select=_by_reward(spec.select, params))
            told.append(f"a reward counts in the selection among {params.most()} answers")
        told += [f"{guard.reward} judges what is returned" for guard in self.guard]
        budget = spec.budget.within(self.budget)
        bounds = [f"{name} is {most}" for name, most in budget if most != getattr(spec.budget, name)]
        watch = None
        if self.guard or self.reward is not None:
            watch = Watch(self.guard, 0 if self.reward is None else self.min_candidates)
        on_floor = replace(spec, budget=budget, laid_prompts=prompts, laid=laid, watch=watch, asked=asked)
        return on_floor, (*told, *bounds)

    @property
    def guides(self) -> tuple[str, ...]:
        """Names of the guides that the floor is made of, each once; no request may name them."""
        parts = DecodingSpec("sample", Sample(), laid_prompts=_prompts(self.prompt), laid=_parts(self.steer))
        found = dict.fromkeys(named(parts))
        if self.search is not None:
            found |= dict.fromkeys(named(self._searching(self.search)))
        if self.reward is not None:
            found |= dict.fromkeys((*self.reward.guides, *(name for name, _ in self.reward.preferences)))
        return tuple(found | dict.fromkeys(guard.reward for guard in self.guard))

    def check(self, guides: Mapping[str, Guide], rewards: Collection[str], vocab_size: int) -> None:
        """Raise InvalidRequest, with the path, unless these guides can do what the floor wants of them."""
        for index, guard in enumerate(self.guard):
            require_reward(guard.reward, rewards, path=f"floor.guard.{index}.reward")
        if self.reward is not None:
            self.reward.check(rewards, path="floor.reward")
        spec, _ = self.apply(DecodingSpec("sample", Sample()), choices=1)
        spec.check(choices=1, rewards=rewards)
        draft = Draft(guides, _unlike, vocab_size)
        spec.steer(draft)
        draft.compile(SamplingParams(), seed=0, eos_ids=frozenset())

    def check_conversation(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        decoding: Mapping[str, Any] | None,
        vocabulary: Vocabulary,
    ) -> None:
        """Raise InvalidRequest if a client's text holds the string of a special token, which could open a turn.

        `decoding` may hold texts, too, which are put into conversations.
        """
        frame = [string for id_, string in vocabulary.added.items() if id_ in vocabulary.special_ids and string.strip()]
        for field, said in (("messages", messages), ("tools", tools), ("decoding", decoding)):
            for string in frame:
                if any(string in text for text in _strings(said)):
                    raise _violation(f"{string!r} frames the turns of a conversation here: leave it out", field)

    def _refuse(self, spec: DecodingSpec) -> None:
        """Raise InvalidRequest for what would take the floor's parts away or outweigh them."""
        for guide, path in named(spec).items():
            if guide in self.guides:
                raise _violation(f"guide {guide!r} belongs to the operator: name another one", path)
        if self.prompt:
            self._refuse_prompts(spec)
        if self.steer and not self.request_steer:
            steering = ["decoding.steer" if spec.listed else "decoding.strategy"] if spec.parts else shaping(spec)
            for path in steering:
                raise _violation(
                    "the operator steers every answer, and requests may not steer beside: leave these parts out", path
                )
            for path in ("decoding.strategy",) if spec.search.others_write else writing(spec):
                raise _violation(
                    "a model would write that the operator does not steer: use another strategy, or let the base write",
                    path,
                )
        if self.reward is None:
            return
        for name in ("max_kl", "reward_at_least"):
            if getattr(spec.budget, name) is not None:
                raise _violation(
                    f"{name} would end the search before the operator's reward has had a choice: leave it out",
                    f"decoding.budget.{name}",
                )
        for name, expression in spec.search.expressions().items():
            weight = _weight(expression)
            if weight > self.request_weight * (1.0 + 1e-9):
                raise _violation(
                    f"rewards of a request may weigh {self.request_weight:g} in all beside the operator's, and these "
                    f"weigh {weight:g}: lower their weights",
                    f"decoding.{name}",
                )
            if _unbounded(expression):
                raise _violation(
                    "tilt, pessimism and bounds or references beyond a million may outweigh the operator's reward: "
                    "leave them out",
                    f"decoding.{name}",
                )

    def _refuse_prompts(self, spec: DecodingSpec) -> None:
        """Raise InvalidRequest for parts that say the operator's once more, or have a model read without them."""
        mine = {method for method, _ in _prompts(self.prompt)}
        own = [("decoding.strategy", spec.strategy)]
        own += [(f"decoding.prompt.{i}", method) for i, (method, _) in enumerate(spec.prompts)]
        for path, method in own:
            if method in mine:
                raise _violation(f"the operator puts {method!r} before every request: leave this one out", path)
        for path in rereading(spec):
            raise _violation(
                "here a model reads a prompt without what the operator puts before every request: leave this out", path
            )

    def _searching(self, search: Mapping[str, Any]) -> DecodingSpec:
        """The search of the floor; the floor's reward is its own where it names none."""
        own = {} if self.reward is None else {"reward": self.reward.model_dump()}
        known = strategies().get(str(search.get("strategy")))
        takes = known is not None and "reward" in known.params.model_fields
        return DecodingSpec.parse({**own, **search} if takes else search)

    def _rewarded(self, spec: DecodingSpec, choices: int) -> Search:
        """The search with the floor's reward in everything that it judges answers by."""
        assert self.reward is not None
        search, known = spec.search, dict(spec.search)
        fields = [name for name in ("reward", "value") if name in known]
        if search.own_scores or "reward" not in fields or isinstance(known["reward"], str):
            raise _violation(
                f"strategy {spec.strategy!r} has no room for the operator's reward in its selection: use best_of_n",
                "decoding.strategy",
            )
        changed: dict[str, Any] = {
            name: _sum(known[name], self.reward, f"decoding.{name}") for name in fields if known[name] is not None
        }
        search = search.model_copy(update=changed or {"reward": self.reward})
        most = search.most()
        if most is None:
            raise _violation(
                f"strategy {spec.strategy!r} makes one answer for each choice, so that the operator's reward has "
                "nothing to choose from: use best_of_n",
                "decoding.strategy",
            )
        if most < self.min_candidates * choices:
            field = search.most_field or search.rows_field
            raise _violation(
                f"each choice has to be found among {self.min_candidates} answers at least, and this search ends with "
                f"{most} for n={choices}: raise decoding.{field}, or lower n",
                "n" if choices > 1 else f"decoding.{field}",
            )
        return search

    @field_validator("guard", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [given] if isinstance(given, dict | Guard) else given

    @field_validator("budget")
    @classmethod
    def _bounds_only(cls, budget: Budget) -> Budget:
        if budget.reward_at_least is not None:
            raise ValueError("reward_at_least is no upper bound: leave it out")
        return budget

    @model_validator(mode="after")
    def _complete(self) -> "Floor":
        if self.reward is not None and self.search is None:
            raise ValueError(
                'a reward needs a search, so that there is a selection: give one, as {"strategy": "best_of_n", "n": 4}'
            )
        try:
            _parts(self.steer)
            _prompts(self.prompt)
            if self.search is not None:
                searching = self._searching(self.search)
                alone = DecodingSpec(searching.strategy, searching.params)
                if isinstance(searching.search, Sample) or searching != alone:
                    raise ValueError("search is a strategy that searches, with its own parameters and nothing beside")
                self.apply(DecodingSpec("sample", Sample()), choices=1)
        except InvalidRequest as error:
            raise ValueError(str(error)) from None
        return self


def _strings(value: Any) -> Iterator[str]:
    """Every string in a JSON value, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield str(key)
            yield from _strings(each)
    elif isinstance(value, Iterable):
        for each in value:
            yield from _strings(each)


def _violation(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code=VIOLATION)


def _unlike(name: str, view: PromptView) -> "array[int]":
    """A prompt of one token, another one where something is left out of it."""
    return array("q", [0 if view == AS_IT_IS else 1])


def _parts(steer: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, Steer], ...]:
    return DecodingSpec.parse({"steer": [dict(each) for each in steer]}).listed


def _prompts(prompt: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, PromptPart], ...]:
    return DecodingSpec.parse({"prompt": [dict(each) for each in prompt]}).prompts


def _by_reward(select: Rule | None, search: Search) -> Rule | None:
    """The request's rule, if the highest reward decides by it; that rule for searches that sample."""
    rule = select or search.rule()
    if select is None and isinstance(rule, Sampled):
        return Argmax()
    if type(rule.then if isinstance(rule, Abstain) else rule) is not Argmax:
        raise _violation(
            "the highest reward is to decide, the operator's included: set select to argmax",
            "decoding.strategy" if select is None else "decoding.select",
        )
    return select


def _sum(own: Expression, added: Expression, path: str) -> Expression:
    """Both rewards; the terms of a plain sum stay beside each other."""
    if own == added:
        return own
    plain = own.sum is not None and own.weights is None and own.weight == 1.0
    terms = own.sum if plain and own.sum is not None else (own,)
    try:
        return Expression(sum=(*terms, added))
    except ValidationError:
        raise InvalidRequest(
            "the operator's reward does not fit beside these terms: leave room for it, with fewer of them or flatter",
            param=path,
        ) from None


def _members(reward: Expression) -> tuple[Expression, ...]:
    return reward.sum or reward.mean or reward.min or reward.ensemble or ()


def _weight(reward: Expression) -> float:
    """What an expression may add at most for each unit of its transformed rewards."""
    inner = [_weight(each) for each in _members(reward)]
    if reward.sum is not None:
        total = sum(inner)
    elif reward.guide is not None:
        total = 1.0
    else:  # no mean and no minimum is larger
        total = max(inner)
    return abs(reward.weight) * total


def _unbounded(reward: Expression) -> bool:
    """Whether something beside weights makes the reward large: an exponential, a square, or a constant."""
    constants = (each for each in (reward.low, reward.high, reward.reference) if each is not None)
    large = any(abs(each) > LARGEST for each in constants)
    return large or reward.tilt is not None or bool(reward.pessimism) or any(map(_unbounded, _members(reward)))
