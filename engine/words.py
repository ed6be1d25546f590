"""Words of a text, as the places where one model may take over from another."""

import re
from typing import Final

_IDEOGRAPHS: Final = (  # kana, Han, Hangul: scripts that write no spaces, or short blocks
    r"\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
_MARKS: Final = r"[\u3099\u309a\ufe00-\ufe0f\U000e0100-\U000e01ef]*"  # voicing marks, variation selectors
_WORD: Final = re.compile(rf"\s*(?:[{_IDEOGRAPHS}]{_MARKS}|[^\s{_IDEOGRAPHS}]+)|\s+")


def split_words(text: str) -> list[str]:
    """Return the words of `text`, which concatenate to it.

    A word is the whitespace before it and a run of other characters; an ideograph, a kana or a syllable of Hangul is
    a word of its own, and so is whitespace at the end. More text changes the last word only.
    """
    return _WORD.findall(text)


def word_starts(text: str) -> list[int]:
    """Return the offsets, in characters, at which the words of `text` start."""
    return [word.start() for word in _WORD.finditer(text)]
