"""Text and token ids: exact token bytes, chat templates, and detokenising one token at a time."""

from __future__ import annotations

import codecs
import copy
import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict

from jinja2 import TemplateError

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.spelling import Spelling
from trimtab.engine.templates import reads_tools
from trimtab.engine.words import split_words

if TYPE_CHECKING:  # transformers takes seconds to import; settings and messages do not need it
    from transformers import PreTrainedTokenizerBase


_UTF8: Final = codecs.getincrementaldecoder("utf-8")
_ANCHORS: Final = ("", "\n", "a")
"""texts behind which another is spelled without SentencePiece's dummy space; one of them merges with nothing"""


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str
    tool_calls: NotRequired[Sequence[Mapping[str, Any]]]
    """of an assistant, in OpenAI's form; arguments are objects, as templates want them"""
    tool_call_id: NotRequired[str]
    """of a tool's answer"""


class Vocabulary:
    """The strings behind the ids of one fast tokenizer; `model_rows` are the model's embedding rows."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model_rows: int | None = None) -> None:
        self.tokenizer = tokenizer
        self.tokens: Mapping[str, int] = tokenizer.get_vocab()
        """ids of the token strings, spelled as the tokenizer spells them"""
        added: Mapping[int, Any] = tokenizer.added_tokens_decoder
        self.added = {id_: token.content for id_, token in added.items()}
        """strings of the tokens that stand outside the tokenizer's model"""
        self.special_ids = frozenset(tokenizer.all_special_ids) | {i for i, t in added.items() if t.special}
        known = max(self.tokens.values()) + 1
        self.size = known if model_rows is None else min(known, model_rows)
        """ids from here on have no string, or no row in the model"""
        self.rows = max(known, model_rows or 0)
        """ids from here on cannot be drawn"""
        self._spelling = Spelling(tokenizer)

    def with_template(self, template: str) -> Vocabulary:
        """Return this vocabulary under another chat template; they share everything else."""
        _ = self._table  # computed once, here, and shared
        other = copy.copy(self)
        other.tokenizer = copy.copy(self.tokenizer)
        other.tokenizer.chat_template = template
        other.__dict__.pop("tool_template", None)
        return other

    @property
    def exact(self) -> bool:
        """Whether the text of a sequence is the concatenation of its tokens' bytes."""
        return self._spelling.exact

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes of one token, empty for an id that has no string."""
        return self._table[token_id]

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Return the ids of `text`; InvalidRequest for lone surrogates."""
        check_unicode(text)
        ids = self._encode(text, add_special_tokens)
        if ids and max(ids) >= self.size:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise InvalidRequest(f"the model has no embedding for the token {token!r}: remove it from the text")
        return ids

    def continuation(self, text: str) -> list[int]:
        """Return ids that add exactly the bytes of `text` to a text before it, none of them special.

        The usual spelling where it is exact. Where it is not (a dummy space in front, a normaliser, the string of a
        special token), only the word that suffers is spelled differently, at worst byte by byte. ValueError when the
        vocabulary lacks a byte, or hides the bytes of its tokens.
        """
        ids = self._exact_ids(text)
        if ids is not None:
            return ids
        if len(text) == 1:
            return self._bytewise(text)
        words = split_words(text)
        return [id_ for part in (words if len(words) > 1 else text) for id_ in self.continuation(part)]

    def harmless(self, text: str) -> str:
        """A text in which the strings of special tokens are broken up, so that it opens no turn."""
        while found := next((each for each in self._framing if each in text), None):
            text = text.replace(found, f"{found[0]} {found[1:]}" if len(found) > 1 else "")
        return text

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`, without the clean-up of spaces that some tokenizers ask for."""
        return str(
            self.tokenizer.decode(
                list(ids), skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False
            )
        )

    def chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, object] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[int]:
        """Return the prompt ids of a conversation under the tokenizer's chat template, which may tell of `tools`.

        Raises InvalidRequest when there is no template, when the template refuses the conversation, and for
        lone surrogates.
        """
        if not self.tokenizer.chat_template:
            raise InvalidRequest(
                "the model has no chat template: use /v1/completions, set engine.chat_template, or serve a chat model",
                param="messages",
            )
        extra: dict[str, Any] = dict(template_kwargs or {})
        reserved = {"self", "messages", *inspect.signature(self.tokenizer.apply_chat_template).parameters}
        if taken := sorted(extra.keys() & reserved):
            raise InvalidRequest(
                f"chat_template_kwargs may not set {taken[0]!r}: it holds variables of the template only",
                param="chat_template_kwargs",
            )
        for message in messages:
            check_unicode(message["content"], param="messages")
        conversation: list[Any] = [
            {key: value for key, value in message.items() if key in Message.__annotations__} for message in messages
        ]
        try:
            text = self.tokenizer.apply_chat_template(
                conversation,
                tools=[dict(tool) for tool in tools] or None,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                **extra,
            )
        except (TemplateError, ValueError, TypeError) as error:
            raise InvalidRequest(f"the chat template refuses this conversation: {error}", param="messages") from error
        return self.encode(str(text))  # the template writes the special tokens itself

    @cached_property
    def tool_template(self) -> str | None:
        """The chat template that tells the model of functions to call; None where no template does."""
        if not self.tokenizer.chat_template:
            return None
        template: str = self.tokenizer.get_chat_template(tools=[{}])
        return template if reads_tools(template) else None

    def piece(self, previous: int | None, token_id: int) -> bytes:
        """Return what `token_id` adds to a text that ends with the token `previous`; None: an empty text."""
        if previous is None:
            plain = self._table[token_id]
            drops_space = self._spelling.space_mark is not None and plain.startswith(b" ")
            return self.decode([token_id], skip_special_tokens=False).encode() if drops_space else plain
        if self.exact:
            return self._table[token_id]
        before = self.decode([previous], skip_special_tokens=False)
        return self.decode([previous, token_id], skip_special_tokens=False).removeprefix(before).encode()

    @cached_property
    def drops_first_space(self) -> bool:
        """Whether a text that begins with a token `▁word` is shown without the space."""
        mark = self._spelling.space_mark
        marked = (id_ for token, id_ in self.tokens.items() if mark is not None and token.startswith(mark))
        first = next(marked, None)
        return first is not None and self.piece(None, first) != self._table[first]

    def _encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        ids: list[int] = self.tokenizer.encode(
            text, add_special_tokens=add_special_tokens, truncation=False, padding=False, verbose=False
        )
        return ids

    def _exact_ids(self, text: str) -> list[int] | None:
        """Return the spelling of `text` alone, or behind an anchor that is cut off again, if its bytes are right."""
        wanted = text.encode()
        for anchor in _ANCHORS:
            head = self._encode(anchor)
            ids = self._encode(anchor + text)
            tail = ids[len(head) :]
            if ids[: len(head)] != head or any(id_ >= self.size or id_ in self.special_ids for id_ in tail):
                continue
            if b"".join([self._table[id_] for id_ in tail]) == wanted:
                return tail
        return None

    def _bytewise(self, character: str) -> list[int]:
        try:
            return [self._byte_ids[byte] for byte in character.encode()]
        except KeyError as error:
            raise ValueError(
                f"the tokenizer cannot spell {character!r} inside a text: use a model with byte-level tokens"
            ) from error

    @cached_property
    def _framing(self) -> list[str]:
        """Strings of the special tokens, without space around them."""
        strings = (self.added[id_].strip() for id_ in self.special_ids if id_ in self.added)
        return [each for each in strings if each]

    @cached_property
    def _byte_ids(self) -> dict[int, int]:
        """Ids of the tokens of one byte."""
        ids = range(self.size)
        return {self._table[i][0]: i for i in ids if len(self._table[i]) == 1 and i not in self.special_ids}

    @cached_property
    def _table(self) -> list[bytes]:
        table = [b""] * self.rows
        for token, id_ in self.tokens.items():
            exact = self._spelling.token_bytes(token)
            table[id_] = self.decode([id_], skip_special_tokens=False).encode() if exact is None else exact
        for id_, content in self.added.items():
            table[id_] = content.encode()
        return table


def check_unicode(text: str, param: str | None = None) -> None:
    """Raise InvalidRequest if `text` holds half of a surrogate pair, which no encoding can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(
            f"the text holds a lone surrogate at character {error.start}: send valid Unicode",
            param=param,
            code="invalid_unicode",
        ) from error


class TextStream:
    """Incremental detokeniser of one sequence.

    The texts that `push` and `flush` return concatenate to `vocabulary.decode` of all ids, cut at the stop
    string that is complete first (the longest one, where several end together). SentencePiece
    vocabularies decode a run of byte tokens that is no UTF-8 to more replacement characters than this does.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        *,
        stop: tuple[str, ...] = (),
        ends: tuple[str, ...] = (),
        include_stop: bool = False,
        skip_special: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """`ends` end a text as `stop` do, but are never shown or told of; `shown` are special tokens that are text.

        An end that begins with line breaks holds without them where the text begins.
        """
        self._vocabulary = vocabulary
        self._stop = stop
        self._ends = ends
        self._include_stop = include_stop
        self._skipped = vocabulary.special_ids - shown if skip_special else frozenset()
        self._strings = (*((each, False) for each in stop), *((each, True) for each in ends))  # quiet ones: True
        self._openings = tuple({each.lstrip("\n"): None for each in ends})
        self._beginnings = frozenset(each[:1] for each, _ in self._strings)
        self._longest = max((len(each) for each, _ in self._strings), default=0)
        self._utf8 = _UTF8("replace")  # holds the bytes of an incomplete character
        self._previous: int | None = None
        self._held = ""  # text that may yet turn out to begin a stop string
        self._final: list[str] = []
        self.stopped: str | None = None

    @property
    def text(self) -> str:
        """All text returned so far."""
        return "".join(self._final)

    @property
    def stop_reason(self) -> str | None:
        """The string among those asked for that has ended the text."""
        return self.stopped if self.stopped in self._stop else None

    def push(self, token_id: int) -> str:
        """Take one token and return the text that is certain now; nothing after a stop string."""
        if self.stopped is not None or token_id in self._skipped:
            return ""
        piece = self._vocabulary.piece(self._previous, token_id)
        self._previous = token_id
        return self._emit(self._utf8.decode(piece), last=False)

    def flush(self) -> str:
        """Return the text held back so far: the sequence has ended."""
        if self.stopped is not None:
            return ""
        return self._emit(self._utf8.decode(b"", final=True), last=True)

    def fork(self, *, whole: bool = True) -> TextStream:
        """Return an independent copy; one that is not `whole` goes on alike and has not all `text` so far."""
        copy = TextStream.__new__(TextStream)
        copy.__dict__.update(self.__dict__)
        copy._utf8 = _UTF8("replace")
        copy._utf8.setstate(self._utf8.getstate())
        copy._final = self._final.copy() if whole else self._final[-1:]  # whether there was any counts
        return copy

    def restart(self, ids: Sequence[int]) -> TextStream:
        """Return a stream with the same options that has taken `ids` and nothing else."""
        fresh = TextStream(self._vocabulary, stop=self._stop, ends=self._ends, include_stop=self._include_stop)
        fresh._skipped = self._skipped
        for token_id in ids:
            fresh.push(token_id)
        return fresh

    def _emit(self, new: str, last: bool) -> str:
        if self._longest:
            text = self._held + new
            sure = self._first_stop(text)
            if sure is None:
                sure = len(text) if last else len(text) - self._maybe_stop(text)
            self._held = "" if self.stopped is not None else text[sure:]
            new = text[:sure]
        if new:
            self._final.append(new)
        return new

    def _first_stop(self, text: str) -> int | None:
        """Return where the text ends because of a stop string, if one is complete."""
        hits = [
            (at + len(string), quiet, at, string) for string, quiet in self._strings if (at := text.find(string)) >= 0
        ]
        if not self._final:
            hits += [(len(string), True, 0, string) for string in self._openings if text.startswith(string)]
        if not hits:
            return None
        end, quiet, start, self.stopped = min(hits)
        return end if self._include_stop and not quiet else start

    def _maybe_stop(self, text: str) -> int:
        """Return the length of the longest end of `text` with which a stop string begins."""
        if not self._final and any(string.startswith(text) for string in self._openings):
            return len(text)
        for at in range(max(len(text) - self._longest + 1, 0), len(text)):
            if text[at] in self._beginnings and any(string.startswith(text[at:]) for string, _ in self._strings):
                return len(text) - at
        return 0
