"""Value heads: exact values on a toy, the same file for the same seed, and guides that load and steer."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from folders import classifier_folder
from safetensors.torch import load_file
from steered import load, user
from tiny import CONFIGS, tiny_folder
from transformers import AutoConfig, AutoModelForCausalLM

from trimtab import SamplingParams
from trimtab.engine.guides.card import Card
from trimtab.engine.guides.heads import ValueHead
from trimtab.training import loop, value
from trimtab.training.errors import DataError, TrainingError
from trimtab.training.features import Expectation, read_states
from trimtab.training.heads import token_directions
from trimtab.training.loop import fit
from trimtab.training.options import Sampled, ValueOptions
from trimtab.training.rollouts import Rollout, rollouts
from trimtab.training.rows import Row
from trimtab.training.schedule import Schedule
from trimtab.training.value import Answer, ValueTask, train_value

WORDS = 6
PROMPT = [1, 2, 3]
REWARD = torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def toy() -> Any:
    """A random model of six tokens, as it is loaded."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "llama", **{**CONFIGS["llama"], "vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
    )
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.15)
    model.lm_head.weight.mul_(0.5)  # no answer is too rare to be learned from
    return SimpleNamespace(model=model)


@pytest.fixture(scope="module")
def law(toy: Any) -> torch.Tensor:
    """Probability of every answer of two tokens, (6, 6)."""
    first = toy.model(torch.tensor([PROMPT])).logits[0, -1].softmax(-1)
    second = toy.model(torch.tensor([[*PROMPT, y] for y in range(WORDS)])).logits[:, -1].softmax(-1)
    return first[:, None] * second


@pytest.fixture(scope="module")
def answers(law: torch.Tensor) -> list[Answer]:
    """Every answer as often as the law wants it, for two prompts that are the same, of which one is held out."""
    counts = often(law)
    return [
        Answer(Row([*PROMPT, a, b], len(PROMPT)), REWARD[a, b].item(), 0, prompt)
        for prompt in (0, 1)
        for a, b in product(range(WORDS), repeat=2)
        for _ in range(int(counts[a, b]))
    ]


def often(law: torch.Tensor) -> torch.Tensor:
    return (200 * law).round().clamp(min=1)


def options(folder: Path, **changes: Any) -> ValueOptions:
    schedule = Schedule(**{"epochs": 100, "batch": 64, "lr": 1e-2, "patience": 100, **changes.pop("schedule", {})})
    told = {"out": folder / "out", "data": folder / "data.jsonl", "layers": 3, "width": 32, "held_out": 0.4, **changes}
    return ValueOptions(schedule=schedule, device="cpu", **told)


@pytest.mark.parametrize(
    ("method", "more"),
    [
        ("fudge", {}),
        ("td", {"trace": 0.5}),
        ("fudge", {"tokens": True}),
        ("td", {"tokens": True, "trace": 0.0}),
        ("q", {"tokens": True}),
    ],
)
def test_the_fitted_values_are_the_expected_rewards(
    toy: Any, law: torch.Tensor, answers: list[Answer], tmp_path: Path, method: str, more: dict[str, Any]
) -> None:
    """CD-Q knows the law itself; the other methods know it by the answers' frequencies, which are rounded."""
    chosen = options(tmp_path, method=method, **more)
    task = ValueTask(toy, chosen, answers)
    fit(task, chosen.schedule, tmp_path, run={}, label="value")
    task.save(tmp_path / "head.safetensors")
    head = ValueHead.load(tmp_path / "head.safetensors", 48, WORDS)
    joint = law if method == "q" else often(law) / often(law).sum()
    after = (joint / joint.sum(dim=1, keepdim=True) * REWARD).sum(dim=1)  # V(y1)
    states = [[*PROMPT], *([*PROMPT, y] for y in range(WORDS))]
    told = [head(toy.model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]) for ids in states]
    if chosen.tokens:
        errors = torch.cat((told[0] - after, (torch.stack(told[1:]) - REWARD).flatten()))
    else:
        ends = [[*PROMPT, a, b] for a, b in product(range(WORDS), repeat=2)]
        whole = head(toy.model.base_model(torch.tensor(ends)).last_hidden_state[:, -1]) - REWARD.flatten()
        errors = torch.cat((torch.stack(told) - torch.stack(((joint * REWARD).sum(), *after)), whole))
    assert errors.abs().max() < 0.15, f"max error {errors.abs().max():.3f}, rewards vary by {REWARD.std():.2f}"


