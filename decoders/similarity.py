"""How alike two answers are, word by word: what minimum Bayes risk decoding adds up."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from trimtab.decoders.votes import normalise
from trimtab.decoders.weights import Floats

Similarity = Literal["token_f1", "rouge_l", "exact"]

BUNDLE = 16
"""texts whose longest common subsequences are found at once; more gain little, and memory grows with the square"""

# Japanese and Chinese are written without spaces: there each character is a word.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")


def similarities(texts: Sequence[str], how: Similarity) -> Floats:
    """Pairwise similarities (N, N) in [0, 1], symmetric, 1 on the diagonal.

    `exact` is 1 for the same normalised text, else 0. `token_f1` and `rouge_l` are 2 m / (words of one + words of the
    other): m counts the words that both have, or is the length of their longest common subsequence (Lin 2004).
    """
    plain = [normalise(text) for text in texts]
    distinct = {text: index for index, text in enumerate(dict.fromkeys(plain))}
    if how == "exact":
        matrix = np.eye(len(distinct))
    else:
        words = [words_of(text) for text in distinct]
        shared = common_words(words) if how == "token_f1" else common_subsequences(words)
        lengths = np.array([len(each) for each in words])
        matrix = 2.0 * shared / np.maximum(lengths[:, None] + lengths, 1)
        np.fill_diagonal(matrix, 1.0)  # of no words at all, too
    index = [distinct[text] for text in plain]
    return matrix[np.ix_(index, index)]


def words_of(text: str) -> list[str]:
    """The words without case and outer punctuation."""
    return [word for each in _WORD.findall(text) if (word := normalise(each))]


def common_words(texts: Sequence[Sequence[str]]) -> Floats:
    """Words that two texts have in common, each as often as in the text that has fewer of it: (N, N)."""
    holders: dict[str, list[tuple[int, int]]] = {}
    for index, words in enumerate(texts):
        for word, count in Counter(words).items():
            holders.setdefault(word, []).append((index, count))
    common = np.diag([float(len(words)) for words in texts])
    for held in holders.values():
        if len(held) > 1:
            indices, counts = np.array(held).T
            least = np.minimum.outer(counts, counts)
            np.fill_diagonal(least, 0)  # there already
            common[np.ix_(indices, indices)] += least
    return common


def common_subsequences(texts: Sequence[Sequence[str]]) -> Floats:
    """Lengths of the longest common subsequences of all pairs: (N, N)."""
    lengths = np.zeros((len(texts), len(texts)))
    for start in range(0, len(texts), BUNDLE):
        bundle = _Bundle(texts[start : start + BUNDLE])
        for i in range(start, len(texts)):
            found = bundle.common_subsequences(texts[i])
            lengths[i, start : start + BUNDLE] = lengths[start : start + BUNDLE, i] = found
    return lengths


class _Bundle:
    """Texts side by side in the bits of one integer, a word a bit, each text followed by one that takes its carry.

    A row of the dynamic program keeps a zero where the length grows by one (Hyyro 2004), so that a row of all texts
    costs one addition.
    """

    def __init__(self, texts: Sequence[Sequence[str]]) -> None:
        self.places: dict[str, int] = {}
        self.fields: list[tuple[int, int]] = []
        start = 0
        for words in texts:
            for place, word in enumerate(words, start):
                self.places[word] = self.places.get(word, 0) | 1 << place
            self.fields.append((start, (1 << len(words)) - 1))
            start += len(words) + 1

    def common_subsequences(self, words: Sequence[str]) -> list[int]:
        """Length of the longest common subsequence with each text."""
        full = row = sum(ones << start for start, ones in self.fields)
        for word in words:
            if matches := row & self.places.get(word, 0):
                row = (row + matches | row - matches) & full
        return [(ones & ~(row >> start)).bit_count() for start, ones in self.fields]
