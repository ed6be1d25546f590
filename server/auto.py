"""The strategy `auto`: the setting of a measured profile that fits the budget of a request.

It is no strategy of the registry, since it runs none: a request that names it becomes one that names the setting, and
from there on is as any other, under the same policy.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from trimtab.decoders.invalid import VIOLATION
from trimtab.decoders.registry import strategies
from trimtab.decoders.spec import DecodingSpec, parse_budget
from trimtab.engine.budget import Budget
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.sampling import SamplingParams
from trimtab.server.errors import ApiError
from trimtab.server.frontier import Choice, Frontier, InvalidProfile, Measured
from trimtab.server.version import installed_version

if TYPE_CHECKING:
    from trimtab.llm import LLM
    from trimtab.requests import GenerationRequest

AUTO = "auto"
SUMMARY = "The setting of a measured profile that fits the budget."
GOALS = ("deadline_ms", "reward_at_least", "max_model_tokens")
"""parts of the budget by which a setting is chosen"""

Permit = Callable[["GenerationRequest", frozenset[str]], "GenerationRequest"]
"""a request, and sampling fields that nobody has set, as the caller's policy lets it run; raises what refuses it"""


class Auto(BaseModel):
    """What `decoding` may say beside `"strategy": "auto"`; of the budget at least one part to choose by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Budget = Field(description="what the setting has to fit; it holds for the answer, too")
    trace: Literal["tokens"] | None = Field(None, description="tokens: report what shaped each token")

    @classmethod
    def parse(cls, decoding: Mapping[str, Any]) -> Self:
        """Validate a `decoding` object that names auto; raises InvalidRequest that names the key."""
        for key in decoding:
            if key not in ("strategy", *cls.model_fields):
                raise InvalidRequest(
                    f"strategy 'auto' runs settings as they were measured, so that {key!r} cannot be set beside it: "
                    "leave it out, or name a strategy",
                    param=f"decoding.{key}",
                )
        budget = parse_budget(decoding.get("budget", {}))
        if all(getattr(budget, name) is None for name in GOALS):
            raise InvalidRequest(
                "strategy 'auto' needs something to choose by: give `budget` a deadline_ms, a reward_at_least or "
                'max_model_tokens, as {"strategy": "auto", "budget": {"deadline_ms": 800}}',
                param="decoding.budget",
            )
        return cls(budget=budget, trace=DecodingSpec.parse({"trace": decoding.get("trace")}).trace)

    def decodings(self, setting: Measured, reward: str) -> Iterator[dict[str, Any]]:
        """The setting under this budget, the way to be preferred first.

        A reward to be reached also ends a search that goes by it, where the caller may ask for that.
        """
        own = parse_budget(setting.decoding.get("budget", {}))
        limits = self.budget.model_copy(update={"reward_at_least": None})
        budget = smaller(own, limits).model_dump(exclude_none=True)
        told = dict(setting.decoding) | ({} if self.trace is None else {"trace": self.trace})
        least = self.budget.reward_at_least
        if least is not None and _searches_by(setting.decoding, reward):
            yield {**told, "budget": {**budget, "reward_at_least": least}}
        yield {**told, "budget": budget} if budget else told


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request that names the setting that was chosen for it."""

    request: "GenerationRequest"
    choice: Choice
    frontier: Frontier
    assumed: frozenset[str]
    """sampling fields that are the profile's, since nobody has set them"""

    def told(self) -> dict[str, Any]:
        """As it stands in `decoding.auto` of the response."""
        choice, frontier = self.choice, self.frontier
        return {
            "setting": choice.setting.name,
            "reason": choice.reason,
            "reward": choice.setting.reward.mean,
            "latency_ms": round(choice.estimate.latency_ms, 3),
            "concurrency": choice.load,
            "fits": choice.fits,
            "profile": {
                "reward": frontier.reward,
                "prompts": frontier.prompts.model_dump(),
                "max_tokens": frontier.max_tokens,
                "temperature": frontier.temperature,
                "version": frontier.version,
                "commit": frontier.commit,
            },
        }


def is_auto(decoding: Mapping[str, Any] | None) -> bool:
    """Whether a `decoding` object leaves the choice to the profile."""
    return decoding is not None and decoding.get("strategy") == AUTO


def serving(frontier: Frontier | None, model: str) -> Frontier:
    """The profile, if it is this model's; raises InvalidRequest that says how to come by one."""
    if frontier is None:
        raise InvalidRequest(
            "strategy 'auto' needs a profile and this server has none: make one with `trimtab bench --profile "
            "profile.json`, and start with `trimtab serve --auto profile.json`",
            param="decoding.strategy",
        )
    if frontier.model != model:
        raise InvalidRequest(
            f"the profile of strategy 'auto' was measured on {frontier.model!r} and says nothing of {model!r}: ask "
            f"{frontier.model!r}, or name a strategy",
            param="decoding.strategy",
        )
    return frontier


