"""The comparison of strategies with plain sampling, end to end over a tiny random model and program rewards."""

import json
from pathlib import Path
from typing import Any

import pytest
from answers import Answer, by_prompt, logprob_per_token
from gains import BEGIN, END, Row
from guides import BASE_BESIDE, STRATEGIES, main
from tiny import tiny_folder

from trimtab.bench.records import Gain
from trimtab.decoders.spec import DecodingSpec


def answer(**measures: Any) -> Answer:
    zeros = {"tokens": 0, "reward": 0.0, "gold": 0.0, "logprob": 0.0, "kl": None}
    return Answer(**{"strategy": "cd", "prompt": "p", "seed": 1, "text": "", **zeros, **measures})


def gain(mean: float, low: float, high: float) -> Gain:
    return Gain(mean=mean, low=low, high=high, improved=0.5)


def row(**gains: Gain) -> Row:
    return Row("cd", {}, dict.fromkeys(gains, 0.0), gains, kl=None, logprob=-1.0, distinct=1.0, tokens=9.0, time=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("tiny")))


def run(capsys: pytest.CaptureFixture[str], model: str, *more: str) -> dict[str, Any]:
    """Best of n by length over three prompts; the JSON line of the run."""
    best = ["--strategy", "best_of_n", "--set", "best_of_n.reward=length"]
    few = ["--limit", "3", "--tokens", "12", "--rounds", "0", "--dtype", "float32", "--threads", "1"]
    main(["--model", model, "--reward", "length", *best, *few, *more])
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def test_measures_are_laid_out_by_prompt_and_seed() -> None:
    seed_by_seed = [answer(seed=seed, reward=10.0 * prompt + seed) for seed in (1, 2) for prompt in (1, 2, 3)]
    assert by_prompt(seed_by_seed, "reward", 2).tolist() == [[11, 12], [21, 22], [31, 32]]


def test_logprob_counts_every_token_alike() -> None:
    assert logprob_per_token([answer(tokens=1, logprob=-3.0), answer(tokens=3, logprob=-1.0), answer()]) == -1.0


def test_gold_per_reward_is_told_only_where_reward_is_gained() -> None:
    sure, unsure = gain(2.0, 1.0, 3.0), gain(0.1, -0.1, 0.3)
    told = [row(reward=reward, gold=gain(0.5, 0.1, 0.9)).gold_per_reward for reward in (sure, unsure)]
    assert told == [0.25, None]


def test_every_strategy_takes_the_parameters_it_is_given() -> None:
    for name, parameters in STRATEGIES.items():
        DecodingSpec.parse({"strategy": name, **parameters, **BASE_BESIDE.get(name, {})})


def test_best_of_n_gains_reward_and_the_best_of_one_is_plain_sampling(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, best = run(capsys, model, "--set", "best_of_n.n=6", "--seeds", "1", "2")["rows"]
    gain = best["gains"]["reward"]
    assert gain["mean"] == pytest.approx(best["means"]["reward"] - plain["means"]["reward"])
    assert gain["low"] > 0
    assert best["kl"] == pytest.approx(0.9584, abs=1e-3)  # log 6 - 5 / 6
    assert plain["kl"] == 0.0
    assert plain["logprob"] < 0
    _, alone = run(capsys, model, "--set", "best_of_n.n=1")["rows"]
    assert alone["gains"] == {name: dict.fromkeys(each, 0.0) for name, each in alone["gains"].items()}


def test_check_fails_and_names_what_is_not_above_zero(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        run(capsys, model, "--set", "best_of_n.n=1", "--check")
    assert "best_of_n: the interval of reward and of gold is not above 0" in capsys.readouterr().out


def test_answers_are_written_with_their_measures(
    model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    plain, _ = run(capsys, model, "--seeds", "1", "2", "--answers", str(file))["rows"]
    answers = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(answers) == 2 * 2 * 3
    rewards = [answer["reward"] for answer in answers if answer["strategy"] == "plain"]
    assert sum(rewards) / len(rewards) == pytest.approx(plain["means"]["reward"])
    first, second = ([a["text"] for a in answers if (a["strategy"], a["seed"]) == ("plain", seed)] for seed in (1, 2))
    assert len({*first, *second}) == 6


def test_each_prompt_has_a_seed_of_its_own(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    prompts, answers = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text('{"prompt": "Tell me of the sea."}\n' * 2)
    run(capsys, model, "--prompts", str(prompts), "--answers", str(answers))
    first, second = (json.loads(line)["text"] for line in answers.read_text().splitlines()[:2])
    assert first != second


def test_the_table_goes_between_its_markers(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    page = tmp_path / "guides.md"
    page.write_text(f"before\n{BEGIN}\nof another day\n{END}\nafter\n")
    run(capsys, model, "--markdown", str(page), "--rounds", "1")
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\nConditions: prompts 3, seeds 1,")
    assert text.endswith(f"|\n{END}\nafter\n")
    assert "another day" not in text
    table = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert [row[0].strip() for row in table] == ["strategy", "---", "plain", "best_of_n"]
    assert len({len(row) for row in table}) == 1
    assert table[2][-1].strip() == "1.00"


def test_a_page_without_the_markers_is_refused(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="has no place for the table"):
        run(capsys, model, "--markdown", str(tmp_path / "none.md"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [("args.w=2", "args is not measured"), ("args.w", "write STRATEGY.PARAMETER=VALUE"), ("w=2", "as in args.w=2")],
)
def test_settings_that_cannot_be_meant_are_refused(
    model: str, capsys: pytest.CaptureFixture[str], setting: str, message: str
) -> None:
    with pytest.raises(SystemExit) as refused:
        run(capsys, model, "--set", setting)
    assert message in str(refused.value) + capsys.readouterr().err
