"""A conversation with its answer as the base reads and writes it: token ids, and where the answer begins."""

from collections.abc import Sequence
from typing import NamedTuple

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.loading import LoadedModel
from trimtab.engine.vocabulary import Message, Vocabulary
from trimtab.training.errors import DataError


class Row(NamedTuple):
    """The ids of a conversation with an answer."""

    ids: list[int]
    start: int
    """where the answer begins, at least 1"""


def answer_row(vocabulary: Vocabulary, messages: Sequence[Message], answer: str, eos_id: int | None, limit: int) -> Row:
    """Return the ids of an answer behind its prompt, ended by `eos_id`, and where it begins.

    The prompt is what the server would make of it: the conversation under the chat template, or without a template
    its text as it is. No messages at all stand for a text of its own. Of more than `limit` tokens the prompt
    loses those behind its first one, then the answer its end. DataError if the template refuses the conversation, or
    the vocabulary cannot spell the answer.
    """
    try:
        prompt = _prompt(vocabulary, messages)
        tail = vocabulary.continuation(answer)
    except (InvalidRequest, ValueError) as error:
        raise DataError(f"{error}: change or remove the answer that begins {answer[:40]!r}") from error
    tail = [*tail, *([] if eos_id is None else [eos_id])][: limit - 1]
    room = limit - len(tail)
    if len(prompt) > room:
        prompt = prompt[:1] + prompt[len(prompt) - room + 1 :]
    return Row(prompt + tail, len(prompt))


def closing_id(loaded: LoadedModel, vocabulary: Vocabulary) -> int | None:
    """Return the token that ends an answer: of the base's EOS tokens, the one that its chat template writes."""
    if vocabulary.tokenizer.chat_template:
        turns = [Message(role="user", content="a"), Message(role="assistant", content="b")]
        written = [id_ for id_ in vocabulary.chat(turns, add_generation_prompt=False) if id_ in loaded.eos_ids]
        if written:
            return written[-1]
    own = vocabulary.tokenizer.eos_token_id
    return own if own in loaded.eos_ids else min(loaded.eos_ids, default=None)


def _prompt(vocabulary: Vocabulary, messages: Sequence[Message]) -> list[int]:
    tokenizer = vocabulary.tokenizer
    if messages and tokenizer.chat_template:
        ids = vocabulary.chat(messages)
    else:
        ids = vocabulary.encode("\n".join(message["content"] for message in messages), add_special_tokens=True)
    # A model reads one token before the first that it writes.
    return ids or [next((id_ for id_ in (tokenizer.bos_token_id, tokenizer.eos_token_id) if id_ is not None), 0)]
