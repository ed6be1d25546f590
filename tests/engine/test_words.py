import pytest

from trimtab.engine.words import split_words, word_starts


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        ("one two", ["one", " two"]),
        (" one,  two!\n\n", [" one,", "  two!", "\n\n"]),
        ("def f():\n\treturn 1", ["def", " f():", "\n\treturn", " 1"]),
        ("你好 world。ok", ["你", "好", " world。ok"]),
        ("テスト", ["テ", "ス", "ト"]),
        ("か\u3099葛\U000e0100", ["か\u3099", "葛\U000e0100"]),  # a voicing mark, a variation selector
        ("한국 말", ["한", "국", " 말"]),
        ("a👩‍👩‍👧🇫🇷 e\u0301t\u00e9", ["a👩‍👩‍👧🇫🇷", " e\u0301t\u00e9"]),
        ("𠀋b", ["𠀋", "b"]),
    ],
)
def test_words_of_many_scripts(text: str, words: list[str]) -> None:
    assert split_words(text) == words
    assert word_starts(text) == [len("".join(words[:n])) for n in range(len(words))]


def test_more_text_changes_the_last_word_only() -> None:
    text = " def  f(你好):\n\n  👩‍👩‍👧 か\u3099 x\t\n"
    for end in range(len(text)):
        starts = word_starts(text[:end])
        assert word_starts(text)[: len(starts)] == starts
        assert "".join(split_words(text[:end])) == text[:end]
