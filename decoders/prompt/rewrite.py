"""Rewriting: a model restates the instruction before it is answered (P-Aligner: Song et al. 2025, arXiv 2508.04626;
Align-Pro: Trivedi et al. 2025, arXiv 2501.03486).

The answer is to the instruction in its new words. Rewards judge it by the conversation as it was sent.
"""

from collections.abc import Generator
from typing import Any

from pydantic import Field, field_validator

from trimtab.decoders.params import LanguageName
from trimtab.decoders.prompt.base import Prepared, PromptPart
from trimtab.decoders.prompt.texts import PLACE, fits, in_other_words, written_about_request
from trimtab.decoders.registry import strategy
from trimtab.decoders.search.base import SearchContext
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.plan import BASE
from trimtab.engine.program import Op
from trimtab.engine.vocabulary import Message

INSTRUCTION = (
    "Somebody wrote this message to an assistant:\n\n{instruction}\n\n"
    "Write the message again so that the assistant can answer it better. Keep what it asks for. Say clearly what is "
    "vague, name what a good answer needs, and choose a friendly tone. Do not answer it. "
    "Reply with the new message alone."
)


@strategy("rewrite", paper="Song et al. 2025, arXiv 2508.04626", cost="max_tokens, then the answer")
class Rewrite(PromptPart):
    """Let a model restate the last user message in a form that is answered better."""

    guide: LanguageName = Field(BASE, description="what rewrites: `base`, or a language-model guide's name")
    max_tokens: int = Field(
        256, ge=1, le=4096, description="tokens of the new message at most; a longer one is not used"
    )
    instruction: str = Field(
        INSTRUCTION,
        max_length=4000,
        description="what the rewriter is asked after the conversation so far; {instruction} is the message",
    )

    @field_validator("instruction")
    @classmethod
    def _has_a_place(cls, instruction: str) -> str:
        if PLACE not in instruction:
            raise ValueError(f"the rewriter would not see the message: put {PLACE} where it is to stand")
        return instruction

    def steer(self, draft: Draft) -> None:
        draft.writer(self.guide, field="guide")

    @property
    def prepares(self) -> bool:
        return True

    def prepare(self, context: SearchContext, messages: tuple[Message, ...]) -> Generator[Op, Any, Prepared]:
        place, (text, because) = yield from written_about_request(
            context, messages, self.instruction, self.guide, self.max_tokens
        )
        if because is not None:
            return _original(messages, because)
        if text == messages[place]["content"].strip():
            return _original(messages, "same")
        other = in_other_words(messages, place, text)
        if not fits(context, other):
            return _original(messages, "too_long")
        return Prepared(other, {"rewritten": text})


def _original(messages: tuple[Message, ...], because: str) -> Prepared:
    return Prepared(messages, {"rewritten": None, "because": because})
