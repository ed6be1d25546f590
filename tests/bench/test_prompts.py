"""Our own prompts, those of other people, and what is said of lines that are none."""

import json
import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from trimtab.bench.errors import BenchError
from trimtab.bench.prompts import SHOWN, Prompt, evenly, read_prompts

ROOT = Path(__file__).parents[2]
COMMON = re.findall(
    r"\w+",
    "about after and answer are can describe for from give has how its like make not one short some tell that the "
    "there think this through two was were what when which who why will with words write you your",
)
OWN = read_prompts("trimtab", None).prompts


def lines(path: Path, *each: object) -> str:
    """A file with these lines, given as JSON values or as bytes."""
    written = (line if isinstance(line, bytes) else json.dumps(line).encode() for line in each)
    path.write_bytes(b"\n".join(written) + b"\n")
    return str(path)


def refusal(source: str) -> str:
    with pytest.raises(BenchError) as caught:
        read_prompts(source, None)
    return str(caught.value)


def said(prompt: Prompt) -> str:
    return " ".join(message["content"] for message in prompt.conversation)


# --- the prompts that come with trimtab


def test_own_prompts_are_twenty_of_each_kind_and_all_different() -> None:
    categories = ("helpful", "harmless", "style", "constraints", "code", "languages")
    assert Counter(prompt.category for prompt in OWN) == dict.fromkeys(categories, 20)
    assert {prompt.id for prompt in OWN} == {f"{name}-{number:02}" for name in categories for number in range(1, 21)}
    assert len({said(prompt) for prompt in OWN}) == len(OWN)


def test_own_prompts_are_short_and_begin_with_every_kind() -> None:
    """The first few are what is timed."""
    assert all(len(said(prompt).split()) < 40 and len(said(prompt).encode()) < 200 for prompt in OWN)
    assert [prompt.category for prompt in OWN] == [prompt.category for prompt in OWN[:6]] * 20


def test_own_prompts_are_of_many_languages_and_forms() -> None:
    languages = Counter(prompt.language for prompt in OWN if prompt.category == "languages")
    assert len(languages) >= 8
    assert "en" not in languages
    assert {prompt.language for prompt in OWN if prompt.category != "languages"} == {"en"}
    roles = [tuple(message["role"] for message in prompt.conversation) for prompt in OWN]
    assert sum(each[0] == "system" for each in roles) == 12
    assert sum("assistant" in each for each in roles) == 10
    assert set(roles) == {("user",), ("system", "user"), ("user", "assistant", "user")}


@pytest.mark.parametrize("file", ["training/demo/prompts.jsonl", "benchmarks/prompts.jsonl"])
def test_no_own_prompt_is_like_one_that_guides_were_trained_or_measured_on(file: str) -> None:
    seen = [meant(json.loads(line)["prompt"]) for line in (ROOT / file).read_text().splitlines()]
    ours = {prompt.id: meant(said(prompt)) for prompt in OWN}
    assert all(map(len, ours.values()))
    assert not [
        (name, other)
        for name, own in ours.items()
        for other in seen
        if len(own & other) > 0.5 * min(len(own), len(other))
    ]


def meant(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]{3,}|[\u3041-\u9fff]", text.lower())) - {*COMMON}


# --- a part of a set


def test_a_part_has_as_many_of_each_kind_and_keeps_the_order() -> None:
    ids = ("a0", "a1", "a2", "a3", "a4", "b0", "b1", "c0")
    prompts = [Prompt(id=each, category=each[0], prompt="x") for each in ids]
    chosen = [[prompt.id for prompt in evenly(prompts, limit)] for limit in range(1, 10)]
    assert chosen[3] == ["a0", "a1", "b0", "c0"]
    assert chosen[5] == ["a0", "a1", "a2", "b0", "b1", "c0"]
    assert chosen[7] == chosen[8] == [prompt.id for prompt in prompts]
    assert all(set(fewer) < set(more) for fewer, more in pairwise(chosen[:8]))


def test_a_part_of_our_own_has_every_kind_and_language_early() -> None:
    part = read_prompts("trimtab", 40).prompts
    assert set(Counter(prompt.category for prompt in part).values()) == {6, 7}
    assert len({prompt.language for prompt in part}) == 7


@pytest.mark.parametrize("limit", [0, -1])
def test_a_part_without_prompts_is_refused(limit: int) -> None:
    with pytest.raises(BenchError, match=f"limit of {limit}"):
        read_prompts("trimtab", limit)


# --- files in our form


