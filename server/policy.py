"""Policies: what an operator lets the callers of a key ask for, and what is laid under whatever they ask."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from trimtab.decoders.floor import Floor
from trimtab.decoders.invalid import VIOLATION
from trimtab.decoders.named import named
from trimtab.decoders.preference import Personal
from trimtab.decoders.registry import strategies
from trimtab.decoders.select.abstain import Abstain
from trimtab.decoders.select.parse import RULES
from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.candidates import Candidates
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.sampling import SamplingParams
from trimtab.server.auto import is_auto
from trimtab.server.errors import ApiError
from trimtab.server.nearest import hint
from trimtab.server.presets import Preset
from trimtab.server.schema.chat import ChatRequest
from trimtab.server.schema.completions import CompletionRequest

if TYPE_CHECKING:
    from trimtab.llm import LLM
    from trimtab.requests import GenerationRequest

Endpoint = Literal["chat", "completions", "score", "classify", "tokenize"]
Bounded = Literal[
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "max_tokens", "min_tokens", "logprobs",
]  # fmt: skip
"""sampling fields that can be bounded"""
Range = tuple[float, float | None]
"""least and most; null: no upper bound"""

CLOSED = frozenset({
    "logit_bias", "ignore_eos", "min_tokens", "continue_final_message", "add_generation_prompt",
    "chat_template_kwargs", "response_format", "tools", "logprobs", "top_logprobs", "trace",
})  # fmt: skip
"""what may not be set under a floor unless the policy says what may not: fields that put words into the model's mouth,
keep it from ending, or tell what it would have said without the floor"""
TRACE, PROMPT = "trace", "prompt"
"""`decoding.trace` and `decoding.prompt`, as names in `forbidden`"""


def _known(valid: Iterable[str], what: str) -> AfterValidator:
    names = frozenset(valid)

    def check(given: frozenset[str]) -> frozenset[str]:
        for name in sorted(given - names):
            raise ValueError(f"no {what} is named {name!r}; {hint(name, sorted(names))}")
        return given

    return AfterValidator(check)


def _strategy_names(given: frozenset[str]) -> frozenset[str]:
    for name in sorted(given - strategies().keys()):
        raise ValueError(f"no strategy is named {name!r}; {hint(name, strategies())}")
    return given


_FIELDS = (ChatRequest.model_fields.keys() | CompletionRequest.model_fields.keys() | {TRACE, PROMPT}) - {
    "model", "messages", "decoding",
}  # fmt: skip
Strategies = Annotated[frozenset[str], AfterValidator(_strategy_names)]
Rules = Annotated[frozenset[str], _known(RULES, "rule")]
Fields = Annotated[frozenset[str], _known(_FIELDS, "request field")]


class Limits(BaseModel):
    """How much the callers of one key may use; absent: as much as the server allows."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int | None = Field(None, ge=1, description="sequences that their requests decode at the same time")
    concurrent: int | None = Field(None, ge=1, description="requests at the same time; more are a 429")
    requests_per_minute: int | None = Field(None, ge=1, description="more are a 429")
    model_tokens_per_minute: int | None = Field(
        None, ge=1, description="tokens that all models process for them; more are a 429"
    )
    max_tokens: int | None = Field(None, ge=1, description="new tokens of one choice")
    n: int | None = Field(None, ge=1, description="choices of one request, over all its prompts")
    priority: int = Field(0, description="the best that they may ask for; lower runs earlier")


