"""Lists of settings, what is said of wrong ones, and what the demo's list promises."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.bench.errors import BenchError
from trimtab.bench.records import Setting
from trimtab.bench.settings import level, read_settings, words
from trimtab.decoders.registry import strategies

KINDS = {name: strategy.kind for name, strategy in strategies().items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "mine.yaml"


def refusal(file: Path, *entries: Any) -> str:
    file.write_text(yaml.safe_dump(list(entries)))
    with pytest.raises(BenchError) as caught:
        read_settings(str(file))
    return str(caught.value)


def test_plain_sampling_comes_first(file: Path) -> None:
    file.write_text("- {name: a, decoding: {strategy: args, reward: r}, family: f, strength: 2}\n- {name: b}\n")
    plain, first, second = read_settings(str(file))
    assert plain == Setting(name="base")
    assert (first.name, first.strategy, first.family, first.strength) == ("a", "args", "f", 2.0)
    assert second.strategy == "sample"
    assert [each.name for each in read_settings(str(file), only=("b",))] == ["base", "b"]
    assert [each.name for each in read_settings(str(file), only=("base",))] == ["base"]


def test_everything_that_is_wrong_is_named(file: Path) -> None:
    told = refusal(
        file,
        {"name": "fine"},
        {"name": "x", "strenght": 1},
        "args",
        {"decoding": {}},
        {"name": "y", "strength": "much"},
    ).splitlines()
    assert [line.removeprefix(f"{file}, ").split(":")[0] for line in told] == [
        "entry 2 (x)", "entry 3", "entry 4", "entry 5 (y)",
    ]  # fmt: skip
    assert "'strenght'; do you mean 'strength'?" in told[0]
    assert "key 'name'" in told[2]
    assert "key 'strength'" in told[3]


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([{"name": "base"}], "'base' is plain sampling"),
        ([{"name": "a"}, {"name": "a"}], "entry 2 (a): key 'name': 'a' is taken"),
        ([{"name": "a", "decoding": {"strategy": "args"}, "curve": [1]}], "'curve': it is for best_of_n"),
        ([{"name": "a", "decoding": {"strategy": "best_of_n"}, "curve": [1]}], "'curve': give decoding.n"),
        (
            [{"name": "a", "decoding": {"strategy": "best_of_n", "n": 4, "select": {"rule": "soft"}}, "curve": [2]}],
            "leave decoding.select out",
        ),
        ([{"name": "a", "decoding": {"strategy": "best_of_n", "n": 4}, "curve": [2, 4]}], "beyond 1 to 3"),
        ([{"name": "a", "decoding": {"strategy": "best_of_n", "n": 4}, "curve": [0]}], "beyond 1 to 3"),
        ([{"name": "a", "decoding": {"strategy": "best_of_n", "n": 4}, "curve": [2, 2]}], "a number twice"),
        (
            [{"name": "a n=2"}, {"name": "a", "decoding": {"strategy": "best_of_n", "n": 4}, "curve": [2]}],
            "'a n=2' is taken",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(file: Path, entries: list[Any], words: str) -> None:
    assert words in refusal(file, *entries)


def test_files_that_hold_no_list_are_refused(file: Path) -> None:
    with pytest.raises(BenchError, match="cannot be read"):
        read_settings(str(file))
    cases = {
        "a: [": "is no YAML",
        "{a: 1}": "no list of settings",
        "": "no list of settings",
        "- {name: 2026-01-02}": "holds what a request cannot",
    }
    for text, told in cases.items():
        file.write_text(text)
        with pytest.raises(BenchError, match=told):
            read_settings(str(file))
    with pytest.raises(BenchError, match="do you mean 'vas'"):
        read_settings("demo", only=("vaz",))


@pytest.mark.parametrize(
    ("decoding", "expected"),
    [
        ({}, "base"),
        ({"budget": {"max_kl": 1.0}}, "base"),
        ({"steer": [{"method": "genarm"}]}, "token"),
        ({"prompt": [{"method": "urial"}]}, "prompt"),
        ({"strategy": "args"}, "token"),
        ({"strategy": "best_of_n", "steer": [{"method": "genarm"}]}, "answer"),
        ({"strategy": "persona", "steer": [{"method": "cfg"}]}, "prompt"),
        ({"strategy": "unheard of"}, "answer"),
    ],
)
def test_the_level_is_that_of_the_strategy_and_its_parts(decoding: dict[str, Any], expected: str) -> None:
    assert level(Setting(name="x", decoding=decoding), KINDS) == expected


def test_words_are_values_and_keys_at_any_depth() -> None:
    told = words({"reward": {"sum": ["a", {"guide": "b", "weight": 2.0}]}, "arms": {"c": 1.0}})
    assert set(told) == {"reward", "sum", "a", "guide", "b", "weight", "arms", "c"}


def test_the_demo_list_has_many_strategies_of_three_levels() -> None:
    settings = read_settings("demo")
    assert 20 <= len(settings) <= 26
    assert len({each.strategy for each in settings}) >= 14
    assert {level(each, KINDS) for each in settings} == {"base", "token", "answer", "prompt"}
    families: dict[str, list[float]] = {}
    for each in settings:
        if each.family and not each.curve:
            assert each.strength is not None
            families.setdefault(each.family, []).append(each.strength)
    assert sum(len(strengths) >= 3 for strengths in families.values()) >= 2
    assert all(strengths == sorted(set(strengths)) for strengths in families.values())
    (curve,) = [each for each in settings if each.curve]
    assert curve.decoding["n"] == 16
