"""From a request and its strategy to what the models read and the plan that steers them."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import LanguageGuide
from trimtab.engine.guides.loaded import Guides
from trimtab.engine.guides.prompts import guide_prompt
from trimtab.engine.job import Opening
from trimtab.engine.plan import BASE, LanePlan, SteerPlan
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Message, TextStream, Vocabulary
from trimtab.prompts import Prompts
from trimtab.room import answer_room

if TYPE_CHECKING:
    from trimtab.llm import GenerationRequest


class Compiled(NamedTuple):
    """What one conversation of a request becomes."""

    prompt: "array[int]"
    """of the base"""
    plan: SteerPlan
    guides: frozenset[str]
    """names of the guides that it needs, those of the search's rewards included"""


@dataclass(frozen=True, slots=True)
class Compiler:
    """Compiles the conversations of one request, all with the guides that were loaded when it was made."""

    loaded: Guides
    request: "GenerationRequest"
    spec: DecodingSpec
    sampling: SamplingParams
    seed: int

    def compile(self, request: "GenerationRequest") -> Compiled:
        """`request` is the compiler's own, or the same about another conversation; raises InvalidRequest."""
        base, guides, spec = self.loaded.base, self.loaded.by_name, self.spec
        prompts = Prompts(request, base, guides)
        draft = Draft(guides, prompts, base.runner.vocab_size)
        spec.steer(draft)
        plan = draft.compile(
            self.sampling,
            seed=self.seed,
            eos_ids=base.eos_ids,
            trace=spec.trace == "tokens",
            measured=spec.measured,
        )
        judging = {name for expression in spec.search.expressions().values() for name in expression.guides}
        if spec.watch is not None:
            judging |= set(spec.watch.guides)
        return Compiled(prompts.base, plan, draft.guides | judging)

    def open(self, max_tokens: int, messages: Sequence[Message], model: str) -> Opening:
        """Another conversation of the request, for the base as the request steers it, or for a guide alone."""
        base = self.loaded.base
        if model == BASE:
            other = replace(self.request, prompt=None, messages=tuple(messages), continue_final_message=False)
            prompt, plan, _ = self.compile(other)
            room = answer_room(self.loaded.models, len(prompt), _longest(plan), field="decoding")
            text = text_of(base.vocabulary, self.sampling, self.request.shown_tokens)
            return Opening(prompt, plan, text, len(prompt) + min(max_tokens, room))
        guide = self.loaded.by_name[model]
        assert isinstance(guide, LanguageGuide)  # admission
        prompt = array("q", guide_prompt(model, guide.vocabulary, messages))
        own = self.sampling.model_copy(update={"logit_bias": {}, "stop_token_ids": (), "logprobs": None})
        limit = min(len(prompt) + max_tokens, guide.model.context_length)
        if limit <= len(prompt):
            raise InvalidRequest(
                f"guide {model!r} holds {limit} tokens and its conversation has {len(prompt)}: shorten the prompt or "
                "the answer",
                param="decoding",
            )
        plan = SteerPlan(own, self.seed, guide.model.eos_ids, guide.variant)
        lane = LanePlan(model, guide.model.name, prompt, guide.variant)
        return Opening(prompt, plan, text_of(guide.vocabulary, own), limit, lane)


def text_of(vocabulary: Vocabulary, sampling: SamplingParams, shown: frozenset[int] = frozenset()) -> TextStream:
    """The text of an answer, with what stops it; special tokens of `shown` stand in it in any case."""
    return TextStream(
        vocabulary,
        stop=sampling.stop,
        include_stop=sampling.include_stop_str_in_output,
        skip_special=sampling.skip_special_tokens,
        shown=shown,
    )


def _longest(plan: SteerPlan) -> SteerPlan:
    """The plan of an answer as long as there is room for."""
    return replace(plan, sampling=plan.sampling.model_copy(update={"max_tokens": None}))
