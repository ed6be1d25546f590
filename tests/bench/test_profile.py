"""From rows to the profile that strategy `auto` chooses from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from reported import CONDITIONS as GIVEN

from trimtab.bench.errors import BenchError
from trimtab.bench.profile import write_profile
from trimtab.bench.records import Interval, Percentiles, Row
from trimtab.server.frontier import Frontier

CONDITIONS = GIVEN.model_copy(update={"dtype": "float32", "machine": {"cpu": "a", "cores": 2, "gpu": None}})


def row(setting: str, concurrency: int, **changes: Any) -> Row:
    told: dict[str, Any] = {
        "setting": setting,
        "strategy": "best_of_n",
        "level": "answer",
        "family": setting,
        "strength": None,
        "decoding": {"strategy": "best_of_n", "n": 4, "reward": "positivity"},
        "concurrency": concurrency,
        "prompts": 8,
        "answers": 8,
        "reward": Interval(mean=0.2, low=0.1, high=0.3),
        "gold": Interval(mean=0.7, low=0.6, high=0.8),
        "e2e_ms": Percentiles(p50=100.0 * concurrency, p95=150.0 * concurrency, p99=200.0 * concurrency),
        "delivered": 30.0,
        "truncated": 0.25,
        "spent": {"base": 100.0, "positivity": 20.0},
        "conditions": CONDITIONS,
    }
    return Row.model_validate(told | changes)


def written(rows: Sequence[Row], folder: Path) -> Frontier:
    path = folder / "new" / "profile.json"
    write_profile(rows, path)
    assert [each.name for each in path.parent.iterdir()] == ["profile.json"]
    return Frontier.read(path)


def test_rows_of_a_setting_become_one_with_the_reward_of_most_prompts(tmp_path: Path) -> None:
    many = Interval(mean=0.5, low=0.4, high=0.6)
    rows = [
        row("best_of_4", 8, prompts=40, answers=40, reward=many, gold=None, spent={"base": 90.0}),
        row("base", 8, decoding={}),
        row("best_of_4", 1),
        row("base", 1, decoding={}),
    ]
    profile = written(rows, tmp_path)
    assert [each.name for each in profile.settings] == ["best_of_4", "base"]
    best, base = profile.settings
    assert (best.reward.mean, best.reward.low, best.gold, best.spent) == (0.5, 0.4, None, 90.0)
    assert [(each.concurrency, each.p50_ms, each.p95_ms) for each in best.latency] == [(1, 100, 150), (8, 800, 1200)]
    assert [each.answers for each in best.latency] == [8, 40]
    assert (base.decoding, base.gold, base.spent) == ({}, 0.7, 120.0)
    assert profile.prompts.model_dump() == {"name": "trimtab", "count": 40}
    assert (profile.model, profile.reward, profile.max_tokens, profile.hardware) == (
        "demo",
        "positivity",
        48,
        {"cpu": "a", "cores": 2, "gpu": None},
    )


def test_settings_with_an_error_or_nothing_to_choose_by_are_left_out(tmp_path: Path) -> None:
    failed: dict[str, Any] = {"reward": None, "e2e_ms": None, "error": "it broke", "spent": {}}
    rows = [
        row("good", 1),
        row("bad", 1),
        row("bad", 8, **failed),
        row("unrewarded", 1, reward=None),
        row("untimed", 1, e2e_ms=None),
        row("estimated", 1, estimated="order statistics"),
    ]
    assert [each.name for each in written(rows, tmp_path).settings] == ["good", "estimated"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no rows"),
        ([row("a", 1, reward=None), row("b", 1, e2e_ms=None)], "no setting has both a mean positivity and a latency"),
        (
            [row("a", 1), row("b", 1, conditions=CONDITIONS.model_copy(update={"max_tokens": 64}))],
            "rows of 'a' and 'b' differ in max_tokens: 48 and 64",
        ),
    ],
)
def test_rows_that_make_no_profile_are_refused_and_the_old_file_stays(
    rows: list[Row], words: str, tmp_path: Path
) -> None:
    path = tmp_path / "profile.json"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(BenchError, match=words):
        write_profile(rows, path)
    assert path.read_text(encoding="utf-8") == "old"


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(BenchError, match="cannot write the profile"):
        write_profile([row("a", 1)], tmp_path / "file" / "profile.json")
