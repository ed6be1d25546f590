"""The files of a run: what is read back after a kill, and what two runs do to each other."""

from pathlib import Path
from typing import Any

import pytest

from trimtab.bench.errors import BenchError
from trimtab.bench.folder import Drawn, Scores, opened
from trimtab.bench.plan import Options, Plan, different
from trimtab.bench.records import Answer, Conditions, Considered, Setting


def answer(prompt: str, **changes: Any) -> Answer:
    return Answer(setting="s", concurrency=1, prompt=prompt, seed=0, part=0, sent=1.5, **changes)


def plan(**changes: Any) -> Plan:
    conditions: dict[str, Any] = {
        "url": "http://there", "model": "m", "reward": "r", "gold": None, "prompts": "p", "digest": "d", "seed": 0,
        "repeats": 1, "max_tokens": 8, "temperature": 1.0, "version": "1", "commit": None, "dtype": "float32",
        "device": "cpu", "machine": {"cores": 2, "cpu": "x"},
    }  # fmt: skip
    settings = (Setting(name="base"), Setting(name="s", decoding={"strategy": "args", "w": 2}))
    made = Plan(options=Options(), settings=settings, levels={"s": "token"}, conditions=Conditions(**conditions))
    return made.model_copy(update={"conditions": made.conditions.model_copy(update=changes)})


def test_what_was_added_is_read_back(tmp_path: Path) -> None:
    considered = (Considered(reward=1.0, gold=0.5, tokens=3), Considered(reward=None, gold=None, tokens=2))
    drawn = [Drawn(text="a\u2028\n", tokens=3, rewards={"r": 1.0}), Drawn(text="b", tokens=2, rewards={"r": None})]
    with opened(tmp_path / "run", print) as folder:
        folder.begin(plan())
        folder.add(answer("one", text="é\u2028"), drawn)
        folder.add(answer("two", error="refused"), ())
        folder.add(answer("three"), ())
        assert [each.prompt for each in folder.unscored] == ["one", "three"], "what failed needs no score"
        folder.score(Scores(key=("s", 1, "one", 0), reward=1.0, gold=0.5, considered=considered))
        folder.remember("s", 1, 70.0)
        folder.remember("s", 1, 60.0)
    with opened(tmp_path / "run", print) as folder:
        assert folder.plan == plan()
        one, three = folder.scored()
        assert (one.text, one.reward, one.gold, one.considered) == ("é\u2028", 1.0, 0.5, considered)
        assert three.prompt == "three", "what failed is asked anew"
        assert folder.drawn["s", 1, "one", 0] == tuple(drawn)
        assert [each.prompt for each in folder.unscored] == ["three"]
        assert (folder.peaks, folder.part, folder.rows) == ({("s", 1): 70.0}, 1, None)


@pytest.mark.parametrize("cut", [1, 20])
def test_half_a_line_is_dropped_and_the_next_stands_by_itself(tmp_path: Path, cut: int) -> None:
    said: list[str] = []
    with opened(tmp_path / "run", said.append) as folder:
        folder.add(answer("one"), ())
        folder.add(answer("two"), ())
    file = tmp_path / "run" / "answers.jsonl"
    file.write_bytes(file.read_bytes()[:-cut])
    with opened(tmp_path / "run", said.append) as folder:
        assert [each.prompt for each in folder.scored()] == ["one"]
        folder.add(answer("three"), ())
    with opened(tmp_path / "run", said.append) as folder:
        assert [each.prompt for each in folder.scored()] == ["one", "three"]
    assert said == [f"{file}: its last line was written in part and is dropped"]


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "answers.jsonl").write_text("{}\n")
    with pytest.raises(BenchError, match=r"answers\.jsonl, line 1 is no Answer"), opened(tmp_path, print):
        pass


def test_two_runs_keep_apart(tmp_path: Path) -> None:
    with opened(tmp_path, print), pytest.raises(BenchError, match="another run writes to"), opened(tmp_path, print):
        pass
    with opened(tmp_path, print):
        pass


def test_a_folder_that_nothing_was_written_to_is_gone(tmp_path: Path) -> None:
    with opened(tmp_path / "a" / "run", print):
        pass
    assert not (tmp_path / "a" / "run").exists()
    (tmp_path / "mine").mkdir()
    with opened(tmp_path / "mine", print):
        pass
    assert (tmp_path / "mine").exists()


def test_a_run_goes_on_under_the_same_conditions_alone(tmp_path: Path) -> None:
    with opened(tmp_path, print) as folder:
        folder.check(plan())
        folder.begin(plan())
        folder.check(plan())
        with pytest.raises(BenchError, match="choose another --out") as caught:
            folder.check(plan(dtype="bfloat16", machine={"cores": 4, "cpu": "x"}, commit="abc"))
    assert str(caught.value).splitlines()[1:] == [
        "  commit: nothing there, 'abc' now",
        "  dtype: 'float32' there, 'bfloat16' now",
        "  machine.cores: 2 there, 4 now",
    ]


def test_differences_of_settings_are_told_by_name() -> None:
    before = plan()
    other = before.model_copy(update={"settings": (Setting(name="s", decoding={"strategy": "args", "w": 3}),)})
    told = before.differences(other)
    assert told[0].startswith("  setting base: {")
    assert told[1] == "  setting s.decoding.w: 2 there, 3 now"
    assert list(different({"a": {"b": 1}}, {"a": {"b": 1}})) == []