class Policy(BaseModel):
    """What requests must keep to. Lists name what is allowed; where one is absent, everything is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = ""
    strategies: Strategies | None = Field(None, description="names allowed as strategy and in steer, beside `sample`")
    rules: Rules | None = Field(None, description="names allowed in select")
    guides: frozenset[str] | None = Field(
        None, description="guides that requests may name, also to score with; absent: all but the floor's"
    )
    presets: frozenset[str] | None = Field(None, description="presets allowed")
    endpoints: frozenset[Endpoint] | None = Field(
        None, description="endpoints allowed; absent: all, but under a floor no raw text completions"
    )
    sampling: dict[Bounded, Range] = Field(default_factory=dict, description="least and most of sampling fields")
    forbidden: Fields | None = Field(
        None, description="request fields that may not be set; absent: under a floor those that would get around it"
    )
    floor: Floor | None = Field(None, description="decoding that is laid under every request")
    limits: Limits = Limits()

    def admit(self, endpoint: Endpoint, preset: str | None = None) -> None:
        """Raise a 403 for an endpoint, or a preset, that is not allowed."""
        if self.endpoints is None:
            if endpoint == "completions" and self.floor is not None:
                raise violation(
                    "raw text completions could begin the answer themselves: use /v1/chat/completions", None
                )
        elif endpoint not in self.endpoints:
            raise violation(f"the endpoint {endpoint} is not allowed: {_allowed(self.endpoints)}", None)
        if preset is not None and self.presets is not None and preset not in self.presets:
            raise violation(f"the preset {preset!r} is not allowed: {_allowed(self.presets)}", "model")

    def admit_guide(self, guide: str) -> None:
        """Raise a 403 for a guide that answers may not be scored with."""
        self._check_guide(guide, "model")

    def check_size(self, choices: int, max_tokens: int | None, field: str) -> None:
        """Raise a 403 for more choices, or longer ones, than the limits allow; `field` says how long."""
        limits = self.limits
        if limits.n is not None and choices > limits.n:
            raise violation(f"n times the number of prompts may be {limits.n} at most, not {choices}", "n")
        if limits.max_tokens is not None and max_tokens is not None and max_tokens > limits.max_tokens:
            raise violation(f"{field} may be {limits.max_tokens} at most, not {max_tokens}", field)

    def check_rows(self, rows: int) -> None:
        """Raise a 403 for more sequences at a time than the callers can ever have."""
        most = self.limits.rows
        if most is not None and rows > most:
            raise ApiError(
                403,
                f"the request decodes {rows} sequences at a time and this key may have {most}: ask for fewer, or set "
                "decoding.budget.max_rows",
                param="decoding.budget.max_rows",
                code=VIOLATION,
            )

    def review(
        self,
        request: "GenerationRequest",
        given: frozenset[str],
        assumed: frozenset[str] = frozenset(),
        *,
        personal: Personal | None = None,
        preset: Preset | None = None,
    ) -> tuple["GenerationRequest", tuple[str, ...]]:
        """The request as the policy lets it run, and in words what was done to it.

        `given` are the fields that the client set; what comes from a preset is the operator's own word. `assumed` are
        sampling fields that have a value though neither has set them. `personal` is what the request's preference may
        refer to. Raises a 403 that names the field, and InvalidRequest for decoding that is wrong in itself.
        """
        spec = DecodingSpec.parse(request.decoding, personal)
        self._check_fields(request, given, spec)
        if "decoding" in given:
            fixed = None if preset is None or is_auto(preset.decoding) else preset.decoding
            own = None if fixed is None else DecodingSpec.parse(fixed, personal)
            self._check_decoding(spec, own)
        applied: tuple[str, ...] = ()
        trusted = preset is not None and "decoding" not in given
        if self.floor is not None:
            try:
                spec, applied = self.floor.apply(spec, choices=request.n, trusted=trusted)
            except InvalidRequest as error:
                if error.code != VIOLATION:
                    raise
                raise violation(str(error), error.param) from None
        unset = assumed | {"max_tokens"}  # which the server's limit may have set
        sampling, moved = self._sampled(request.sampling, given, spec, unset)
        best = self.limits.priority
        if "priority" in given and request.priority < best:
            raise violation(f"priority may be {best} at best, not {request.priority}", "priority")
        priority = max(request.priority, best)
        reviewed = replace(request, sampling=sampling, priority=priority, floor=self.floor, trusted=trusted)
        return reviewed, (*moved, *applied)

    def check(self, llm: "LLM", presets: Mapping[str, Preset]) -> None:
        """Raise InvalidRequest unless the policy fits the guides of a model and the presets of the server."""
        for name in sorted((self.presets or frozenset()) - presets.keys()):
            raise InvalidRequest(f"presets: there is no preset {name!r}; {hint(name, presets)}", param="presets")
        if self.floor is None:
            return
        llm.check_floor(self.floor)
        personal = llm.personal(None)
        for name in sorted(presets.keys() if self.presets is None else self.presets):
            if is_auto(presets[name].decoding):
                continue  # settings that do not stand on the floor are passed over
            try:
                self.floor.apply(DecodingSpec.parse(presets[name].decoding, personal), choices=1, trusted=True)
            except InvalidRequest as error:
                raise InvalidRequest(
                    f"preset {name!r} does not stand on the floor: {error}; or list the others under `presets`",
                    param="presets",
                ) from None

    def _check_fields(self, request: "GenerationRequest", given: frozenset[str], spec: DecodingSpec) -> None:
        forbidden = self.forbidden
        if forbidden is None:
            forbidden = frozenset() if self.floor is None else CLOSED
        spelled = frozenset[str]().union(*(_SPELLINGS.get(name, {name}) for name in forbidden - {TRACE, PROMPT}))
        for name in sorted(spelled & given):
            if not _idle(request, name):
                raise violation(f"{name} may not be set: leave it out", name)
        if TRACE in forbidden and "decoding" in given and spec.trace is not None:
            raise violation("trace may not be set: leave it out", "decoding.trace")

    def _check_decoding(self, spec: DecodingSpec, own: DecodingSpec | None) -> None:
        """Raise a 403 for strategies, rules and guides that are not allowed, and that are not the preset's."""
        places = [("decoding.strategy", spec.strategy)]
        places += [(f"decoding.prompt.{i}.method", method) for i, (method, _) in enumerate(spec.prompts)]
        places += [(f"decoding.steer.{i}.method", method) for i, (method, _) in enumerate(spec.listed)]
        mine = () if own is None else (own.strategy, *(method for method, _ in (*own.prompts, *own.listed)))
        for path, name in places:
            if self.strategies is not None and name not in ("sample", *self.strategies, *mine):
                raise violation(f"strategy {name!r} is not allowed: {_allowed(self.strategies)}", path)
        mine = () if own is None else _rules(own)
        for name in _rules(spec):
            if self.rules is not None and name not in (*self.rules, *mine):
                raise violation(f"rule {name!r} is not allowed: {_allowed(self.rules)}", "decoding.select")
        parts = () if own is None else own.prompt_parts
        if PROMPT in (self.forbidden or ()) and any(part not in parts for part in spec.prompt_parts):
            path = "decoding.prompt" if spec.prompts else "decoding.strategy"
            raise violation("parts that change the prompt may not be set: leave them out", path)
        known = {} if own is None else named(own)
        for guide, path in named(spec).items():
            if guide not in known:
                self._check_guide(guide, path)
        for part in (part for part in spec.parts if isinstance(part, Candidates)):
            self._check_range("top_k", part.top_k, "decoding.steer")
            self._check_range("top_p", part.top_p, "decoding.steer")
            self._check_range("min_p", part.alpha, "decoding.steer")

    def _check_guide(self, guide: str, path: str) -> None:
        if self.guides is not None and guide not in self.guides:
            raise violation(f"guide {guide!r} is not allowed: {_allowed(self.guides)}", path)
        if self.floor is not None and guide in self.floor.guides:
            raise violation(f"guide {guide!r} belongs to the operator: name another one", path)

    def _sampled(
        self, sampling: SamplingParams, given: frozenset[str], spec: DecodingSpec, assumed: frozenset[str]
    ) -> tuple[SamplingParams, tuple[str, ...]]:
        """The parameters with defaults inside their ranges; raises a 403 for one that the client set outside."""
        moved: dict[str, Any] = {}
        for name in self.sampling:
            value = getattr(sampling, name)
            if given & _SPELLINGS.get(name, {name}):
                self._check_range(name, value, name)
            elif name not in sampling.model_fields_set or name in assumed:
                if name == "temperature" and name not in assumed and spec.temperature is not None:
                    value = spec.temperature
                nearest = self._nearest(name, value)
                if nearest != value:
                    moved[name] = nearest
        told = tuple(f"{name} is {value:g}" for name, value in moved.items())
        return SamplingParams.model_validate({**sampling.model_dump(exclude_unset=True), **moved}), told

    def _check_range(self, name: Bounded, value: float | None, path: str) -> None:
        if name in self.sampling and self._nearest(name, value) != value:
            low, high = self.sampling[name]
            upward = "on" if high is None else f"to {high:g}"
            raise violation(f"{name} may be set from {low:g} {upward}, not to {_told(value)}", path)

    def _nearest(self, name: Bounded, value: float | None) -> float | None:
        """The value itself, or the bound that it lies beyond."""
        if name == "logprobs" and value is None:
            return value
        low, high = self.sampling[name]
        size = _size(name, value)
        bound = low if size < low else high if high is not None and size > high else None
        if bound is None:
            return value
        return int(bound) if name in _WHOLE else bound

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        for name, (low, high) in self.sampling.items():
            if high is not None and low > high:
                raise ValueError(f"sampling.{name}: the range from {low:g} to {high:g} is empty")
            if name == "top_k" and high is not None and high < 1:
                raise ValueError("sampling.top_k: 0 keeps all tokens and is no upper bound; null is none")
            for bound in (low, high):
                if bound is not None:
                    value = int(bound) if name in _WHOLE and bound == int(bound) else bound
                    SamplingParams.model_validate({name: value})
        if self.floor is not None and self.guides is not None:
            for guide in sorted(self.guides & set(self.floor.guides)):
                raise ValueError(f"guides: {guide!r} is the floor's, so that requests may not name it")
        return self