def test_only_the_text_must_be_there(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi there"}]
    source = lines(
        tmp_path / "mine.jsonl",
        '\ufeff{"prompt": " one\u2028line "}\r'.encode(),
        b"",
        {"messages": turns, "id": "b", "category": "talk", "language": "fr"},
    )
    found = read_prompts(source, None)
    assert found.name == "mine.jsonl"
    first, second = found.prompts
    assert (first.id, first.category, first.language) == ("1", "mine", "en")
    assert first.conversation == ({"role": "user", "content": " one\u2028line "},)
    assert (second.id, second.category, second.language) == ("b", "talk", "fr")
    assert second.conversation == tuple(turns)


BAD = [
    (b'{"prompt": "a"', "not JSON (Expecting ',' delimiter at character 15)"),
    (b"\xff", "not UTF-8"),
    (b"[" * 100_000, "not JSON (maximum recursion depth exceeded"),
    (["a"], "list instead of an object"),
    ({}, "no prompt"),
    ({"prompt": None, "id": "x"}, "no prompt"),
    ({"prompt": "a", "messages": []}, "both prompt and messages: keep one"),
    ({"prompt": " \n"}, "prompt: empty"),
    ({"prompt": ["a"]}, "prompt: list instead of a text"),
    ({"prompt": "\ud800"}, "prompt: half a surrogate pair, which is no character"),
    ({"prompt": "a", "id": ""}, "id: empty"),
    ({"prompt": "a", "id": 7}, "id: int instead of a text"),
    ({"prompt": "a", "id": "1"}, "line 1 has the id '1' already"),
    ({"prompt": "a", "score": 1}, "unknown key 'score': the keys are id, category, language, prompt, messages"),
    ({"prompt": "", "score": 1}, "prompt: empty; unknown key 'score': the keys are id, category, language, prom"),
    ({"messages": []}, "messages: empty"),
    ({"messages": "a"}, "messages: str instead of a list of messages"),
    ({"messages": ["a"]}, "messages.0: str instead of a message"),
    ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
    ({"messages": [{"role": "human", "content": "a"}]}, "messages.0.role: 'human' instead of 'system', 'user' or 'a"),
    ({"messages": [{"role": "user", "content": ""}]}, "messages.0.content: empty"),
    ({"messages": [{"role": "user", "content": "a", "n": 1}]}, "unknown key 'messages.0.n': the keys are role, conte"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "messages: the last message is the assistant's: end with"),
]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_what_is_wrong_with_a_line_is_said(tmp_path: Path, line: object, reason: str) -> None:
    source = lines(tmp_path / "set.jsonl", {"prompt": "fine"}, b" ", line, {"prompt": "fine, too"})
    told = refusal(source)
    assert told.startswith(f"{source}, line 3: {reason}")
    assert "\n" not in told


def test_every_bad_line_is_named_in_order_up_to_a_number(tmp_path: Path) -> None:
    source = lines(tmp_path / "set.jsonl", {"prompt": "fine"}, b"?", {"id": "x"}, b"\xff", *[b"?"] * SHOWN)
    *named, rest = refusal(source).splitlines()
    assert [line.split(": ")[0] for line in named] == [f"{source}, line {number}" for number in range(2, 2 + SHOWN)]
    assert rest == "and 3 more lines"


def test_a_set_without_prompts_is_refused(tmp_path: Path) -> None:
    assert "holds no prompts: a line looks like {" in refusal(lines(tmp_path / "set.jsonl", b"\n"))
    assert "holds no prompts: a line looks like one prompt" in refusal(lines(tmp_path / "set.txt", b""))


def test_a_file_that_cannot_be_is_refused(tmp_path: Path) -> None:
    assert refusal("nowhere.jsonl").startswith("no file nowhere.jsonl: prompts come from trimtab,")
    assert refusal(str(tmp_path)).startswith(f"no file {tmp_path}")
    assert ".jsonl" in refusal(lines(tmp_path / "set.csv", b"a,b"))


def test_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    def digest(*each: object, limit: int | None = None) -> str:
        return read_prompts(lines(tmp_path / "set.jsonl", *each), limit).digest

    one, two = {"id": "a", "prompt": "one"}, {"id": "b", "prompt": "two"}
    known = digest(one, two)
    assert re.fullmatch("[0-9a-f]{12}", known)
    assert known == digest(one, {**two, "category": "set"}) == digest(one, two, limit=9)
    turns = [{"role": "user", "content": "two"}]
    assert known == digest(one, {"id": "b", "messages": turns})  # asked in the same words
    others = {
        digest(two, one),
        digest(one, two, limit=1),
        digest(one, {**two, "prompt": "two "}),
        digest(one, {**two, "id": "c"}),
        digest(one, {"id": "b", "messages": [{"role": "system", "content": "x"}, *turns]}),
    }
    assert len(others - {known}) == 5


# --- files of other people


def test_a_key_reads_lines_of_any_form(tmp_path: Path) -> None:
    noted = [{"role": "user", "content": "two", "weight": 0}]
    source = lines(
        tmp_path / "goals.jsonl",
        {"goal": "one", "id": 11, "category": "risky", "target": "Sure", "prompt": "not this"},
        {"goal": noted, "id": 12, "category": ["x"], "language": "de"},
    )
    found = read_prompts(f"{source}#goal", None)
    assert found.name == "goals.jsonl#goal"
    assert [(each.id, each.category, each.language) for each in found.prompts] == [
        ("11", "risky", "en"),
        ("12", "goals", "de"),
    ]
    assert [said(each) for each in found.prompts] == ["one", "two"]
    assert refusal(f"{lines(tmp_path / 'x.jsonl', {'goal': 'a'}, {'goal': 1}, {'gaol': 'a'})}#goal").splitlines() == [
        f"{tmp_path}/x.jsonl, line 2: goal: int instead of a text",
        f"{tmp_path}/x.jsonl, line 3: no goal",
    ]


def test_ids_that_are_not_different_are_numbers_of_lines(tmp_path: Path) -> None:
    source = lines(tmp_path / "goals.jsonl", {"goal": "one", "id": "a"}, b"", {"goal": "two", "id": "a"})
    assert [prompt.id for prompt in read_prompts(f"{source}#goal", None).prompts] == ["1", "3"]


def test_a_key_that_is_nowhere_is_refused_with_the_keys_there_are(tmp_path: Path) -> None:
    source = lines(tmp_path / "goals.jsonl", {"goal": "one"}, {"target": "two"})
    assert refusal(f"{source}#gaol") == (
        f"no line of {source} has the key 'gaol': the keys are goal, target; did you mean {source}#goal?"
    )


def test_without_a_key_the_likely_one_is_named(tmp_path: Path) -> None:
    source = lines(tmp_path / "goals.jsonl", {"goal": "Make me a cup of tea.", "from": "x", "n": 1})
    told = f"{source}, line 1: no prompt: if it is what stands under 'goal', take {source}#goal"
    assert refusal(source) == told
    assert read_prompts(told.rpartition(" ")[2], None).prompts[0].prompt == "Make me a cup of tea."


def test_a_file_may_have_the_sign_in_its_name(tmp_path: Path) -> None:
    assert len(read_prompts(lines(tmp_path / "a#b.jsonl", {"prompt": "x"}), None).prompts) == 1


def test_text_files_have_a_prompt_on_each_line(tmp_path: Path) -> None:
    source = lines(tmp_path / "list.txt", "Grüß Gott".encode(), b"", b'{"a": 1}\r', b"\xff")
    assert refusal(source) == f"{source}, line 4: not UTF-8"
    assert "leave out #a" in refusal(f"{source}#a")
    lines(tmp_path / "list.txt", "Grüß Gott".encode(), b"", b'{"a": 1}\r')
    found = read_prompts(source, None).prompts
    assert [(prompt.id, prompt.category, said(prompt)) for prompt in found] == [
        ("1", "list", "Grüß Gott"),
        ("3", "list", '{"a": 1}'),
    ]


def test_packages_are_read_without_running_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "listed_prompts" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "listed_prompts" / "__init__.py").write_text("raise RuntimeError")
    lines(folder / "goals.jsonl", {"goal": "one"})
    monkeypatch.syspath_prepend(str(tmp_path))
    found = read_prompts("package:listed_prompts/data/goals.jsonl#goal", None)
    assert found.name == "package:listed_prompts/data/goals.jsonl#goal"
    assert said(found.prompts[0]) == "one"
    assert "listed_prompts" not in sys.modules
    assert "are data/goals.jsonl" in refusal("package:listed_prompts/goal.jsonl")


def test_a_package_that_is_not_there_is_named() -> None:
    assert "pip install no_such_package" in refusal("package:no_such_package/a.jsonl")
    assert "write package:NAME/FILE" in refusal("package:json")
    assert "write package:NAME/FILE" in refusal("package:../a.jsonl")
    assert "nor any other" in refusal("package:this/a.jsonl")
