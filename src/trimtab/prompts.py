"""What each model of a request reads before the answer: the base's prompt, and every guide's own."""

from array import array
from collections.abc import Mapping
from typing import TYPE_CHECKING

from trimtab.decoders.prompt.framing import Framing, Layout
from trimtab.decoders.prompt.system import SYSTEM, with_system
from trimtab.decoders.steer.draft import AS_IT_IS, PromptView
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import Guide, LanguageGuide, ScorerGuide
from trimtab.engine.guides.prompts import guide_prompt
from trimtab.engine.model import Model
from trimtab.engine.vocabulary import Message

if TYPE_CHECKING:
    from trimtab.requests import GenerationRequest


class Prompts:
    """The prompts of one request, as token ids; raises InvalidRequest that names the field.

    The base and the guides that write read the conversation in a `framing`, where one is given, and the base under a
    `layout` in place of its chat template. Guides that score read it as the client sent it.
    """

    def __init__(
        self,
        request: "GenerationRequest",
        base: Model,
        guides: Mapping[str, Guide],
        layout: Layout | None = None,
        framing: Framing | None = None,
    ) -> None:
        self._request = request
        self._base = base
        self._guides = guides
        self._layout = layout
        self._framing = framing if framing is not None and framing.speaks else None
        messages = request.messages
        if messages is None and layout is not None:
            messages = (Message(role="user", content=self._text()),)
        self._messages = messages
        """the conversation; None: a text, which is read as it is"""
        self._framed = messages
        if messages is not None and self._framing is not None:
            self._framed = self._framing.around(messages)
        self.base = self._of_text(None, AS_IT_IS) if self._framed is None else self._of_base(self._framed)

    def __call__(self, name: str, view: PromptView) -> "array[int]":
        """What the guide `name`, or the base under another view, reads in place of the base's prompt."""
        guide = self._guides.get(name)
        if view.empty:  # as in contrastive decoding: a model reads one token at least
            return self._translated(guide, self.base[-1:])
        scores = isinstance(guide, ScorerGuide)
        messages = self._messages if scores else self._framed
        if messages is None:
            return self._of_text(guide, view)
        messages = _seen(messages, view)
        if guide is None:
            return self._of_base(messages)
        guide = _reader(guide)
        if self._layout is None or not scores:
            if guide.vocabulary is self._base.vocabulary:
                return self._of_base(messages)
            if guide.translation is not None and not guide.vocabulary.tokenizer.chat_template:
                return self._translated(guide, self._of_base(messages))
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

    def _of_text(self, guide: Guide | None, view: PromptView) -> "array[int]":
        """A text prompt under a view: the view's text stands before it, or nothing is left of it."""
        if view.drop_system and view.system is None:
            return self._translated(guide, self.base[-1:])
        own = isinstance(guide, ScorerGuide) or self._framing is None
        in_front = [text for text in (view.system, view.added) if text is not None]
        if own and not in_front and (guide is None or _reader(guide).translation is not None):
            return self._translated(guide, array("q", self._text_ids()))
        text = self._text()
        if self._framing is not None and not own and view.system is None:
            text = self._framing.before(text)
        vocabulary = self._base.vocabulary if guide is None else _reader(guide).vocabulary
        text = "\n".join((*in_front, text))
        return array("q", vocabulary.encode(text, add_special_tokens=self._request.add_special_tokens))

    def _text(self) -> str:
        """The text prompt."""
        prompt = self._request.prompt
        return prompt if isinstance(prompt, str) else self._base.vocabulary.decode(self._text_ids())

    def _text_ids(self) -> list[int]:
        """The ids of the text prompt, as it is."""
        prompt, size = self._request.prompt, self._base.runner.vocab_size
        if isinstance(prompt, str):
            ids = self._base.vocabulary.encode(prompt, add_special_tokens=self._request.add_special_tokens)
        else:
            ids = list(prompt or ())
        for token in ids:
            if not 0 <= token < size:
                raise InvalidRequest(f"prompt: token id {token} is outside the vocabulary of {size}", param="prompt")
        if not ids:
            raise InvalidRequest("the prompt is empty: send at least one token", param="prompt")
        return ids

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

    def _of_base(self, messages: tuple[Message, ...]) -> "array[int]":
        """A conversation as the base reads it."""
        request, vocabulary = self._request, self._base.vocabulary
        if not messages:
            raise InvalidRequest("messages is empty: send at least one message", param="messages")
        if self._layout is not None:
            if request.tools:
                raise InvalidRequest(
                    "a prompt part lays the prompt out, and without the chat template the model is not told of tools: "
                    "leave the tools out, or the part",
                    param="tools",
                )
            text = self._layout.render(
                messages, open_turn=request.add_generation_prompt, continued=request.continue_final_message
            )
            return array("q", vocabulary.encode(text, add_special_tokens=True))
        ids = vocabulary.chat(
            messages,
            add_generation_prompt=request.add_generation_prompt,
            continue_final_message=request.continue_final_message,
            template_kwargs=request.chat_template_kwargs,
            tools=request.tools,
        )
        if not ids:
            raise InvalidRequest("the prompt is empty: send at least one token", param="prompt")
        return array("q", ids)


def _seen(messages: tuple[Message, ...], view: PromptView) -> tuple[Message, ...]:
    """The conversation under a view."""
    if view.system is not None or view.drop_system:
        messages = tuple(each for each in messages if each["role"] not in SYSTEM)
    if view.system is not None:
        messages = (Message(role="system", content=view.system), *messages)
    return messages if view.added is None else with_system(messages, view.added)


def _reader(guide: Guide) -> LanguageGuide | ScorerGuide:
    assert isinstance(guide, LanguageGuide | ScorerGuide)
    return guide