_WHOLE = ("top_k", "max_tokens", "min_tokens", "logprobs")
_SPELLINGS = {
    "max_tokens": {"max_tokens", "max_completion_tokens"},
    "logprobs": {"logprobs", "top_logprobs"},
}
"""what clients call a field"""


def violation(message: str, param: str | None) -> ApiError:
    """The 403 for what a policy rules out."""
    return ApiError(403, f"the policy of this key: {message}", param=param, code=VIOLATION)


def _allowed(names: Iterable[str]) -> str:
    return "allowed: " + (", ".join(sorted(names)) or "none")


def _told(value: float | None) -> str:
    return "no limit" if value is None else f"{value:g}"


def _rules(spec: DecodingSpec) -> tuple[str, ...]:
    """Names of the rules of a request."""
    rule = spec.select
    if rule is None:
        return ()
    rules = (rule, rule.then) if isinstance(rule, Abstain) else (rule,)
    return tuple(str(type(each).model_fields["rule"].default) for each in rules)


def _size(name: str, value: float | None) -> float:
    """A value as it compares: no limit, and a top_k of 0, are the largest."""
    return inf if value is None or (name == "top_k" and value == 0) else value


def _idle(request: "GenerationRequest", name: str) -> bool:
    """Whether a field that was set asks for nothing."""
    sampling = request.sampling
    match name:
        case "logprobs":
            return sampling.logprobs is None and request.prompt_logprobs is None
        case "continue_final_message":
            return not request.continue_final_message
        case "add_generation_prompt":
            return request.add_generation_prompt
        case "response_format":
            return request.grammar is None
        case "chat_template_kwargs":
            return not request.chat_template_kwargs
        case "tools":
            return not request.tools
    known = name in SamplingParams.model_fields
    return known and bool(getattr(sampling, name) == getattr(SamplingParams(), name))
