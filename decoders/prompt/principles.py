"""Situated principles: a model writes principles for this very query, and the answer is made under them
(SPRI: Zhan et al. 2025, arXiv 2502.03397).

With `rounds`, an answer under the principles is drafted first, and revised under them so often; the search decodes the
last revision. The paper's critic, which scores principles and drafts to decide how often, is left out.
"""

import re
from collections.abc import Generator
from typing import Any

from pydantic import Field

from trimtab.decoders.params import LanguageName
from trimtab.decoders.prompt.base import Prepared, PromptPart
from trimtab.decoders.prompt.texts import (
    Written,
    fenced,
    fits,
    in_other_words,
    one_line,
    text_of,
    written_about_request,
)
from trimtab.decoders.registry import strategy
from trimtab.decoders.search.base import SearchContext
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.plan import BASE
from trimtab.engine.program import Extend, Op
from trimtab.engine.vocabulary import Message

ASK = (
    "Somebody wrote this message to an assistant:\n\n{instruction}\n\n"
    "Write down {count} principles that a good answer to just this message keeps to. One short sentence each, each on "
    "a line of its own that begins with its number. Do not answer the message. Reply with the principles alone."
)
UNDER = "Keep to these principles in your answer, and do not mention them:"
REVISE = (
    "Improve your last answer, so that it keeps to every one of the principles; keep what is good already. "
    "Reply with the improved answer alone."
)
_NUMBERED = re.compile(r"\s*(?:[-*•]\s+|[(\[]?\d+\s*[.):\]]+)\s*(?P<text>.*)")


@strategy(
    "principles", paper="Zhan et al. 2025, arXiv 2502.03397", cost="max_tokens, then 1 answer a round, then the answer"
)
class Principles(PromptPart):
    """Let a model write principles for the query, then answer and revise under them."""

    guide: LanguageName = Field(
        BASE, description="what writes the principles: `base`, or a language-model guide's name"
    )
    count: int = Field(4, ge=1, le=20, description="principles to ask for; more are left out")
    max_tokens: int = Field(256, ge=1, le=4096, description="tokens of all principles at most; whole ones are used")
    rounds: int = Field(1, ge=0, le=4, description="revisions; 0: the answer is made under the principles at once")

    def steer(self, draft: Draft) -> None:
        draft.writer(self.guide, field="guide")

    @property
    def prepares(self) -> bool:
        return True

    def prepare(self, context: SearchContext, messages: tuple[Message, ...]) -> Generator[Op, Any, Prepared]:
        ask = ASK.replace("{count}", str(self.count))
        place, reply = yield from written_about_request(context, messages, ask, self.guide, self.max_tokens)
        principles = listed(reply)[: self.count]
        if not principles:
            return Prepared(messages, {"principles": [], "because": reply.because or "empty"})
        lines = (f"{number}. {text}" for number, text in enumerate(principles, start=1))
        content = f"{messages[place]['content']}\n\n{UNDER}\n{fenced('principles', lines)}"
        under = in_other_words(messages, place, content)
        if not fits(context, under):
            return Prepared(messages, {"principles": [], "because": "too_long"})
        revised, told = yield from self._revised(context, under)
        return Prepared(revised, {"principles": principles, **told})

    def _revised(
        self, context: SearchContext, under: tuple[Message, ...]
    ) -> Generator[Op, Any, tuple[tuple[Message, ...], dict[str, Any]]]:
        """The conversation whose answer is the last revision, and the drafts before it.

        The last draft is the answer if the budget ends the request before there is another.
        """
        conversation, drafts = under, list[str]()
        previous = None
        for _ in range(self.rounds):
            draft = context.start(conversation)
            yield Extend([draft])
            if previous is not None:
                previous.free()
            draft.release()
            previous = draft
            text = text_of(context, draft)
            if not text:
                draft.free()
                return conversation, {"drafts": drafts, "because": "empty_draft"}
            revision = (*under, Message(role="assistant", content=text), Message(role="user", content=REVISE))
            if not fits(context, revision):
                return conversation, {"drafts": drafts, "because": "too_long"}
            drafts.append(text)
            conversation = revision
        return conversation, {"drafts": drafts}


def listed(reply: Written) -> list[str]:
    """The principles of a reply, each on one line: numbered lines if there are any, else all but headings.

    Of a reply that was cut off the last line is left out.
    """
    lines = reply.text.splitlines()
    if reply.because == "cut_off":
        lines = lines[:-1]
    numbered = [found["text"] for each in lines if (found := _NUMBERED.match(each))]
    plain = [each for each in lines if not each.rstrip().endswith(":")]
    return [text for each in dict.fromkeys(numbered or plain) if (text := one_line(each))]
