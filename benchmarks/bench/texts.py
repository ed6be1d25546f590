"""What answers are worth as texts, whatever they say: how varied they are, and whether they go round in circles."""

import re
import unicodedata
from collections.abc import Iterator, Sequence

WORDS = 4
"""length of the sequences that `repetition` looks for"""

# Accents, vowel signs and joiners, which Python's \w leaves out: without them a word of Hindi would fall to pieces.
_MARKS = "\u200c\u200d" + "".join(c for c in map(chr, range(0x10000)) if unicodedata.category(c).startswith("M"))
# Thai, Lao, Burmese, Khmer, Japanese, Chinese: scripts that put no spaces between words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_WORD = re.compile(rf"(?=\w)[{_UNSPACED}][{_MARKS}]*|(?![{_UNSPACED}])[\w'](?:(?![{_UNSPACED}])[\w'{_MARKS}])*")


def words(text: str) -> list[str]:
    """Return the words in lower case, without punctuation; apostrophes belong to words.

    Where a script has no spaces between words every character is one, with its marks: finding the words would take a
    dictionary. So the measures below compare answers of one language with each other, not languages.
    """
    return _WORD.findall(unicodedata.normalize("NFC", text.lower()))


def distinct(texts: Sequence[str], n: int) -> float:
    """Return distinct-n (Li et al. 2016): different sequences of n words over all of them, 1 if there are none.

    It falls when an answer goes round in circles, when all answers say the same, and with their number and length:
    compare it among as many answers of like length.
    """
    runs = [run for text in texts for run in _runs(words(text), n)]
    return len(set(runs)) / len(runs) if runs else 1.0


def repetition(text: str, n: int = WORDS) -> float:
    """Return the share of sequences of n words that stood in the same text before, 0 if there are none."""
    return 1.0 - distinct([text], n)


def _runs(each: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(each[start:] for start in range(n)), strict=False)
