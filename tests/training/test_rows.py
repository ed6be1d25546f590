"""Rows of ids: an answer behind its prompt, as the server would read and write it."""

from pathlib import Path

import pytest
from steered import load, user
from tiny import tiny_folder
from toy import byte_tokenizer

from trimtab.engine.loading import load_causal_lm
from trimtab.engine.vocabulary import Vocabulary
from trimtab.requests import GenerationRequest
from trimtab.training.errors import DataError
from trimtab.training.rows import answer_row, closing_id

EOS = 256


def spelled(text: str) -> list[int]:
    return byte_tokenizer().encode(text)


def vocabulary(template: str | None = "") -> Vocabulary:
    tokenizer = byte_tokenizer()
    if template != "":
        tokenizer.chat_template = template
    return Vocabulary(tokenizer)


def test_prompt_is_what_the_server_reads(tmp_path: Path) -> None:
    with load(tiny_folder(tmp_path / "base"), {}) as llm:
        served = list(llm.prepare(GenerationRequest(messages=tuple(user()))).prompt_ids)
        row = answer_row(llm.vocabulary, user(), "Yes", EOS, 256)
    assert row.ids == [*served, *spelled("Yes"), EOS]
    assert row.start == len(served)


def test_answer_is_spelled_as_text_even_where_it_names_a_special_token() -> None:
    row = answer_row(vocabulary(), user(), "<eos>", EOS, 256)
    assert row.ids[row.start :] == [*spelled("<") + spelled("eos>"), EOS]


def test_without_a_template_the_prompt_is_its_text() -> None:
    assert answer_row(vocabulary(None), user("Once"), " upon", EOS, 256) == ([*spelled("Once upon"), EOS], 4)


def test_text_of_its_own_follows_one_token() -> None:
    assert answer_row(vocabulary(), (), "Once", EOS, 256) == ([EOS, *spelled("Once"), EOS], 1)


def test_answer_without_an_end() -> None:
    assert answer_row(vocabulary(None), user("Once"), "!", None, 256) == ([*spelled("Once!")], 4)


@pytest.mark.parametrize(
    ("limit", "ids", "start"),
    [
        (9, [*spelled("prompt+!"), EOS], 7),
        (8, [*spelled("pompt+!"), EOS], 6),  # the first token stays: a BOS, or what all attention rests on
        (3, [*spelled("p!"), EOS], 1),
        (2, [*spelled("p!")], 1),
    ],
)
def test_long_prompt_loses_its_beginning_and_then_the_answer_its_end(limit: int, ids: list[int], start: int) -> None:
    assert answer_row(vocabulary(None), user("prompt+"), "!", EOS, limit) == (ids, start)


def test_conversation_that_the_template_refuses() -> None:
    refusing = vocabulary("{{ raise_exception('no system role') }}")
    with pytest.raises(DataError, match=r"no system role.*the answer that begins 'Well'"):
        answer_row(refusing, user(), "Well", EOS, 256)


def test_answer_ends_as_the_template_ends_it(tmp_path: Path) -> None:
    loaded = load_causal_lm(str(tiny_folder(tmp_path)))
    several = loaded.__class__(**{**vars(loaded), "eos_ids": frozenset({spelled("#")[0], spelled("$")[0], EOS})})
    ends_in_dollar = "{% for m in messages %}{{ m.content }}${% endfor %}"
    assert closing_id(several, vocabulary(ends_in_dollar)) == spelled("$")[0]
    assert closing_id(several, vocabulary(None)) == EOS  # the tokenizer's own
    assert closing_id(several, vocabulary("{% for m in messages %}{{ m.content }}{% endfor %}")) == EOS
    no_end = loaded.__class__(**{**vars(loaded), "eos_ids": frozenset()})
    assert closing_id(no_end, vocabulary()) is None
