"""Whether a remote server spells texts as the local vocabulary does: what is asked, and the hash of the answers."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from pydantic_core import to_json

from trimtab.engine.vocabulary import Vocabulary

_PLAIN = (
    "The quick brown fox jumps over 13 lazy dogs.",
    " leading, trailing and   several  spaces \t\ttabs\n\n\nlines\r\nand more ",
    "0 12 123 1234 12345 3.14159 1,000,000 0x7f 1e-9 2026-01-31",
    "na\u00efve caf\u00e9 Stra\u00dfe \u4f60\u597d\u4e16\u754c \u043f\u0440\u0438\u0432\u0435\u0442"
    " \u0645\u0631\u062d\u0628\u0627 \u0939\u093f\u0928\u094d\u0926\u0940 \ud55c\uad6d\uc5b4",
    "\U0001f600\U0001f9d1\u200d\U0001f680 e\u0301 \ufb01 \u00a0\u3000 \u2028 \ufeff",
    "def f(x):\n    return {'a': [x ** 2, \"b\"]}  # <|im_start|> </s> [INST]\n",
)
_WORDS = 256
_SHOWN = 4
Told = Sequence[Sequence[int]] | Sequence[str]
"""what a server makes of each text: its ids or, of a server that tells none, the text that it reads in ours"""


@dataclass(frozen=True, slots=True)
class Spelling:
    """Texts and the token ids that the local vocabulary spells them with, without special tokens around them."""

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    decoded: tuple[str, ...]
    """what the ids are read as; empty where special tokens are among them"""

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> "Spelling":
        """Texts in which tokenizers differ: scripts, digits, spaces, special tokens, words all over the vocabulary."""
        specials = "".join(vocabulary.added[id_] for id_ in sorted(vocabulary.added))
        step = max(1, vocabulary.size // _WORDS)
        words = (vocabulary.token_bytes(id_).decode("utf-8", "ignore") for id_ in range(0, vocabulary.size, step))
        texts = tuple(text for text in (*_PLAIN, specials, "\n".join(words)) if text)
        ids = tuple(tuple(vocabulary.encode(text)) for text in texts)
        plain = (not vocabulary.special_ids & set(each) for each in ids)
        decoded = (vocabulary.decode(each) if safe else "" for each, safe in zip(ids, plain, strict=True))
        return cls(texts, ids, tuple(decoded))

    def differs(self, told: Told) -> str | None:
        """The first text that is spelled, or read, otherwise, and where it begins to differ; None: none is."""
        mine: Told = self.decoded if any(isinstance(each, str) for each in told) else self.ids
        for text, ours, theirs in zip(self.texts, mine, told, strict=True):
            if list(ours) != list(theirs):
                at = next(i for i, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b)
                there, here = list(theirs[at : at + _SHOWN]), list(ours[at : at + _SHOWN])
                return f"{text[:60]!r} is {there} there and {here} here, from place {at} on"
        return None


def hashed(told: Told) -> str:
    """The hash of what a tokenizer makes of the texts."""
    return hashlib.sha256(to_json(told)).hexdigest()
