"""Texts that the preparing parts have written, and how text that nobody vouches for is put into a prompt."""

import re
import unicodedata
from collections.abc import Generator, Iterable
from collections.abc import Sequence as Many
from typing import Any, Final, Literal, NamedTuple

from trimtab.decoders.search.base import SearchContext
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.program import Extend, Op
from trimtab.engine.sequence import Sequence
from trimtab.engine.vocabulary import Message

PLACE: Final = "{instruction}"
"""where the last user message stands in what a helper is asked"""


class Task(NamedTuple):
    """What a helper is to answer."""

    messages: Many[Message]
    model: str
    """`base`, or a language-model guide that the part has asked for (`draft.writer`)"""


class Written(NamedTuple):
    """What a helper has made of it."""

    text: str
    """without space around it, and with no string of a special token in it"""
    because: Literal["empty", "cut_off", "refused", "no_instruction"] | None = None
    """what is wrong with it

    refused: the conversation is too long for the model, or its chat template refuses it; no_instruction: there is no
    message to ask about.
    """


def written(context: SearchContext, tasks: Many[Task], max_tokens: int) -> Generator[Op, Any, list[Written]]:
    """Texts of helpers, all in one batch, in the order of `tasks`."""
    helpers = [_started(context, each) for each in tasks]
    running = [each for each in helpers if each is not None]
    if running:
        yield Extend(running, max_tokens)
    for helper in running:
        helper.free()
    return [Written("", "refused") if each is None else _told(context, each) for each in helpers]


def written_about_request(
    context: SearchContext, messages: Many[Message], instruction: str, model: str, max_tokens: int
) -> Generator[Op, Any, tuple[int, Written]]:
    """The place of the last request, and what a helper writes that is asked about it after the messages before it.

    The request's text takes the place of PLACE in `instruction`. The place means nothing where there is no request.
    """
    place = last_request(messages)
    if place is None:
        return -1, Written("", "no_instruction")
    text = instruction.replace(PLACE, messages[place]["content"])  # both may hold a part of a special token's string
    asked = Message(role="user", content=context.prompt.base.model.vocabulary.harmless(text))
    (reply,) = yield from written(context, [Task((*messages[:place], asked), model)], max_tokens)
    return place, reply


def text_of(context: SearchContext, answer: Sequence) -> str:
    """What a sequence of a helper or the base has written, without space around it and special tokens' strings."""
    return context.prompt.base.model.vocabulary.harmless(answer.text.text.strip())


def fits(context: SearchContext, messages: Many[Message]) -> bool:
    """Whether the base can answer a conversation, with all that is put around it."""
    try:
        context.start(messages).free()
    except InvalidRequest:
        return False
    return True


def last_request(messages: Many[Message]) -> int | None:
    """The place of the last user message; None if there is none, or the conversation ends in the assistant's words."""
    if not messages or messages[-1]["role"] == "assistant":
        return None
    return max((i for i, each in enumerate(messages) if each["role"] == "user"), default=None)


def in_other_words(messages: Many[Message], place: int, content: str) -> tuple[Message, ...]:
    """The conversation with another content of the user message at a place."""
    return (*messages[:place], Message(role="user", content=content), *messages[place + 1 :])


def one_line(text: str) -> str:
    """A text with single spaces for line breaks, control characters and other white space."""
    return " ".join("".join(" " if unicodedata.category(each) == "Cc" else each for each in text).split())


def fenced(name: str, lines: Iterable[str]) -> str:
    """Lines between marks of this name; what looks like one of the marks inside is broken up."""
    gap = r"[\s\u00ad\u200b-\u200f\u2060-\u2064\ufeff]*"  # nothing that is seen
    mark = re.compile(rf"[<\uff1c\ufe64](?={gap}/?{gap}{gap.join(name)})", re.IGNORECASE)
    inside = (mark.sub(lambda found: f"{found[0]} ", one_line(each)) for each in lines)
    return "\n".join((f"<{name}>", *inside, f"</{name}>"))


def _started(context: SearchContext, task: Task) -> Sequence | None:
    try:
        return context.start(task.messages, task.model, helper=True)
    except InvalidRequest:
        return None


def _told(context: SearchContext, helper: Sequence) -> Written:
    if helper.finish is None:
        helper.text.flush()  # what was held back as the beginning of a stop string
    text = text_of(context, helper)
    if not text:
        return Written(text, "empty")
    return Written(text, None if helper.finish == "stop" else "cut_off")
