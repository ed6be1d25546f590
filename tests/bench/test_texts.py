"""Words of many scripts, variety and repetition against counts by hand and against a plain definition."""

import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.bench.texts import distinct, repetition, words

ENGLISH = st.lists(st.text(st.sampled_from("abAB' ,.\n1_-"), max_size=40), max_size=4)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It's 3 o'clock -- naïve, isn't it?", ["it's", "3", "o'clock", "naïve", "isn't", "it"]),
        ("snake_case; a-b", ["snake_case", "a", "b"]),
        ("Café cafe\u0301", ["café", "café"]),  # one character, or a letter with an accent behind
        ("ПРИВЕТ, мир!", ["привет", "мир"]),
        ("हिन्दी में नमस्ते", ["हिन्दी", "में", "नमस्ते"]),  # vowel signs are no letters
        ("نیم\u200cپز شد", ["نیم\u200cپز", "شد"]),  # joined without a space
        ("안녕하세요 세계", ["안녕하세요", "세계"]),
        ("我喜欢茶。", ["我", "喜", "欢", "茶"]),
        ("Python用タワー", ["python", "用", "タ", "ワ", "ー"]),
        ("ดีครับ", ["ดี", "ค", "รั", "บ"]),
        ("Nice ❤\ufe0f 👍🏽 1️⃣!", ["nice", "1\ufe0f\u20e3"]),  # pictures are no words
        ("... — !", []),
    ],
)
def test_words(text: str, found: list[str]) -> None:
    assert words(text) == found


@given(ENGLISH)
def test_words_of_plain_text_are_runs_of_letters_digits_and_apostrophes(texts: list[str]) -> None:
    for text in texts:
        assert words(text) == re.findall(r"[\w']+", text.lower())


def test_distinct_falls_with_repetition_within_and_between_texts() -> None:
    assert distinct(["a b c", "d e"], 2) == 1.0
    assert distinct(["a b a b a"], 2) == 0.5
    assert distinct(["A b, c", "a b c"], 2) == 0.5
    assert distinct(["a b a b a"], 1) == 0.4
    assert distinct(["", "one"], 2) == distinct([], 1) == 1.0


def test_sequences_end_with_their_text() -> None:
    assert distinct(["a b", "c a b"], 2) == 2 / 3
    assert distinct(["a", "a"], 2) == 1.0


@given(ENGLISH, st.integers(1, 5))
def test_distinct_is_the_share_of_first_times(texts: list[str], n: int) -> None:
    runs = Counter(
        " ".join(each[i : i + n]) for each in map(words, texts) for i in range(len(each)) if i + n <= len(each)
    )
    assert distinct(texts, n) == (len(runs) / runs.total() if runs else 1.0)


def test_repetition_counts_sequences_that_stood_there_before() -> None:
    assert repetition("one two three four five") == 0.0
    twice, again = "round and round it goes round and round it", "So it goes, and so it goes."
    assert repetition(twice) == pytest.approx(1 / 6)  # the last of six sequences is the first again
    assert repetition(again, n=3) == pytest.approx(1 / 5)
    assert repetition("la " * 13) == pytest.approx(0.9)
    assert repetition("la la la") == repetition("") == 0.0


def test_circles_are_seen_without_spaces_between_words() -> None:
    assert repetition("你好吗" * 4) == pytest.approx(6 / 9)
    assert repetition("今天天气很好我们去散步") == 0.0
