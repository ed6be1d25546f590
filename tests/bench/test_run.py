"""A run from its options to its rows, against a real server."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trimtab.bench.errors import BenchError
from trimtab.bench.folder import Folder
from trimtab.bench.load import Asking, Job, ServerLost, ask, request_seed
from trimtab.bench.records import Answer
from trimtab.bench.start import start
from trimtab.clients.client import ClientError, TrimtabClient


def answers(folder: Path) -> list[Answer]:
    return Folder(folder, print).scored()


def test_a_run_measures_every_setting_on_the_same_prompts(measure: Any, written: Any, tmp_path: Path) -> None:
    rows = {(row.setting, row.concurrency): row for row in measure(written())}
    assert [(*cell, row.answers) for cell, row in rows.items()] == [
        ("base", 3, 24), ("base", 1, 2), ("arm", 3, 6), ("arm", 1, 2),
        ("best n=2", 3, 6), ("best n=2", 1, 2), ("best", 3, 6), ("best", 1, 2),
    ]  # fmt: skip
    assert all(row.error is None for row in rows.values())
    assert [rows[name, 3].level for name in ("base", "arm", "best")] == ["base", "token", "answer"]
    assert all(row.peak_memory_mib and row.peak_memory_mib > 50 for row in rows.values()), [
        row.peak_memory_mib for row in rows.values()
    ]
    asked = {
        name: {answer.prompt for answer in answers(tmp_path / "run") if answer.setting == name} for name, _ in rows
    }
    assert asked["base"] == asked["arm"] == asked["best"] == {f"p{number}" for number in range(6)}
    few = {answer.prompt for answer in answers(tmp_path / "run") if answer.concurrency == 1}
    assert few == {"p0", "p1"}, "of both categories"
    best, plain = rows["best", 3], rows["base", 3]
    assert best.reward is not None
    assert plain.reward is not None
    assert best.reward.mean >= plain.reward.mean
    assert best.spent_total > 2 * plain.spent_total


def test_answers_are_those_that_the_server_gives_to_the_same_seed(
    measure: Any, written: Any, tmp_path: Path, tiny: str
) -> None:
    measure(written(concurrency=(2,), repeats=2), seed=7)
    found = answers(tmp_path / "run")
    assert Counter((answer.setting, answer.seed) for answer in found) == {
        (name, seed): 4 if "=" in name else 6 for name in ("base", "arm", "best", "best n=2") for seed in (0, 1)
    } | {("base", seed): 6 for seed in (2, 3, 4)}, "what gains and wins are over is known better"
    texts = {(answer.setting, answer.prompt, answer.seed): answer for answer in found}
    assert texts["base", "p1", 0].text != texts["base", "p1", 1].text
    with TrimtabClient(tiny) as client:
        for answer in (texts["base", "p1", 1], texts["arm", "p1", 1], texts["best", "p1", 1]):
            decoding = json.loads((tmp_path / "run" / "run.json").read_text())
            asked = {each["name"]: each["decoding"] for each in decoding["settings"]}[answer.setting]
            messages = [{"role": "user", "content": "Say 1."}]
            again = client.chat(
                "base", messages, decoding=asked or None, seed=request_seed(7, "p1", 1), max_tokens=12, temperature=1.0
            )
            assert again.text == answer.text
            assert answer.reward == client.score("brief", [(messages, answer.text)])[0]
            assert answer.gold == pytest.approx(client.score("judge", [(messages, answer.text)])[0], abs=1e-5)
            assert answer.delivered == again.usage.completion_tokens
            assert answer.spent.keys() == again.decoding["model_tokens"].keys()
            assert answer.finish_reason == again.finish_reason
            if answer.setting == "best":
                assert [each.reward for each in answer.considered] == [
                    each.reward for each in again.decoding.candidates
                ]
                assert max(each.reward or 0.0 for each in answer.considered) == answer.reward
                assert answer.gold in [pytest.approx(each.gold, abs=1e-5) for each in answer.considered]
                assert answer.bounded
            assert answer.kl is not None
            assert 0 < (answer.ttft or 0.0) <= answer.e2e


def test_no_setting_finds_what_another_one_has_had_scored(written: Any, tmp_path: Path, tiny: str) -> None:
    best = {"strategy": "best_of_n", "reward": "worth"}
    two, four = ({"name": f"{n}", "decoding": {**best, "n": n}} for n in (2, 4))
    spent = []
    for order in ([two, four], [four, two]):
        given = written(settings=order, concurrency=(1,), reward="worth", gold="none")
        rows = start({"url": tiny, **given}, tmp_path / str(len(spent)), patience=0, api_key=None)
        spent.append({row.setting: row.spent for row in rows})
    assert spent[0] == spent[1]
    assert spent[0]["2"]["worth"] < spent[0]["4"]["worth"]


def test_vader_judges_answers_to_english_prompts_alone(measure: Any, written: Any, tmp_path: Path) -> None:
    given = written(concurrency=(2,), only=("best",), gold="vader")
    lines = [json.loads(line) for line in Path(given["prompts"]).read_text().splitlines()]
    told = [{**line, "language": "de" if line["id"] == "p1" else "en"} for line in lines]
    Path(given["prompts"]).write_text("".join(json.dumps(line) + "\n" for line in told))
    rows = measure(given)
    assert [(row.setting, row.gold_prompts) for row in rows] == [("base", 5), ("best n=2", 5), ("best", 5)]
    for answer in answers(tmp_path / "run"):
        golds = {answer.gold, *(each.gold for each in answer.considered)}
        assert (golds == {None}) == (answer.prompt == "p1")


def test_a_setting_that_is_refused_has_an_error_and_the_rest_goes_on(
    measure: Any, written: Any, tmp_path: Path, capfd: Any
) -> None:
    wrong = {"name": "wrong", "decoding": {"strategy": "best_of_n", "n": -1, "reward": "brief"}}
    fine = {"name": "fine", "decoding": {"strategy": "genarm", "arm": "arm"}}
    rows = {(row.setting, row.concurrency): row for row in measure(written(settings=[wrong, fine]))}
    assert [cell for cell, row in rows.items() if row.error] == [("wrong", 3), ("wrong", 1)]
    assert "decoding.n" in (rows["wrong", 3].error or "")
    assert rows["fine", 3].answers == 6
    assert rows["fine", 3].error is None
    assert "wrong will be left out, and its rows say why" in capfd.readouterr().err
    assert len([answer for answer in answers(tmp_path / "run") if answer.setting == "wrong"]) == 2


def test_a_run_that_was_interrupted_asks_only_what_is_missing(measure: Any, written: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = measure(written())
    kept = (folder / "answers.jsonl").read_text().splitlines()
    scores = (folder / "scores.jsonl").read_text().splitlines()
    (folder / "rows.jsonl").unlink()
    (folder / "answers.jsonl").write_text("\n".join(kept[:9]) + "\n" + kept[9][:40])
    (folder / "scores.jsonl").write_text("\n".join(scores[:7]) + "\n")
    again = measure({})
    now = (folder / "answers.jsonl").read_text().splitlines()
    assert now[:9] == kept[:9]
    assert len(now) == len(kept)
    before, after = ([Answer.model_validate_json(line) for line in lines] for lines in (kept, now))
    by_key = [
        {(each.setting, each.concurrency, each.prompt, each.seed): each.text for each in group}
        for group in (before, after)
    ]
    assert by_key[0] == by_key[1]
    assert {each.part for each in after} == {0, 1}
    assert [(row.setting, row.reward, row.gold) for row in again] == [
        (row.setting, row.reward, row.gold) for row in first
    ]


def test_a_complete_run_needs_no_server(measure: Any, written: Any, tmp_path: Path) -> None:
    rows = measure(written())
    nowhere = {"url": "http://127.0.0.1:9"}
    plan = tmp_path / "run" / "run.json"
    told = json.loads(plan.read_text())
    told["options"]["url"] = told["conditions"]["url"] = nowhere["url"]
    plan.write_text(json.dumps(told))
    assert measure({}, **nowhere) == rows
    (tmp_path / "run" / "rows.jsonl").unlink()
    found = measure({}, **nowhere)
    assert [row.model_copy(update={"conditions": rows[0].conditions}) for row in found] == rows


def test_a_run_of_other_things_is_refused(measure: Any, written: Any, tmp_path: Path) -> None:
    measure(written(concurrency=(2,)))
    with pytest.raises(BenchError, match=r"max_tokens: 12 there, 13 now") as caught:
        measure({}, max_tokens=13, gold="none")
    assert "gold: 'judge' there, 'none' now" in str(caught.value)
    (tmp_path / "run" / "rows.jsonl").unlink()
    (tmp_path / "run" / "scores.jsonl").unlink()
    written(settings=[{"name": "arm", "decoding": {"strategy": "genarm", "arm": "anti"}}])
    with pytest.raises(BenchError, match=r"setting arm\.decoding\.arm: 'arm' there, 'anti' now") as caught:
        measure({})
    assert "setting best" in str(caught.value)
    assert "another --out" in str(caught.value)


def test_a_setting_that_takes_the_server_with_it_is_given_up(
    measure: Any, written: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks(asking: Asking, job: Job) -> Any:
        if job.setting.name == "arm" and job.prompt.id == "p3":
            raise ServerLost("the stream broke off")
        return ask(asking, job)

    monkeypatch.setattr("trimtab.bench.load.ask", breaks)
    rows = {row.setting: row for row in measure(written(concurrency=(2,)))}
    assert rows["arm"].error == "the server went away 3 times while this was asked"
    assert [rows[name].error for name in ("base", "best")] == [None, None]
    assert rows["best"].answers == 6
    (part,) = {answer.part for answer in answers(tmp_path / "run") if answer.setting == "best"}
    assert part >= 2


def test_what_failed_is_asked_again_by_a_run_that_goes_on(
    measure: Any, written: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def breaks(asking: Asking, job: Job) -> Any:
        if job.setting.name == "arm":
            raise ClientError("too many requests", status=429)
        return ask(asking, job)

    with monkeypatch.context() as patched:
        patched.setattr("trimtab.bench.load.ask", breaks)
        first = {row.setting: row.error for row in measure(written(concurrency=(2,)))}
    assert first["arm"] == "too many requests"
    assert {row.setting: row.error for row in measure({})} == first, "a complete run is left as it is"
    (tmp_path / "run" / "rows.jsonl").unlink()
    assert {row.setting: row.error for row in measure({})} == dict.fromkeys(first)


def test_a_bug_is_not_taken_for_a_refusal(measure: Any, written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(asking: Asking, job: Job) -> Any:
        raise KeyError("seconds")

    monkeypatch.setattr("trimtab.bench.load.ask", breaks)
    with pytest.raises(KeyError, match="seconds"):
        measure(written())