def resolve(
    request: "GenerationRequest",
    frontier: Frontier,
    *,
    load: int,
    bounded: bool,
    floor: Budget,
    permit: Permit,
) -> Resolved:
    """Choose for a request among the settings that its caller could ask for by hand.

    `load` counts the requests that run, this one with them; `bounded`: somebody has set how long the answer may be,
    else more tokens than were measured count as those that were. `floor` is the operator's budget, and `permit`
    what a policy makes of a request. Raises InvalidRequest, and the policy's refusal where it allows no setting.
    """
    auto = Auto.parse(request.decoding or {})
    sampling = request.sampling
    assumed = frozenset({"temperature"}) - sampling.model_fields_set
    if assumed:
        given = sampling.model_dump(exclude_unset=True)
        request = replace(request, sampling=SamplingParams(**given, temperature=frontier.temperature))
    usable: dict[str, GenerationRequest] = {}
    longest = frontier.max_tokens
    refused: dict[str, ApiError | InvalidRequest] = {}
    for setting in frontier.settings:
        for decoding in auto.decodings(setting, frontier.reward):
            named = replace(request, decoding=decoding)
            try:
                most = permit(named, assumed).sampling.max_tokens
            except (ApiError, InvalidRequest) as error:
                refused[setting.name] = error
                continue
            usable[setting.name] = named
            if most is not None:
                longest = most if bounded else min(most, frontier.max_tokens)
            break
    if not usable:
        raise _nothing(refused)
    choice = frontier.choose(smaller(floor, auto.budget), load=load, max_tokens=longest, among=usable)
    return Resolved(usable[choice.setting.name], choice, frontier, assumed)


def check(decoding: Mapping[str, Any], frontier: Frontier | None) -> None:
    """Raise InvalidRequest unless requests that decode like this, by auto, can be answered from the profile."""
    budget = Auto.parse(decoding).budget
    if frontier is None:
        raise InvalidRequest("strategy 'auto' needs a profile: set `auto`, or start with `trimtab serve --auto FILE`")
    frontier.choose(budget, load=1, max_tokens=frontier.max_tokens)


def check_profile(frontier: Frontier, llms: Mapping[str, "LLM"]) -> None:
    """Raise InvalidProfile unless the profile was measured on a model that is served, and can run there now."""
    llm = llms.get(frontier.model)
    if llm is None:
        raise InvalidProfile(
            f"the profile was measured on the model {frontier.model!r} and served is {', '.join(llms)}: measure anew"
        )
    dtype = str(llm.models["base"].runner.dtype).removeprefix("torch.")
    if dtype != frontier.dtype:
        raise InvalidProfile(f"the profile was measured in {frontier.dtype} and the model runs in {dtype}")
    for setting in frontier.settings:
        try:
            llm.check(setting.decoding)
        except InvalidRequest as error:
            raise InvalidProfile(f"setting {setting.name!r} of the profile cannot run here: {error}") from None


def differences(frontier: Frontier, llm: "LLM") -> list[str]:
    """What is not here as where the profile was measured, so that its latencies may not hold."""
    from trimtab.engine.machine import machine  # imports transformers, and a taken port is told before

    here = {**machine(), "device": str(llm.models["base"].runner.device), "version": installed_version()}
    then = {**frontier.hardware, "device": frontier.device, "version": frontier.version}
    compared = ("device", "gpu", "cpu", "cores", "threads", "version")
    return [f"{name} {then.get(name)}, here {here[name]}" for name in compared if then.get(name) != here[name]]


def described(available: bool) -> dict[str, Any]:
    """As /v1/strategies lists it; `available`: a profile is loaded."""
    return {
        "name": AUTO,
        "kind": AUTO,
        "summary": SUMMARY,
        "paper": None,
        "cost": "of the setting",
        "needs": [],
        "temperature": None,
        "schema": Auto.model_json_schema(),
        "available": available,
    }


def smaller(first: Budget, second: Budget) -> Budget:
    """The smaller of each limit of two budgets; a reward to be reached is the second's, if it has one."""
    own, other = (each.model_dump(exclude_none=True) for each in (first, second))
    both = {name: min(own[name], other[name]) for name in own.keys() & other.keys() - {"reward_at_least"}}
    return Budget.model_validate({**own, **other, **both})


def _searches_by(decoding: Mapping[str, Any], reward: str) -> bool:
    """Whether a search ranks its answers by the reward itself."""
    searches = strategies()[decoding.get("strategy", "sample")].kind == "search"
    return searches and decoding.get("reward") in (reward, {"guide": reward})


def _nothing(refused: Mapping[str, ApiError | InvalidRequest]) -> ApiError | InvalidRequest:
    """Why no setting may run: what all have been refused for, or what the first one was."""
    told = {name: error.detail if isinstance(error, ApiError) else str(error) for name, error in refused.items()}
    first = next(iter(refused.values()))
    if len(set(told.values())) == 1:
        return first
    setting, why = next(iter(told.items()))
    message = f"auto may use no setting of its profile: {setting!r} and the others are refused. {why}"
    if isinstance(first, ApiError):
        return ApiError(first.status_code, message, param="decoding.strategy", code=VIOLATION)
    return InvalidRequest(message, param="decoding.strategy")
