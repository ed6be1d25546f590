"""What every route needs: the models, the rules, the bridge to the engines, quotas and metrics."""

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from trimtab.engine.budget import Budget
from trimtab.engine.errors import InvalidRequest, TrimtabError
from trimtab.server.auto import Resolved, is_auto, resolve, serving
from trimtab.server.bridge import Bridge, Exchange
from trimtab.server.callers import Caller
from trimtab.server.errors import ApiError
from trimtab.server.logs import current
from trimtab.server.metrics import Metrics
from trimtab.server.nearest import hint
from trimtab.server.policy import Endpoint
from trimtab.server.preferences import names_profile, with_profile
from trimtab.server.presets import Preset
from trimtab.server.quotas import Quotas
from trimtab.server.rules import Rules
from trimtab.server.settings import RELOADABLE, Settings
from trimtab.server.version import installed_version

if TYPE_CHECKING:
    from trimtab.decoders.library import Library
    from trimtab.llm import LLM
    from trimtab.requests import GenerationRequest, PreparedRequest

log = logging.getLogger("trimtab.server")


@dataclass(frozen=True, slots=True)
class Target:
    """What a model id names: a model, and perhaps a preset of its decoding."""

    id: str
    llm: "LLM"
    preset_name: str | None = None
    preset: Preset | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """One request: who asks what of which model, and which fields they set."""

    caller: Caller
    target: Target
    endpoint: Endpoint
    given: frozenset[str]

    @property
    def llm(self) -> "LLM":
        return self.target.llm


@dataclass(frozen=True, slots=True)
class Ready:
    """The prompts of a request that can be submitted."""

    prepared: Sequence["PreparedRequest"]
    applied: tuple[str, ...]
    """what the caller's policy did"""
    resolved: Resolved | None = None
    """what `auto` chose"""

    @property
    def rows(self) -> int:
        """Sequences that they decode at the same time at most."""
        return sum(each.rows for each in self.prepared)