def test_states_are_those_of_each_answer_alone(toy: Any) -> None:
    rows = [Row([1, 2, 3, 4], 3), Row([5, 1], 1), Row([0, 1, 2, 3, 4, 5, 0], 2)]
    directions = token_directions(toy.model.get_output_embeddings().weight)
    states = read_states(toy, rows, Expectation(directions, temperature=0.7))
    plain = read_states(toy, rows)
    torch.testing.assert_close(plain.hidden, states.hidden)
    assert plain.expected is None
    for index, row in enumerate(rows):
        told = toy.model(torch.tensor([row.ids]), output_hidden_states=True)
        torch.testing.assert_close(states.hidden[states.of(index)], told.hidden_states[-1][0, row.start - 1 :])
        mean = (told.logits[0, row.start - 1 :] / 0.7).softmax(-1) @ directions
        torch.testing.assert_close(states.expected[states.of(index)], mean)


def test_too_many_states_are_refused(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trimtab.training.features.MAX_BYTES", 1000)
    with pytest.raises(TrainingError, match="--max-tokens"):
        read_states(toy, [Row([1] * 9, 1)])


def test_the_file_is_the_head_that_was_trained(toy: Any, answers: list[Answer], tmp_path: Path) -> None:
    """Units folded into the weights change nothing, whatever the number of layers."""
    for layers, tokens in product((1, 2, 3), (False, True)):
        told = {"layers": layers, "tokens": tokens, "schedule": {"epochs": 1}}
        chosen = (
            options(tmp_path, **told)
            if layers > 1
            else ValueOptions(out=tmp_path, data=tmp_path, layers=1, tokens=tokens)
        )
        task = ValueTask(toy, chosen, answers)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in task.parameters.values():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        batch = task._batch([0, 1, 2])
        values, _ = task.head.values(batch)
        exported = task.head.export()(batch.hidden)
        if tokens:
            exported = exported[:, :-1].gather(2, batch.tokens[:, :, None])[:, :, 0]
        torch.testing.assert_close(exported, values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"method": "td"},
        {"method": "td", "trace": 0.1},
        {"method": "q", "tokens": True},
        {"tokens": True},
        {"width": 8},
        {"layers": 2},
        {"held_out": 0.6},
        {"schedule": {"seed": 1}},
    ],
    ids=str,
)
def test_every_option_changes_the_head(toy: Any, answers: list[Answer], tmp_path: Path, change: dict[str, Any]) -> None:
    thirds = [Answer(each.row, each.reward, 0, at % 5) for at, each in enumerate(answers[:90])]

    def trained(**changes: Any) -> list[torch.Tensor]:
        changes["schedule"] = {"epochs": 2, **changes.get("schedule", {})}
        chosen = options(tmp_path, **changes)
        task = ValueTask(toy, chosen, thirds)
        fit(task, chosen.schedule, tmp_path / str(changes), run={}, label="value")
        head = task.head.export()
        return [*head.weights, *head.biases]

    before = trained(
        **(
            {"method": "td"}
            if "trace" in change
            else {"tokens": True}
            if "method" in change and "tokens" in change
            else {}
        )
    )
    after = trained(**change)
    assert len(before) != len(after) or any(
        a.shape != b.shape or not a.equal(b) for a, b in zip(before, after, strict=True)
    )


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"method": "q"}, "pass --tokens"),
        ({"method": "q", "tokens": True, "iterations": 2}, "use fudge or td"),
        ({"trace": 0.5}, "leave it out"),
        ({"layers": 1, "width": 4}, "leave width out"),
        ({"guidance": 2.0, "tokens": True}, "leave it out"),
    ],
)
def test_options_that_would_do_nothing_are_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ValueOptions(out=Path("o"), data=Path("d"), **given)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base, a reward, prompts, and a cache of their answers that all tests share."""
    folder = tmp_path_factory.mktemp("value")
    tiny_folder(folder / "base")
    classifier_folder(folder / "taste", seed=4)
    (folder / "data.jsonl").write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(6)))
    return folder


def real(place: Path, out: Path, **changes: Any) -> ValueOptions:
    sampled = Sampled(reward=str(place / "taste"), answers=6, max_tokens=4, cache=place / "cache")
    told = {"layers": 2, "held_out": 0.3, "schedule": {"epochs": 4, "batch": 8, "lr": 1e-2}, **changes}
    return options(place, base=str(place / "base"), sampled=sampled, **{**told, "out": out})


def test_the_same_seed_gives_the_same_file_also_after_an_interruption(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once, again, other = (real(place, tmp_path / name, tokens=True) for name in ("once", "again", "other"))
    card = train_value(once)
    monkeypatch.setattr(loop, "CHECKPOINT_STEPS", 3)
    calls, loss = iter(range(1000)), ValueTask.loss

    def interrupted(task: ValueTask, batch: Any) -> torch.Tensor:
        if next(calls) == 5:
            raise KeyboardInterrupt
        return loss(task, batch)

    monkeypatch.setattr(ValueTask, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_value(again)
    monkeypatch.setattr(ValueTask, "loss", loss)
    with pytest.raises(TrainingError, match="--restart"):
        train_value(again.model_copy(update={"width": 5}))
    assert train_value(again) == card
    first, second = (folder / "value_head.safetensors" for folder in (once.out, again.out))
    assert first.read_bytes() == second.read_bytes()
    train_value(other.model_copy(update={"schedule": once.schedule.model_copy(update={"seed": 1})}))
    assert first.read_bytes() != (other.out / first.name).read_bytes()


def test_a_trained_head_loads_and_raises_the_reward(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = AutoModelForCausalLM.from_pretrained(place / "base")
    worth = token_directions(base.lm_head.weight)[:, 0].detach() * 10  # some tokens are good, and others bad

    def total(tokens: Sequence[int]) -> float:
        return worth[list(tokens)].sum().item()

    def rewarded(*given: Any, **how: Any) -> list[Rollout]:
        return [replace(each, reward=total(each.tokens)) for each in rollouts(*given, **how)]

    monkeypatch.setattr(value, "rollouts", rewarded)
    chosen = real(place, tmp_path / "mine", tokens=True, schedule={"epochs": 15, "lr": 1e-2, "batch": 32})
    chosen = chosen.model_copy(update={"sampled": chosen.sampled.model_copy(update={"answers": 128})})
    card = train_value(chosen)
    assert Card.load(chosen.out) == card
    assert card.kind == "value"
    assert card.policy == "base, plain, temperature 1, 128 answers of at most 4 tokens for each prompt"
    assert {"loss", "spearman_half", "spearman_end", "calibration_error"} <= card.metrics.keys()
    assert card.metrics["spearman_half"] > 0.3
    assert card.metrics["spearman_end"] > 0.4
    assert str(place) not in json.dumps(card.training)
    with load(place / "base", {"mine": {"role": "value", "model": str(chosen.out)}}) as llm:
        means = []
        for decoding in (None, {"strategy": "cd", "value": "mine", "lam": 1.0}):
            sampling = SamplingParams(max_tokens=4, seed=5)
            (result,) = llm.chat([user("say it")], sampling, n=64, decoding=decoding, progress=False)
            means.append(sum(total(each.token_ids) for each in result.choices) / 64)
    assert means[1] > means[0] + 2.0, f"plain {means[0]:.2f}, guided {means[1]:.2f}"


@pytest.mark.parametrize("tokens", [True, False])
def test_iterations_fit_answers_that_the_last_head_guided(place: Path, tmp_path: Path, tokens: bool) -> None:
    chosen = real(place, tmp_path / "two", tokens=tokens, iterations=2)
    card = train_value(chosen)
    how = "strategy cd, value value, lam 1.0" if tokens else "strategy cd_blockwise, value value"
    assert card.policy == f"base, {how}, temperature 1, 6 answers of at most 4 tokens for each prompt"
    assert not (chosen.out / "iterations").exists()
    single = real(place, tmp_path / "one", tokens=tokens)
    train_value(single)
    one, two = (load_file(each.out / "value_head.safetensors") for each in (single, chosen))
    assert any(not one[name].equal(two[name]) for name in one)


def test_guidance_is_the_weight_of_the_next_iteration(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def sampled(options: Any, sampled: Any, prompts: Any, **how: Any) -> list[Rollout]:
        asked.append(how)
        return [
            Rollout(tuple(each), (1, 2, at), (3, token, 256), "", float(token))
            for at, each in enumerate(prompts)
            for token in range(6)
        ]

    heads, fitted = [], value._fit

    def noted(task: ValueTask, *given: Any) -> Any:
        heads.append(task.head)
        return fitted(task, *given)

    monkeypatch.setattr(value, "rollouts", sampled)
    monkeypatch.setattr(value, "_fit", noted)
    train_value(real(place, tmp_path / "out", tokens=True, iterations=2, guidance=0.5))
    assert heads[0] is heads[1]
    assert [how["decoding"] for how in asked] == [None, {"strategy": "cd", "value": "value", "lam": 0.5}]
    assert asked[0]["seed"] != asked[1]["seed"]


def test_rated_answers_need_no_sampling(place: Path, tmp_path: Path) -> None:
    lines = [{"prompt": f"p{i}", "answer": "ab" * (i + 1), "score": i / 10} for i in range(8)]
    data = tmp_path / "rated.jsonl"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = real(place, tmp_path / "out", data=data)
    card = train_value(chosen)
    assert card.policy is None
    assert card.data.startswith("rated.jsonl (8 examples")
    with pytest.raises(DataError, match="prompts alone"):
        train_value(real(place, tmp_path / "more", data=data, iterations=2))
    data.write_text("".join(json.dumps({**line, "score": 0.5}) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"all 8 scores are 0\.5"):
        train_value(chosen)


def test_answers_of_one_reward_teach_nothing(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    same = [Rollout(({"role": "user", "content": "a"},), (1,), (2,), "a", 0.25)] * 36
    monkeypatch.setattr(value, "rollouts", lambda *_, **__: same)
    with pytest.raises(DataError, match=r"all 36 sampled answers got the reward 0\.25"):
        train_value(real(place, tmp_path / "out"))
