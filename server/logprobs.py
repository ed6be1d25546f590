"""Log-probabilities in the two forms of the OpenAI API."""

import codecs
from collections.abc import Sequence
from typing import Any

from trimtab.engine.results import TokenLogprob
from trimtab.engine.vocabulary import Vocabulary

LOWEST = -9999.0
"""what OpenAI writes for minus infinity, which JSON cannot"""


def chat_logprobs(tokens: Sequence[TokenLogprob], vocabulary: Vocabulary) -> dict[str, Any]:
    """`{content: [{token, logprob, bytes, top_logprobs}], refusal: null}`"""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = vocabulary.token_bytes(token)
        return {"token": _text(raw), "logprob": max(logprob, LOWEST), "bytes": list(raw)}

    content = [
        {**entry(t.id, t.logprob), "top_logprobs": [entry(token, logprob) for token, logprob in t.top]} for t in tokens
    ]
    return {"content": content, "refusal": None}


class TextLogprobs:
    """Log-probabilities of one text completion, piece by piece.

    Offsets count characters of the whole text, beginning with `offset`; a special token that `skip_special`
    keeps out of the text has the offset of what follows. `as_ids` names tokens `token_id:ID`, so that tokens whose
    texts look alike can be told apart.
    """

    def __init__(self, vocabulary: Vocabulary, offset: int, *, skip_special: bool, as_ids: bool = False) -> None:
        self._vocabulary = vocabulary
        self._as_ids = as_ids
        self._skipped = vocabulary.special_ids if skip_special else frozenset()
        self._offset = offset
        self._previous: int | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """`{tokens, token_logprobs, top_logprobs, text_offset}` of the next tokens."""
        return self._told([token.id for token in tokens], tokens, [self._advance(token.id) for token in tokens])

    def echo(self, ids: Sequence[int], tokens: Sequence[TokenLogprob | None], text: str, silent: int) -> dict[str, Any]:
        """The same of a prompt that is echoed as `text`, of which the first `silent` tokens are no part."""
        offsets = [self._offset] * silent + [min(self._advance(id_), len(text)) for id_ in ids[silent:]]
        return self._told(ids, tokens, offsets)

    def _told(
        self, ids: Sequence[int], tokens: Sequence[TokenLogprob | None], offsets: Sequence[int]
    ) -> dict[str, Any]:
        return {
            "tokens": [self._token(id_) for id_ in ids],
            "token_logprobs": [None if token is None else max(token.logprob, LOWEST) for token in tokens],
            "top_logprobs": [None if token is None else self._top(token) for token in tokens],
            "text_offset": offsets,
        }

    def _advance(self, token: int) -> int:
        """The offset of the character that the token's first byte belongs to."""
        if token in self._skipped:
            return self._offset
        piece = self._vocabulary.piece(self._previous, token)
        self._previous = token
        waiting = self._decoder.getstate()[0]
        first = self._decoder.decode(piece[:1])
        # A first byte that does not continue the waiting ones turns them into a replacement character.
        start = self._offset + (1 if waiting and first.startswith("\ufffd") else 0)
        self._offset += len(first) + len(self._decoder.decode(piece[1:]))
        return start

    def _token(self, token: int) -> str:
        if self._as_ids:
            return f"token_id:{token}"
        return _text(self._vocabulary.token_bytes(token))

    def _top(self, token: TokenLogprob) -> dict[str, float]:
        # Parts of characters may look alike: the likeliest of them stays.
        return {self._token(other): max(logprob, LOWEST) for other, logprob in reversed(token.top)}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
