"""What each model of a request reads before the answer: the base's prompt, and every guide's own."""

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trimtab.decoders.steer.draft import PromptView
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import Guide, LanguageGuide, ScorerGuide
from trimtab.engine.guides.prompts import guide_prompt
from trimtab.engine.model import Model
from trimtab.engine.vocabulary import Message

if TYPE_CHECKING:
    from trimtab.llm import GenerationRequest


class Prompts:
    """The prompts of one request, as token ids; raises InvalidRequest that names the field."""

    def __init__(self, request: "GenerationRequest", base: Model, guides: Mapping[str, Guide]) -> None:
        self._request = request
        self._base = base
        self._guides = guides
        self.base = self._of_base(request.messages, request.prompt)

    def __call__(self, name: str, view: PromptView) -> "array[int]":
        """What the guide `name`, or the base under another view, reads in place of the base's prompt."""
        guide = self._guides.get(name)
        if view.empty:  # as in contrastive decoding: a model reads one token at least
            return self._translated(guide, self.base[-1:])
        messages = self._seen(view)
        if messages is None:
            return self._of_text(guide, view)
        if guide is None or _reader(guide).vocabulary is self._base.vocabulary:
            return self._of_base(messages, None)
        guide = _reader(guide)
        if guide.translation is not None and not guide.vocabulary.tokenizer.chat_template:
            return self._translated(guide, self._of_base(messages, None))
        return array(
            "q",
            guide_prompt(
                name,
                guide.vocabulary,
                messages,
                add_generation_prompt=self._request.add_generation_prompt,
                continue_final_message=self._request.continue_final_message,
            ),
        )

    def _seen(self, view: PromptView) -> tuple[Message, ...] | None:
        """The conversation under a view; None for a text prompt."""
        messages = self._request.messages
        if messages is None:
            return None
        if view.system is not None or view.drop_system:
            messages = tuple(each for each in messages if each["role"] not in ("system", "developer"))
        if view.system is not None:
            messages = (Message(role="system", content=view.system), *messages)
        return messages

    def _of_text(self, guide: Guide | None, view: PromptView) -> "array[int]":
        """A text prompt under a view: the view's text stands before it, or nothing is left of it."""
        prompt = self._request.prompt
        if view.drop_system and view.system is None:
            return self._translated(guide, self.base[-1:])
        if view.system is None and (guide is None or _reader(guide).translation is not None):
            return self._translated(guide, self.base)
        vocabulary = self._base.vocabulary if guide is None else _reader(guide).vocabulary
        text = prompt if isinstance(prompt, str) else self._base.vocabulary.decode(self.base)
        text = text if view.system is None else f"{view.system}\n{text}"
        return array("q", vocabulary.encode(text, add_special_tokens=self._request.add_special_tokens))

    def _translated(self, guide: Guide | None, tokens: "array[int]") -> "array[int]":
        """Ids of the base in the guide's vocabulary; tokens it does not have are left out."""
        if guide is None or _reader(guide).model is self._base:
            return tokens[:]
        guide = _reader(guide)
        if guide.translation is None:
            text = self._base.vocabulary.decode(tokens)
            return array("q", guide.vocabulary.encode(text, add_special_tokens=True))
        own = array("q", (token for token in guide.translation.tokens(tokens) if token >= 0))
        return own or array("q", [min(guide.model.eos_ids, default=0)])

    def _of_base(self, messages: tuple[Message, ...] | None, prompt: object) -> "array[int]":
        request, vocabulary = self._request, self._base.vocabulary
        if messages is not None:
            if not messages:
                raise InvalidRequest("messages is empty: send at least one message", param="messages")
            ids = vocabulary.chat(
                messages,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
                template_kwargs=request.chat_template_kwargs,
                tools=request.tools,
            )
        elif isinstance(prompt, str):
            ids = vocabulary.encode(prompt, add_special_tokens=request.add_special_tokens)
        else:
            size = self._base.runner.vocab_size
            ids = list(request.prompt or ())  # type: ignore[arg-type]
            for token in ids:
                if not 0 <= token < size:
                    raise InvalidRequest(
                        f"prompt: token id {token} is outside the vocabulary of {size}", param="prompt"
                    )
        if not ids:
            raise InvalidRequest("the prompt is empty: send at least one token", param="prompt")
        return array("q", ids)


def _reader(guide: Guide) -> LanguageGuide | ScorerGuide:
    assert isinstance(guide, LanguageGuide | ScorerGuide)
    return guide
