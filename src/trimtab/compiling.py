"""From a request and its strategy to what the models read and the plan that steers them."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from trimtab.decoders.prompt.framing import Framing
from trimtab.decoders.search.driver import Reopened, Weighing
from trimtab.decoders.search.sample import Sample
from trimtab.decoders.spec import DecodingSpec
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import LanguageGuide
from trimtab.engine.guides.loaded import Guides
from trimtab.engine.guides.prompts import guide_prompt
from trimtab.engine.plan import BASE, LanePlan, SteerPlan
from trimtab.engine.program import Conversation, Program
from trimtab.engine.request import Opening
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import TextStream, Vocabulary
from trimtab.prompts import Prompts
from trimtab.room import answer_room

if TYPE_CHECKING:
    from trimtab.requests import GenerationRequest


_UNBOUND: Final = {
    "stop": (), "stop_token_ids": (), "min_tokens": 0, "ignore_eos": False, "logit_bias": {}, "logprobs": None,
    "max_tokens": None,
}  # fmt: skip
"""sampling of texts that are no answers"""


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
    framing: Framing
    """what the prompt parts put around conversations"""

    def first(self) -> Compiled:
        """What the request begins with: the prompt as it is where texts are written before, else framed."""
        return self.compile(self.request, framed=not self.spec.prepares)

    def unsteered(self) -> Compiled:
        """The client's prompt for the base as it is, which is what a preference guide was fitted on."""
        layout = None if self.loaded.base.vocabulary.tokenizer.chat_template else self.framing.layout
        framing = self.framing.copied()
        framing.layout = layout
        plain = replace(self, spec=DecodingSpec("sample", Sample()), framing=framing)
        return plain.compile(self.request, framed=False)

    def compile(self, request: "GenerationRequest", *, framed: bool) -> Compiled:
        """`request` is the compiler's own, or the same about another conversation; raises InvalidRequest."""
        base, guides, spec = self.loaded.base, self.loaded.by_name, self.spec
        prompts = Prompts(request, base, guides, self.framing.layout, self.framing if framed else None)
        draft = Draft(guides, prompts, base.runner.vocab_size)
        spec.steer(draft)
        plan = draft.compile(
            self.sampling,
            seed=self.seed,
            eos_ids=base.eos_ids,
            trace=spec.traces_tokens,
            measured=spec.measured,
        )
        judging = {name for expression in spec.search.expressions().values() for name in expression.guides}
        if spec.watch is not None:
            judging |= set(spec.watch.guides)
        return Compiled(prompts.base, plan, draft.guides | judging)

    def open(self, max_tokens: int, conversation: Conversation) -> Opening:
        """Another conversation of the request, for the base as the request steers it, or for a guide alone.

        What bounds and ends answers does not bind helpers, but for the marks of a layout; programs bound their texts.
        """
        if conversation.helper:  # it reads what an operator has every conversation say, and nothing else
            unbound = self.sampling.model_copy(update=_UNBOUND)
            framing = self.framing.of_first(len(self.spec.laid_prompts))
            return replace(self, sampling=unbound, framing=framing)._opened(conversation, None)
        return self._opened(conversation, max_tokens)

    def _opened(self, conversation: Conversation, max_tokens: int | None) -> Opening:
        model = conversation.model
        if model == BASE:
            prompt, plan, _ = self.compile(self._about(conversation), framed=True)
            room = answer_room(self.loaded.models, len(prompt), _longest(plan), field="decoding")
            return Opening(prompt, plan, self.text(), len(prompt) + min(max_tokens or room, room))
        guide = self.loaded.by_name[model]
        assert isinstance(guide, LanguageGuide)  # admission
        prompt = array("q", guide_prompt(model, guide.vocabulary, self.framing.around(conversation.messages)))
        own = self.sampling.model_copy(update={"logit_bias": {}, "stop_token_ids": (), "logprobs": None})
        limit = min(len(prompt) + (max_tokens or guide.model.context_length), guide.model.context_length)
        if limit <= len(prompt):
            raise InvalidRequest(
                f"guide {model!r} holds {limit} tokens and its conversation has {len(prompt)}: shorten the prompt or "
                "the answer",
                param="decoding",
            )
        plan = SteerPlan(own, self.seed, guide.model.eos_ids, guide.variant)
        lane = LanePlan(model, guide.model.name, prompt, guide.variant)
        return Opening(prompt, plan, text_of(guide.vocabulary, own), limit, lane)

    def program(self, max_tokens: int) -> Program:
        """What the engine runs; answers may have `max_tokens`."""
        inferred = self.spec.inferred
        weighing = None if inferred is None else Weighing(inferred.guide, partial(self._weighed, max_tokens))
        return replace(self.spec.program, told=self.framing.facts(self.spec.program.laid), weighing=weighing)

    def _weighed(self, max_tokens: int, told: Mapping[str, float]) -> Reopened:
        """The request by the weights that its preference guide gives rewards."""
        assert self.spec.inferred is not None
        spec, request = self.spec.weighed(told), self.request
        if request.floor is not None:
            spec, _ = request.floor.apply(spec, choices=request.n, trusted=request.trusted)
        framing = spec.reframe(self.framing, self.spec)
        program = replace(
            spec.program, told=framing.facts(spec.program.laid), preference=self.spec.inferred.weights(told)
        )
        return Reopened(program, partial(replace(self, spec=spec, framing=framing).open, max_tokens))

    def text(self) -> TextStream:
        """The text of an answer of the base."""
        layout, shown = self.framing.layout, self.request.shown_tokens
        ends = () if layout is None else layout.stops
        return text_of(self.loaded.base.vocabulary, self.sampling, shown, ends)

    @property
    def pinned(self) -> int:
        """Tokens at the beginning of every prompt of the base that are always the same."""
        layout = self.framing.layout
        return 0 if layout is None else len(self.loaded.base.vocabulary.encode(layout.prefix, add_special_tokens=True))

    def _about(self, conversation: Conversation) -> "GenerationRequest":
        """The request about another conversation: a text stays one, but for helpers where there is a chat template."""
        messages = tuple(conversation.messages)
        templated = self.framing.layout is not None or self.loaded.base.vocabulary.tokenizer.chat_template
        if self.request.messages is None and not (conversation.helper and templated):
            return replace(self.request, prompt="\n".join(each["content"] for each in messages))
        if conversation.helper:
            return replace(
                self.request,
                prompt=None,
                messages=messages,
                tools=(),
                add_generation_prompt=True,
                continue_final_message=False,
            )
        continued = self.request.continue_final_message and messages[-1]["role"] == "assistant"
        return replace(self.request, prompt=None, messages=messages, continue_final_message=continued)


def query_of(request: "GenerationRequest", vocabulary: Vocabulary) -> str:
    """What the request asks: its last user message, or its text prompt; empty if there is none."""
    if request.messages is not None:
        return next((each["content"] for each in reversed(request.messages) if each["role"] == "user"), "")
    prompt = request.prompt or ""
    return prompt if isinstance(prompt, str) else vocabulary.decode(prompt)


def text_of(
    vocabulary: Vocabulary, sampling: SamplingParams, shown: frozenset[int] = frozenset(), ends: tuple[str, ...] = ()
) -> TextStream:
    """The text of an answer, with what stops it.

    Special tokens of `shown` stand in it in any case; `ends` stop it and are not told of.
    """
    return TextStream(
        vocabulary,
        stop=sampling.stop,
        ends=ends,
        include_stop=sampling.include_stop_str_in_output,
        skip_special=sampling.skip_special_tokens,
        shown=shown,
    )


def _longest(plan: SteerPlan) -> SteerPlan:
    """The plan of an answer as long as there is room for."""
    return replace(plan, sampling=plan.sampling.model_copy(update={"max_tokens": None}))
