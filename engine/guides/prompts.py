"""How a guide reads a conversation: under its own chat template, or as plain lines of text."""

from collections.abc import Sequence

from trimtab.engine.errors import GuideError, InvalidRequest
from trimtab.engine.vocabulary import Message, Vocabulary


def guide_prompt(
    guide: str,
    vocabulary: Vocabulary,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
) -> list[int]:
    """Return the ids of an open conversation: the answer's tokens follow, or the rest of the last message.

    InvalidRequest, which names the guide, if its template refuses the conversation.
    """
    try:
        return _read(vocabulary, messages, open_turn=add_generation_prompt, continued=continue_final_message)
    except InvalidRequest as error:  # its template may refuse what the base model's takes
        raise InvalidRequest(f"guide {guide!r}: {error}", param=error.param, code=error.code) from error


def guide_transcript(
    guide: str, vocabulary: Vocabulary, messages: Sequence[Message], answer: str, *, limit: int
) -> list[int]:
    """Return the ids of a conversation with its whole answer; at least one and at most `limit`.

    A longer text loses its beginning (after a leading BOS or CLS token), so that the answer is kept.
    GuideError if the guide's template refuses the conversation.
    """
    try:
        ids = _read(vocabulary, [*messages, Message(role="assistant", content=answer)], open_turn=False)
    except InvalidRequest as error:
        raise GuideError(guide, str(error)) from error
    over = len(ids) - limit
    if over <= 0:
        return ids
    tokenizer = vocabulary.tokenizer
    kept = 1 if ids[0] in (tokenizer.bos_token_id, tokenizer.cls_token_id) else 0
    return ids[:kept] + ids[kept + over :]


def _nothing(vocabulary: Vocabulary) -> list[int]:
    """Return what stands for no text at all: one token, since a model reads at least one."""
    tokenizer = vocabulary.tokenizer
    ids = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id)
    return [next((id_ for id_ in ids if id_ is not None), 0)]


def _read(
    vocabulary: Vocabulary, messages: Sequence[Message], *, open_turn: bool, continued: bool = False
) -> list[int]:
    """The one place that decides how text reaches a guide; without a template, a message is a line."""
    if vocabulary.tokenizer.chat_template:
        ids = vocabulary.chat(messages, add_generation_prompt=open_turn, continue_final_message=continued)
    else:
        text = "\n".join(message["content"] for message in messages)
        ids = vocabulary.encode(text + "\n" * open_turn, add_special_tokens=True)
    return ids or _nothing(vocabulary)
