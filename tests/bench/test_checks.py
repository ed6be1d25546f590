"""What is found out before anything is measured."""

from pathlib import Path
from typing import Any

import pytest

from trimtab.bench.checks import changed, examine
from trimtab.bench.errors import BenchError, ServerGone
from trimtab.bench.link import Link
from trimtab.bench.plan import Options, Plan
from trimtab.bench.start import start
from trimtab.clients.client import TrimtabClient

NOWHERE = "http://127.0.0.1:9"


def refusal(measure: Any, given: dict[str, Any]) -> str:
    with pytest.raises(BenchError) as caught:
        measure(given)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"reward": "kindness"},
            "--reward kindness: no guide of that name scores answers; the server has brief, judge",
        ),
        ({"reward": "arm"}, "--reward arm: this guide scores no answers"),
        ({"gold": "brief"}, "--gold brief: that is the reward"),
        ({"reward": "taste"}, "setting best: its curve follows from the order of its answers by --reward taste"),
        ({"gold": "kindness"}, "no gold measure 'kindness'"),
        ({"only": ("arms",)}, "do you mean 'arm'"),
        ({"prompts": "none.jsonl"}, "none.jsonl"),
        ({"concurrency": (7,)}, "6 requests are never so many at a time"),
        ({"concurrency": (2, 2)}, "give each number once"),
        ({"max_tokens": 500}, "these prompts cannot be asked or scored; leave them out:\n  p0: "),
    ],
)
def test_a_run_that_cannot_be_scored_writes_nothing(
    measure: Any, written: Any, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(measure, {**written(), **changes})
    assert not (tmp_path / "run").exists()


def test_guides_that_are_missing_are_told_with_all_their_settings(measure: Any, written: Any, tmp_path: Path) -> None:
    settings = [
        {"name": "a", "decoding": {"strategy": "genarm", "arm": "kind-arm"}},
        {"name": "fine", "decoding": {"strategy": "genarm", "arm": "arm"}},
        {"name": "b", "decoding": {"strategy": "sample", "steer": [{"method": "genarm", "arm": "kind-arm"}]}},
        {"name": "c", "decoding": {"strategy": "best_of_n", "reward": {"sum": ["brief", "kind"]}}},
        {"name": "d", "decoding": {"strategy": "best_of_n", "reward": {"sum": ["brief"], "weights": "wise"}}},
    ]  # fmt: skip
    told = refusal(measure, written(settings=settings))
    assert "'kind-arm', for a, b\n" in told
    assert "'kind', for c\n" in told
    assert "'wise', for d\n" in told
    assert "It has anti, arm, brief" in told
    assert "--only" in told
    assert "fine" not in told
    assert not (tmp_path / "run").exists()
    assert [row.setting for row in measure(written(settings=settings, concurrency=(2,)), only=("fine",))] == [
        "base",
        "fine",
    ]


def test_gold_is_a_measure_that_no_setting_uses(measure: Any, written: Any, tmp_path: Path) -> None:
    by_gold = {"name": "cheat", "decoding": {"strategy": "best_of_n", "n": 2, "reward": {"sum": ["brief", "judge"]}}}
    told = refusal(measure, written(settings=[by_gold]))
    assert "--gold judge: cheat steer by it" in told
    filled_in = {
        "name": "hidden",
        "decoding": {"strategy": "best_of_n", "n": 2, "preference": {"weights": {"praise": 1}}},
    }
    told = refusal(measure, written(settings=[filled_in], gold="lexicon"))
    assert "--gold lexicon: hidden steer by it" in told, "the server filled it in"
    assert not (tmp_path / "run").exists()


def test_an_address_with_a_password_is_not_written_down(written: Any, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="give --api-key") as caught:
        start({**written(), "url": "http://ann:secret@127.0.0.1:9"}, tmp_path / "run", patience=0, api_key=None)
    assert "secret" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_folder_of_a_run(written: Any, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(BenchError, match="cannot be a run's folder"):
        start(written(), tmp_path / "run", patience=0, api_key=None)


def test_a_server_that_is_not_there_is_told_with_the_way_to_start_one(written: Any, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"is `trimtab serve` running there\?.*leave --url out"):
        start({**written(), "url": NOWHERE}, tmp_path / "run", patience=0, api_key=None)
    assert not (tmp_path / "run").exists()


def test_a_server_that_came_back_must_be_the_one_before(measure: Any, written: Any, tmp_path: Path, tiny: str) -> None:
    measure(written(concurrency=(2,)))
    plan = Plan.model_validate_json((tmp_path / "run" / "run.json").read_text())
    with TrimtabClient(tiny) as client:
        server = examine(client)
    assert changed(plan.conditions, server) == []
    before = plan.conditions.model_copy(update={"dtype": "bfloat16", "machine": {**server.hardware, "cores": -1}})
    assert [line.split(":")[0].strip() for line in changed(before, server)] == ["dtype", "machine.cores"]
    link = Link(tiny, None, 0.0, lambda: None)
    link.wait(plan.conditions)
    with pytest.raises(BenchError, match=r"dtype: 'bfloat16' there, 'float32' now"):
        link.wait(before)
    link.close()


def test_a_server_that_stays_away_is_given_up(measure: Any, written: Any, tmp_path: Path) -> None:
    measure(written(concurrency=(2,)))
    conditions = Plan.model_validate_json((tmp_path / "run" / "run.json").read_text()).conditions
    for ended, told in ((None, "did not come back within 0 s"), ("no memory left", "has ended:\nno memory left")):
        link = Link(NOWHERE, None, 0.0, lambda words=ended: words)  # type: ignore[misc]
        with pytest.raises(ServerGone, match=told):
            link.wait(conditions)
        link.close()


def test_options_have_the_defaults_of_a_full_run() -> None:
    told = Options()
    assert (told.concurrency, told.max_tokens, told.timed, told.reward, told.gold) == (
        (8, 1),
        48,
        16,
        "positivity",
        "vader",
    )
