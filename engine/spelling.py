"""How tokenizers spell bytes as token strings: GPT-2's byte map and SentencePiece's marks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Spelling:
    """The spelling of one fast tokenizer, read off its decoder."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        steps = _decoder_steps(tokenizer)
        self.byte_level = any(step["type"] == "ByteLevel" for step in steps)
        self.space_mark = None if self.byte_level else _space_mark(steps)
        """stands for a space in a SentencePiece vocabulary, None in others"""
        self._byte_fallback = any(step["type"] == "ByteFallback" for step in steps)

    @property
    def exact(self) -> bool:
        """Whether the text of a sequence is the concatenation of its tokens' bytes."""
        return self.byte_level or self.space_mark is not None

    def token_bytes(self, token: str) -> bytes | None:
        """Return the bytes that a token string spells, None where only the decoder knows."""
        if self.byte_level:
            try:
                return bytes(_BYTES[character] for character in token)
            except KeyError:  # outside the map: the decoder takes such a token literally
                return token.encode()
        if self.space_mark is None:
            return None
        if self._byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace(self.space_mark, " ").encode()


def _byte_map() -> dict[str, int]:
    """Return GPT-2's stand-ins for the 256 bytes: itself if printable, else the next from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES: Final = _byte_map()


def _decoder_steps(tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return the steps of the tokenizer's decoder, as written in tokenizer.json."""
    decoder = tokenizer.backend_tokenizer.decoder
    if decoder is None:
        return []
    described = json.loads(decoder.__getstate__())
    return list(described["decoders"]) if described["type"] == "Sequence" else [described]


def _space_mark(steps: list[dict[str, Any]]) -> str | None:
    """Return the character that stands for a space in SentencePiece vocabularies."""
    for step in steps:
        if step["type"] == "Metaspace":
            return str(step["replacement"])
        if step["type"] == "Replace" and step["content"] == " ":
            return str(step["pattern"]["String"])
    return None
