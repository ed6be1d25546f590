"""The strategy `auto`: the setting of a measured profile that fits the budget of a request.

It is no strategy of the registry, since it runs none: a request that names it becomes one that names the setting, and
from there on is as any other, under the same policy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from trimtab.decoders.invalid import VIOLATION
from trimtab.decoders.spec import DecodingSpec, Trace, parse_budget
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
COST = "of the setting"
GOALS = ("deadline_ms", "reward_at_least", "max_model_tokens")
"""parts of the budget by which a setting is chosen"""

Permit = Callable[["GenerationRequest", frozenset[str]], "GenerationRequest"]
"""a request, and sampling fields that nobody has set, as the caller's policy lets it run; raises what refuses it"""
T = TypeVar("T")


class Auto(BaseModel):
    """What `decoding` may say beside `"strategy": "auto"`; of the budget at least one part to choose by."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Budget = Field(description="what the setting has to fit; its limits hold for the answer, too")
    trace: Trace | None = Field(
        None, description="tokens: what shaped each token; search: what the search wrote; or both"
    )

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

    def decoding(self, setting: Measured) -> dict[str, Any]:
        """The setting under the limits of this budget; the reward to be reached is a mean and no limit."""
        budget = parse_budget(setting.decoding.get("budget", {})).within(self.budget).model_dump(exclude_none=True)
        told = dict(setting.decoding) | ({} if self.trace is None else {"trace": self.trace})
        return {**told, "budget": budget} if budget else told


@dataclass(frozen=True, slots=True)
class Resolved:
    """The setting that was chosen for a request."""

    choice: Choice
    frontier: Frontier

    def told(self, temperature: float) -> dict[str, Any]:
        """As it stands in `decoding.auto` of the response; `temperature` is what it ran at."""
        choice, frontier = self.choice, self.frontier
        return {
            "setting": choice.setting.name,
            "reason": choice.reason,
            "reward": choice.setting.reward.mean,
            "latency_ms": round(choice.estimate.latency_ms, 3),
            "answers": choice.setting.level(choice.load).answers,
            "concurrency": choice.load,
            "fits": choice.fits,
            "temperature": temperature,
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
    prepare: Callable[["GenerationRequest", frozenset[str]], T],
) -> tuple[Resolved, T]:
    """Choose for a request among the settings that its caller could ask for by hand, and prepare what was chosen.

    `load` counts the requests that run, this one with them; `bounded`: somebody has set how long the answer may be,
    else more tokens than were measured count as those that were. `floor` is the operator's budget, and `permit` is
    asked about every setting; where `prepare` refuses the one that was chosen, the next is. Raises InvalidRequest, and
    the refusal where no setting is left.
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
        named = replace(request, decoding=auto.decoding(setting))
        try:
            most = permit(named, assumed).sampling.max_tokens
        except (ApiError, InvalidRequest) as error:
            refused[setting.name] = error
        else:
            usable[setting.name] = named
            if most is not None:
                longest = most if bounded else min(most, frontier.max_tokens)
    if not usable:
        raise _nothing(refused)
    budget = auto.budget.within(floor)
    last: ApiError | InvalidRequest | None = None
    while usable:
        try:
            choice = frontier.choose(budget, load=load, max_tokens=longest, among=usable)
        except InvalidRequest:
            if last is None:
                raise
            break  # those that reach the reward have been refused, and why says more
        try:
            prepared = prepare(usable.pop(choice.setting.name), assumed)
        except (ApiError, InvalidRequest) as error:
            last = error
        else:
            return Resolved(choice, frontier), prepared
    assert last is not None
    raise last


def check(decoding: Mapping[str, Any], frontier: Frontier | None) -> None:
    """Raise InvalidRequest unless requests that decode like this, by auto, can be answered from the profile."""
    budget = Auto.parse(decoding).budget
    if frontier is None:
        raise InvalidRequest("strategy 'auto' needs a profile: set `auto`, or start with `trimtab serve --auto FILE`")
    frontier.choose(budget, load=1, max_tokens=frontier.max_tokens)


def check_profile(frontier: Frontier, llm: "LLM") -> None:
    """Raise InvalidProfile unless the settings of the profile can run on this model as they were measured."""
    if (dtype := number_format(llm)) != frontier.dtype:
        raise InvalidProfile(f"the profile was measured in {frontier.dtype} and the model runs in {dtype}")
    for setting in frontier.settings:
        try:
            llm.check(setting.decoding)
        except InvalidRequest as error:
            raise InvalidProfile(f"setting {setting.name!r} of the profile cannot run here: {error}") from None


def number_format(llm: "LLM") -> str:
    """Of the base's weights, as `bfloat16`."""
    return str(llm.models["base"].runner.dtype).removeprefix("torch.")


def differences(frontier: Frontier, llm: "LLM") -> list[str]:
    """What is not here as where the profile was measured, so that its latencies may not hold."""
    from trimtab.engine.machine import machine  # imports transformers, and a taken port is told before

    here = {**machine(), "device": str(llm.models["base"].runner.device), "version": installed_version()}
    then = {**frontier.hardware, "device": frontier.device, "version": frontier.version}
    compared = ("device", "gpu", "cpu", "cores", "threads", "version")
    return [f"{name} {then.get(name)}, here {here[name]}" for name in compared if then.get(name) != here[name]]


def described(available: bool) -> dict[str, Any]:
    """As /v1/strategies lists it; `available`: a profile is loaded, of a model that is served."""
    return {
        "name": AUTO,
        "kind": AUTO,
        "summary": SUMMARY,
        "paper": None,
        "cost": COST,
        "needs": [],
        "temperature": None,
        "schema": schema(),
        "available": available,
    }


def schema() -> dict[str, Any]:
    """JSON Schema of what goes beside `"strategy": "auto"`."""
    return Auto.model_json_schema()


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
