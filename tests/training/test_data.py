"""Training data: what a line may be, and what is said of one that cannot be used."""

from pathlib import Path

import pytest

from trimtab.training.data import Preference, Prompted, Rating, check_scores, read, read_any, split
from trimtab.training.errors import DataError

RATED = b'{"text": "fine", "score": 1}\n'


def written(place: Path, content: bytes) -> Path:
    file = place / "data.jsonl"
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"score: 1", "not JSON"),
        (b'{"text": "fine"', "not JSON"),
        (b'{"text": "caf\xe9", "score": 1}', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["fine", 1]', "list instead of an object"),
        (b"null", "NoneType instead of an object"),
        (b'{"text": 3, "score": 1}', "text: "),
        (b'{"text": "", "score": 1}', "text: "),
        (b'{"text": "\\ud800", "score": 1}', "text: "),
        (b'{"text": "fine", "score": "high"}', "score: "),
        (b'{"text": "fine", "score": "1"}', "score: "),
        (b'{"text": "fine", "score": true}', "score: "),
        (b'{"text": "fine", "score": null}', "score: "),
        (b'{"text": "fine", "score": NaN}', "score: "),
        (b'{"text": "fine", "score": 1e999}', "score: "),
        (b'{"text": "fine", "score": 1, "label": 2}', "unknown key 'label': the keys are text, prompt, answer, score"),
        (b'{"text": "fine"}', "'score' is missing"),
        (b'{"score": 1}', "a rating has a text, or a prompt and an answer"),
        (b'{"prompt": "q", "score": 1}', "a rating has a text, or a prompt and an answer"),
        (
            b'{"text": "fine", "prompt": "q", "answer": "a", "score": 1}',
            "a rating has a text, or a prompt and an answer",
        ),
        (b'{"prompt": "q", "chosen": "a", "rejected": "b"}', "'score' is missing"),  # not the kind of line 1
    ],
)
def test_bad_line_is_named_with_its_reason(tmp_path: Path, line: bytes, reason: str) -> None:
    file = written(tmp_path, RATED + b"\n" + line + b"\n" + RATED)
    with pytest.raises(DataError) as error:
        read_any(file, (Rating, Preference))
    assert str(error.value).startswith(f"{file} line 3: ")
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"prompt": "q", "chosen": "a", "rejected": "a"}', "chosen and rejected are the same text"),
        (b'{"prompt": "q", "chosen": "a"}', "'rejected' is missing"),
        (b'{"prompt": "q", "chosen": "a", "rejectd": "b"}', "rejected"),
        (b'{"prompt": [], "chosen": "a", "rejected": "b"}', "prompt: "),
        (b'{"prompt": [{"role": "judge", "content": "q"}], "chosen": "a", "rejected": "b"}', "prompt.0.role: "),
        (b'{"prompt": [{"content": "q"}], "chosen": "a", "rejected": "b"}', "'prompt.0.role' is missing"),
    ],
)
def test_first_line_may_be_the_bad_one(tmp_path: Path, line: bytes, reason: str) -> None:
    with pytest.raises(DataError, match="line 1: ") as error:
        read_any(written(tmp_path, line), (Rating, Preference, Prompted))
    assert reason in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n  \n\n"])
def test_file_without_examples(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=r"holds no examples: it needs lines like .*text.* or .*chosen"):
        read_any(written(tmp_path, content), (Rating, Preference))


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read .*: No such file"):
        read(tmp_path / "none.jsonl", Rating)
    with pytest.raises(DataError, match=r"cannot read .*: Is a directory"):
        read(tmp_path, Rating)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (b'{"text": "a", "score": -0.5}', Rating),
        (b'{"prompt": "q", "answer": "a", "score": 2}', Rating),
        (b'{"prompt": "q", "chosen": "a", "rejected": "b"}', Preference),
        (b'{"prompt": "q"}', Prompted),
    ],
)
def test_first_line_tells_the_kind(tmp_path: Path, line: bytes, kind: type) -> None:
    kinds = (Preference, Rating, Prompted)
    assert [type(record) for record in read_any(written(tmp_path, line + b"\r\n" + line), kinds)] == [kind, kind]


def test_prompt_is_a_text_or_messages(tmp_path: Path) -> None:
    lines = b'{"prompt": "q"}\n{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}'
    short, long = read(written(tmp_path, lines), Prompted)
    assert short.messages == ({"role": "user", "content": "q"},)
    assert [message["role"] for message in long.messages] == ["system", "user"]


def test_a_text_alone_answers_no_message(tmp_path: Path) -> None:
    lone, answer = read(
        written(tmp_path, RATED + b'{"prompt": "q", "answer": "a", "score": 1}'),
        Rating,
    )
    assert (lone.pair.messages, lone.pair.answer) == ((), "fine")
    assert (answer.pair.messages, answer.pair.answer) == (({"role": "user", "content": "q"},), "a")


def test_scores_of_one_class() -> None:
    check_scores(Path("d"), [1.0, 1.5])
    with pytest.raises(DataError, match="all 3 scores are 2: add examples of other scores"):
        check_scores(Path("d"), [2.0, 2.0, 2.0])


def test_split_keeps_a_key_together() -> None:
    examples = [f"prompt {index // 3}" for index in range(30)]
    kept, held = split(examples, 0.2, 0, lambda each: each)
    assert sorted(kept + held) == list(range(30))
    assert len(held) == 6
    assert not {examples[index] for index in kept} & {examples[index] for index in held}


def test_split_follows_seed_and_fraction() -> None:
    examples = list(range(100))
    held = split(examples, 0.1, 0, lambda each: each)[1]
    assert split(examples, 0.1, 0, lambda each: each)[1] == held
    assert split(examples, 0.1, 1, lambda each: each)[1] != held
    assert len(split(examples, 0.3, 0, lambda each: each)[1]) == 30


def test_split_of_one_prompt() -> None:
    with pytest.raises(DataError, match="4 examples are too few to hold out 1 of them: add more"):
        split(["q"] * 4, 0.1, 0, lambda each: each)