class Service:
    """The models behind one app. `source` reads the settings anew, for a reload."""

    def __init__(self, llm: "LLM", settings: Settings, source: Callable[[], Settings] | None = None) -> None:
        self.llms: Mapping[str, LLM] = {llm.model_name: llm}
        """by id; replaced as a whole. The first is what requests without a model get"""
        self.settings = settings.server
        self.attributes = settings.attributes
        """what preferences weigh; None: by the model"""
        self.library = llm.library
        """norms and profiles of every model; None where nothing is kept"""
        self.rules = Rules.of(settings, self.llms)
        norms = None if self.library is None else self.library.norms
        self.metrics = Metrics(lambda: {name: each.stats for name, each in self.llms.items()}, norms)
        self.bridge = Bridge(self.metrics)
        self.quotas = Quotas(self.metrics.spent)
        self.created = int(time.time())
        self.fingerprint = f"trimtab-{installed_version()}"
        self.draining = False
        self._started = self._configured = settings
        self._source = source
        self._warned = False

    @property
    def failed(self) -> Exception | None:
        """Why an engine stopped for good, if one did."""
        return next((llm.failed for llm in self.llms.values() if llm.failed is not None), None)

    @property
    def kept(self) -> "Library":
        """Norms and profiles, to be read; raises a 503 where none are kept."""
        if self.library is None:
            message = "no norms and profiles are kept here: the server was made around an LLM without a library"
            raise ApiError(503, message, code="no_library")
        return self.library

    @property
    def written(self) -> "Library":
        """The same, to be changed; the first time, the log says so if it will be lost."""
        library = self.kept
        if self.settings.library is None and not self._warned:
            self._warned = True
            log.warning("norms and profiles are lost when the server ends: name a file for them in server.library")
        return library

    def drain(self) -> None:
        """Refuse new requests from now on; running ones go on. Safe from a signal handler."""
        self.draining = True
        for llm in self.llms.values():
            llm.drain()

    def close(self) -> None:
        """Stop every engine; requests still running end with an error."""
        for llm in self.llms.values():
            llm.close()

    def add(self, llm: "LLM") -> None:
        """Serve another model; raises InvalidSettings, and does not, if presets and policies do not fit it."""
        llms = {**self.llms, llm.model_name: llm}
        self.rules = Rules.of(self._configured, llms, running=True, frontier=self.rules.frontier)
        self.llms = llms

    def remove(self, model: str) -> "LLM":
        """Take a model out of service; raises a 404. The caller drains and closes what is returned."""
        if model not in self.llms:
            message = f"the model {model!r} does not exist; {hint(model, self.llms)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        llm = self.llms[model]
        self.llms = {name: each for name, each in self.llms.items() if name != model}
        return llm

    def reload(self) -> list[str]:
        """Read presets, policies and keys anew, all or nothing.

        Returns the settings that need a restart to be in force. Raises InvalidSettings and keeps what there was.
        """
        try:
            new = self._configured if self._source is None else self._source()
            rules = Rules.of(new, self.llms, running=True)
        except TrimtabError:
            self.metrics.reloaded(ok=False)
            raise
        self.rules, self._configured = rules, new
        self.metrics.reloaded(ok=True)
        in_force = self._started
        return [
            f"{section}.{name}"
            for section in ("server", "engine")
            for name in type(getattr(new, section)).model_fields
            if getattr(getattr(new, section), name) != getattr(getattr(in_force, section), name)
        ]

    def try_reload(self) -> None:
        """Reload and log how it went; for a signal."""
        try:
            waiting = self.reload()
        except TrimtabError as error:
            log.error("not reloaded, the old %s stay: %s", ", ".join(RELOADABLE), error)
            return
        log.warning("reloaded %s", ", ".join(RELOADABLE))
        if waiting:
            log.warning("these settings have changed and need a restart: %s", ", ".join(waiting))

    @property
    def targets(self) -> dict[str, Target]:
        """Everything that a request may name as its model."""
        presets = self.rules.presets
        found = {name: Target(name, llm) for name, llm in self.llms.items()}
        return found | {
            f"{model}:{name}": Target(f"{model}:{name}", llm, name, preset)
            for model, llm in self.llms.items()
            for name, preset in presets.items()
        }

    def target(self, model: str | None) -> Target:
        """What the id `model` names; the first model for None. Raises a 404."""
        targets = self.targets
        if model is None and targets:
            return next(iter(targets.values()))
        if model not in targets:
            message = f"the model {str(model)[:99]!r} does not exist; {hint(str(model), targets)}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return targets[model]

    def call(self, request: Request, endpoint: Endpoint, model: str | None, given: frozenset[str]) -> Call:
        """Who asks what; raises a 404 for an unknown model and a 403 for what the caller's policy rules out."""
        caller: Caller = request.state.caller
        call = Call(caller, self.target(model), endpoint, given)
        if (record := current.get()) is not None:
            record.model, record.policy = call.llm.model_name, caller.policy_name
        if caller.policy is not None:
            caller.policy.admit(endpoint, call.target.preset_name)
        return call

    def limit(self, call: Call, choices: int, prompts: int, max_tokens: int | None, field: str) -> int | None:
        """The token limit to use.

        Raises InvalidRequest for more than the server allows, naming `field`, and a 403 for more than the policy does.
        """
        limits, policy = self.settings.limits, call.caller.policy
        if choices < 1:
            raise InvalidRequest(f"n must be at least 1, not {choices}", param="n", code="invalid_value")
        if choices * prompts > limits.max_n:
            message = f"n times the number of prompts may be {limits.max_n} at most, not {choices * prompts}"
            raise InvalidRequest(message, param="n", code="invalid_value")
        if max_tokens is not None and limits.max_tokens is not None and max_tokens > limits.max_tokens:
            message = f"{field} may be {limits.max_tokens} at most on this server, not {max_tokens}"
            raise InvalidRequest(message, param=field, code="invalid_value")
        if policy is not None:
            policy.check_size(choices * prompts, max_tokens, field)
        if max_tokens is None:
            return self._most_tokens(call)
        return max_tokens

    async def begin(self, call: Call, requests: Sequence["GenerationRequest"], *, trace: bool) -> Exchange:
        """Validate, tokenise and start every prompt of a request, or none; `trace`: its stream is to carry the trace.

        Raises InvalidRequest, Overloaded, and ApiError for what the caller may not have.
        """
        preset = call.target.preset
        if preset is not None:
            requests = [preset.apply(each, call.given, self._most_tokens(call)) for each in requests]
        lease = self.quotas.enter(call.caller, len(requests))
        with self.bridge.beginning(call.llm, len(requests)):
            try:
                ready = await run_in_threadpool(self._ready, call, requests, self.bridge.running(call.llm))
                if trace:
                    _check_traced(ready)
                lease.occupy(ready.rows)
            except BaseException:
                lease.abandon()
                raise
            exchange = self.bridge.submit(call.llm, ready.prepared, requests[0].n, lease, self._acting(call, ready))
        if ready.resolved is not None:
            self.metrics.chose(call.llm.model_name, ready.resolved.choice.setting.name)
        return exchange

    def _ready(self, call: Call, requests: Sequence["GenerationRequest"], load: int) -> Ready:
        """Prepare a request; where it leaves the choice to `auto`, by the setting of the profile that fits best."""
        if not is_auto(requests[0].decoding):
            return self._prepare(call, requests, frozenset())
        frontier = serving(self.rules.frontier, call.llm.model_name)
        policy, preset, personal = call.caller.policy, call.target.preset, call.llm.personal(call.caller.name)

        def permit(request: "GenerationRequest", assumed: frozenset[str]) -> "GenerationRequest":
            if policy is None:
                return request
            return policy.review(request, call.given, assumed, personal=personal, preset=preset)[0]

        def prepare(chosen: "GenerationRequest", assumed: frozenset[str]) -> Ready:
            named = [replace(each, decoding=chosen.decoding, sampling=chosen.sampling) for each in requests]
            ready = self._prepare(call, named, assumed)
            if policy is not None:
                policy.check_rows(ready.rows)
            return ready

        sized = {"max_tokens", "max_completion_tokens"} & call.given
        resolved, ready = resolve(
            requests[0],
            frontier,
            load=load,
            bounded=bool(sized) or (preset is not None and "max_tokens" in preset.sampling),
            floor=Budget() if policy is None or policy.floor is None else policy.floor.budget,
            permit=permit,
            prepare=prepare,
        )
        return replace(ready, resolved=resolved)

    def _prepare(self, call: Call, requests: Sequence["GenerationRequest"], assumed: frozenset[str]) -> Ready:
        """Review and prepare every prompt; `assumed` are sampling fields that nobody has set."""
        decoding, policy, personal = requests[0].decoding, call.caller.policy, call.llm.personal(call.caller.name)
        if decoding is not None and names_profile(decoding):
            decoding = with_profile(decoding, personal)
        requests = [replace(each, tenant=call.caller.name, decoding=decoding) for each in requests]
        applied: tuple[str, ...] = ()
        if policy is not None:
            preset = call.target.preset
            reviewed = [policy.review(each, call.given, assumed, personal=personal, preset=preset) for each in requests]
            requests, applied = [each for each, _ in reviewed], reviewed[0][1]
        return Ready([call.llm.prepare(each) for each in requests], applied)

    def _most_tokens(self, call: Call) -> int | None:
        """What bounds the choices of a caller's requests."""
        policy = call.caller.policy
        return _smaller(self.settings.limits.max_tokens, None if policy is None else policy.limits.max_tokens)

    def _acting(self, call: Call, ready: Ready) -> dict[str, Any]:
        """What the response tells of the preset, of the policy and of the choice of `auto`."""
        told: dict[str, Any] = {}
        if call.target.preset_name is not None:
            told["preset"] = call.target.preset_name
        if call.caller.policy_name is not None:
            told["policy"] = {"name": call.caller.policy_name, "applied": list(ready.applied)}
        if ready.resolved is not None:
            told["auto"] = ready.resolved.told(ready.prepared[0].request.sampling.temperature)
        return told

    def head(self, prefix: str, kind: str, model: str) -> dict[str, Any]:
        """The fields that open every answer: a fresh id, the object's kind, time, model and fingerprint."""
        return {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": self.fingerprint,
        }


def _check_traced(ready: Ready) -> None:
    """Raise InvalidRequest unless a trace is kept, which may be a preset's doing."""
    if not all(each.plan.trace for each in ready.prepared):
        raise InvalidRequest(
            "include_trace sends the trace of each token, and none is kept: set decoding.trace to 'tokens', or leave "
            "include_trace out",
            param="stream_options.include_trace",
        )


def _smaller(first: int | None, second: int | None) -> int | None:
    """The smaller of two limits, of which either may be absent."""
    return min((each for each in (first, second) if each is not None), default=None)
