"""From the extra arguments of a vLLM request to what is done with each row of its logits."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trimtab.decoders.invalid import check_keys, invalid
from trimtab.decoders.prompt.base import PromptPart
from trimtab.decoders.search.sample import Sample
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.plan import SteerPlan
from trimtab.engine.sampling import SamplingParams
from trimtab.vllm.catalogue import Catalogue
from trimtab.vllm.draft import ALONE, ELSEWHERE, TokenDraft
from trimtab.vllm.interfaces import Params

PREFIX: Final = "trimtab"
"""of every key that is ours"""
Share = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]
_PENALTIES: Final = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""what each is when it does nothing"""
_KEYS: Final = {
    "prompt": "vLLM's template has made tokens of the messages already: put the text into the messages, or",
    "select": "vLLM returns each choice as it is drawn: leave it out, or",
    "budget": "vLLM has max_tokens and no other bound: send that, or",
    "trace": "vLLM's answers have no room for it: ask for logprobs, or",
    "preference": "preferences are read from the server's library: name the arms and weights yourself (genarm), or",
}
"""what every strategy of the server may bring along, and none here"""


class Extras(BaseModel):
    """The scalars beside the `decoding` object."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    trimtab: str | None = Field(None, description="a `decoding` object as JSON")
    trimtab_repetition_penalty: float = Field(1.0, gt=0.0, le=10.0)
    trimtab_presence_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    trimtab_frequency_penalty: float = Field(0.0, ge=-2.0, le=2.0)
    trimtab_abstain_below: Share | None = Field(
        None, description="end the answer where the base's likeliest token has a smaller probability"
    )
    trimtab_abstain_within: int = Field(
        1, ge=0, description="tokens of an answer that are judged so; 0: all. With 1 an abstention is an empty answer"
    )


@dataclass(frozen=True, slots=True)
class Part:
    """One guide's share of a mixture."""

    guide: str
    weight: float
    alone: bool
    """it reads the last token of the prompt and the answer, and nothing before"""


@dataclass(frozen=True, slots=True)
class TokenPlan:
    """What is done with the logits of one request."""

    steer: SteerPlan
    abstain_below: float = 0.0
    """0: it never abstains"""
    abstain_within: int = 1
    """tokens of the answer that are judged; 0: all"""

    @property
    def acts(self) -> bool:
        """Whether any logit changes; rows of other plans are not touched."""
        steer = self.steer
        return bool(steer.steered or steer.edits_logits or self.abstain_below)

    @property
    def parts(self) -> tuple[Part, ...]:
        lanes = self.steer.lanes
        return tuple(
            Part(lanes[each.lane].model, each.weight, lanes[each.lane].prompt == ALONE) for each in self.steer.mixture
        )


def asks(extra: Mapping[str, Any] | None) -> bool:
    """Whether a request has arguments for the plugin."""
    return bool(_ours(extra))


def read_plan(extra: Mapping[str, Any] | None, catalogue: Catalogue) -> TokenPlan | None:
    """The plan of a request's extra arguments; None where none of them is ours, or nothing is to be done.

    Raises InvalidRequest that names the argument, or the field within it.
    """
    ours = _ours(extra)
    if not ours:
        return None
    check_keys(ours, Extras.model_fields, "vllm_xargs", "argument", "those of trimtab are")
    try:
        given = Extras.model_validate(ours)
    except ValidationError as error:
        raise invalid(error, "vllm_xargs") from None
    if given.trimtab_abstain_below is None and "trimtab_abstain_within" in given.model_fields_set:
        raise InvalidRequest(
            "vllm_xargs.trimtab_abstain_within bounds trimtab_abstain_below and does nothing without it: send both, or "
            "neither",
            param="vllm_xargs.trimtab_abstain_within",
        )
    own = SamplingParams.model_validate({name: getattr(given, f"{PREFIX}_{name}") for name in _PENALTIES})
    draft = TokenDraft(catalogue)
    _spec(given.trimtab).steer(draft)
    steer = draft.compile(own, seed=0, eos_ids=frozenset())
    plan = TokenPlan(steer, given.trimtab_abstain_below or 0.0, given.trimtab_abstain_within)
    return plan if plan.acts else None


def check(params: Params, catalogue: Catalogue) -> None:
    """Raise InvalidRequest unless the plugin can do all that a request wants, beside what vLLM does for it."""
    plan = read_plan(params.extra_args, catalogue)
    if plan is None:
        return
    for name, off in _PENALTIES.items():
        if getattr(params, name) != off:
            raise InvalidRequest(
                f"{name}: one of vLLM's model runners penalises before the mixture, the other after it: send "
                f"{PREFIX}_{name} among vllm_xargs, which acts after it",
                param=name,
            )
    if plan.abstain_below and (params.ignore_eos or params.min_tokens):
        field = "ignore_eos" if params.ignore_eos else "min_tokens"
        raise InvalidRequest(
            f"{field} forbids the end of text by which trimtab_abstain_below abstains: leave one of the two out",
            param=field,
        )


def _ours(extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments that are meant for the plugin, mistyped ones too."""
    return {key: value for key, value in (extra or {}).items() if key == PREFIX or key.startswith(f"{PREFIX}_")}


def _spec(text: str | None) -> DecodingSpec:
    """The validated `decoding` object of one that only steers."""
    try:
        given = json.loads("{}" if text is None else text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"vllm_xargs.trimtab is not JSON: {error}", param="vllm_xargs.trimtab") from None
    if not isinstance(given, dict):
        raise InvalidRequest(
            'vllm_xargs.trimtab is an object as JSON, as {"strategy": "genarm", "arm": "aligned"}',
            param="vllm_xargs.trimtab",
        )
    for key, why in _KEYS.items():
        if key in given:
            raise InvalidRequest(f"decoding.{key}: {why} {ELSEWHERE}", param=f"decoding.{key}")
    spec = DecodingSpec.parse(given)
    if isinstance(spec.params, PromptPart):
        raise InvalidRequest(f"strategy {spec.strategy!r}: {_KEYS['prompt']} {ELSEWHERE}", param="decoding.strategy")
    if not isinstance(spec.search, Sample):
        raise InvalidRequest(
            f"strategy {spec.strategy!r} searches among answers, and a row of vLLM is one answer: {ELSEWHERE}",
            param="decoding.strategy",
        )
    return spec
