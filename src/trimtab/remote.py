"""What a request may ask of a base that another server runs; everything else is refused before it begins."""

from typing import TYPE_CHECKING, Final

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.plan import BASE, PLAIN, SteerPlan
from trimtab.engine.remote.completions import refused
from trimtab.engine.remote.wire import Capabilities

if TYPE_CHECKING:
    from trimtab.requests import GenerationRequest

_ELSEWHERE: Final = "the base runs on another server, which hands out text and not its distributions"
_COUNTED: Final = ("presence_penalty", "frequency_penalty")


def check_remote(request: "GenerationRequest", spec: DecodingSpec, plan: SteerPlan, capabilities: Capabilities) -> None:
    """Raise InvalidRequest, which names the field and what to do instead, for what the server cannot do."""
    if request.grammar is not None:
        raise InvalidRequest(
            f"a format of the answer is kept to token by token, and {_ELSEWHERE}: leave it out, or load the base here",
            param="response_format",
        )
    if request.prompt_logprobs is not None:
        _check_prompt_logprobs(request.prompt_logprobs, capabilities)
    if spec.search.distributions or _steers(plan):
        raise InvalidRequest(
            f"{spec.strategy!r} works on the base's distribution of every token, and {_ELSEWHERE}: use best_of_n, "
            "cd_blockwise, nudging or another one that docs/remote.md lists, or load the base here",
            param="decoding.strategy",
        )
    if plan.gate is not None:
        _check_voices(plan, capabilities, spec.strategy)
    _check_sampling(spec, plan, capabilities)
    _check_told(spec, plan, capabilities)


def _check_sampling(spec: DecodingSpec, plan: SteerPlan, capabilities: Capabilities) -> None:
    """Raise InvalidRequest for a sampling parameter that does not reach the server, or means another thing there."""
    field = refused(plan.sampling, capabilities)
    if field is not None:
        raise InvalidRequest(
            f"{field} is not known to the server that runs the base ({capabilities.kind}): leave it out", param=field
        )
    counted = next((field for field in _COUNTED if getattr(plan.sampling, field)), None)
    if counted is not None and not spec.search.whole:
        raise InvalidRequest(
            f"{counted} counts the tokens of an answer, and {spec.strategy!r} has another server write it in pieces: "
            "leave it out",
            param=counted,
        )
    weighing = spec.budget.max_kl is not None or spec.search.weighs_draws
    if weighing and not plan.drawn_as_given:
        what, param = ("max_kl", "budget.max_kl") if spec.budget.max_kl is not None else (spec.strategy, "strategy")
        raise InvalidRequest(
            f"{what} needs the probability that each token was drawn with, and {_ELSEWHERE}: leave it out, or sample "
            "at temperature 1 without filters and penalties",
            param=f"decoding.{param}",
        )


def _check_told(spec: DecodingSpec, plan: SteerPlan, capabilities: Capabilities) -> None:
    """Raise InvalidRequest for log-probabilities that the server does not tell."""
    wanted, most = plan.sampling.logprobs, capabilities.logprobs
    if wanted is not None and wanted > most:
        raise InvalidRequest(
            f"logprobs: the server that runs the base tells {f'at most {most}' if most >= 0 else 'none'}, and the "
            f"request asks for {wanted}: ask for less",
            param="logprobs",
        )
    if (plan.measured or plan.trace) and most < 0:
        what, field = ("a trace", "trace") if plan.trace else (repr(spec.strategy), "strategy")
        raise InvalidRequest(
            f"{what} needs log-probabilities, and the server that runs the base tells none", param=f"decoding.{field}"
        )


def _check_prompt_logprobs(wanted: int, capabilities: Capabilities) -> None:
    most = capabilities.prompt_logprobs
    if wanted > most:
        raise InvalidRequest(
            f"the server that runs the base tells {f'at most {most} tokens' if most >= 0 else 'nothing'} at each place "
            f"of a prompt, and the request asks for {wanted}: ask for less",
            param="prompt_logprobs",
        )


def _steers(plan: SteerPlan) -> bool:
    """Whether something other than the sampling parameters and a second voice shapes tokens."""
    gate = None if plan.gate is None else plan.lanes[plan.gate.lane]
    mixed = any(lane is not gate and (not lane.called or lane.model == BASE) for lane in plan.lanes)
    shaped = plan.candidates or plan.values or plan.hidden or plan.limit or plan.mixture or plan.base_weight != 1
    return bool(mixed or shaped or plan.variant != PLAIN or plan.reference is not None)


def _check_voices(plan: SteerPlan, capabilities: Capabilities, strategy: str) -> None:
    """Raise InvalidRequest unless two voices can take turns."""
    if min(capabilities.logprobs, capabilities.prompt_logprobs) < 1:
        raise InvalidRequest(
            f"{strategy!r} needs the best tokens at each place of a text, and the server that runs the base does not "
            "tell them",
            param="decoding.strategy",
        )
    sampling = plan.sampling
    changed = {
        "temperature": sampling.temperature != 0,
        "logit_bias": bool(sampling.logit_bias),
        "repetition_penalty": sampling.repetition_penalty != 1,
        **{field: getattr(sampling, field) != 0 for field in _COUNTED},
        "decoding.trace": plan.trace,
    }
    field = next((name for name, given in changed.items() if given), None)
    if field is not None:
        raise InvalidRequest(
            f"{strategy!r} is greedy, without edits and without a trace where {_ELSEWHERE}: "
            + ("set temperature to 0" if field == "temperature" else f"leave {field} out"),
            param=field,
        )
