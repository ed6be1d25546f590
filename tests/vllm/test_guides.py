"""Guides that read along: mixtures as transformers computes them, whatever happens to rows and pages."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from steered import GREEDY, load
from tiny import VOCAB, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm_runner import Direction, Two, Update, config, params

from trimtab import SamplingParams
from trimtab.vllm import guide
from trimtab.vllm.guide import PREFILL
from trimtab.vllm.processor import TrimtabProcessor

CPU = torch.device("cpu")
Make = Callable[..., TrimtabProcessor]
SEEDS = {"base": 0, "arm": 1, "anti": 2}
PROMPTS = [list(f"Say something nice about number {i}, please: ".encode()) for i in range(5)]


def asks(arm: str = "arm", weight: float = 0.7) -> Any:
    return params({"trimtab": json.dumps({"strategy": "genarm", "arms": {arm: weight}})})


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    return {name: tiny_model("llama", seed=seed) for name, seed in SEEDS.items()}


def after(model: Any, tokens: list[int]) -> Tensor:
    """Logits of the next token, by transformers."""
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0, -1]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


DECODINGS = [
    {"strategy": "genarm", "arms": {"arm": 1.0, "anti": -0.5}},
    {"strategy": "mod", "weights": {"base": 0.3, "arm": 0.7}, "alpha": 1.0},
    {"strategy": "contrastive", "amateur": "anti", "beta": 1.5, "amateur_sees_prompt": False},
    {"strategy": "genarm", "arm": "arm", "steer": [
        {"method": "candidates", "top_k": 5},
        {"method": "contrastive", "amateur": "arm", "amateur_sees_prompt": False}]},
]  # fmt: skip
SAMPLINGS = [
    GREEDY,
    SamplingParams(temperature=0.0, max_tokens=12, repetition_penalty=1.4, presence_penalty=0.5, frequency_penalty=0.4),
]


@pytest.mark.parametrize("decoding", DECODINGS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_greedy_answers_are_those_of_our_own_engine(
    make: Make, furnished: Path, models: Any, decoding: dict[str, Any], sampling: SamplingParams
) -> None:
    guides = {name: {"role": "lm", "model": str(furnished / name)} for name in ("arm", "anti")}
    with load(furnished / "base", guides) as llm:
        found = llm.generate(PROMPTS[:2], sampling, decoding=decoding, progress=False)
        expected = [list(each.choices[0].token_ids) for each in found]
        plain = llm.generate(PROMPTS[:2], sampling, progress=False)
    assert expected != [list(each.choices[0].token_ids) for each in plain]
    extra: dict[str, Any] = {"trimtab": json.dumps(decoding)}
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        extra[f"trimtab_{name}"] = getattr(sampling, name)
    processor, outputs = make(CPU), [list[int](), list[int]()]
    processor.update_state(Update(added=[(i, params(extra), PROMPTS[i], outputs[i]) for i in range(2)]))
    for _ in range(max(map(len, expected))):
        logits = torch.stack([after(models["base"], prompt + out) for prompt, out in zip(PROMPTS, outputs)])  # noqa: B905
        for output, token in zip(outputs, processor.apply(logits).argmax(dim=1).tolist(), strict=True):
            output.append(token)
        processor.update_state(None)
    assert [output[: len(each)] for output, each in zip(outputs, expected, strict=True)] == expected


def test_ids_are_carried_over_where_the_same_tokens_have_others(make: Make, furnished: Path) -> None:
    """The foreign guide has every byte, in places of its own, and longer words beside."""
    model = AutoModelForCausalLM.from_pretrained(furnished / "foreign")
    own = AutoTokenizer.from_pretrained(furnished / "foreign").get_vocab()
    alphabet = AutoTokenizer.from_pretrained(furnished / "base").convert_ids_to_tokens(range(256))
    ids = [own[each] for each in alphabet]
    assert ids != list(range(256))
    output = [65, 66]
    expected = after(model, [ids[token] for token in PROMPTS[0] + output])[ids]
    processor = make(CPU)
    processor.update_state(Update(added=[(0, asks("foreign"), PROMPTS[0], output)]))
    close(processor.apply(torch.zeros(1, VOCAB))[0, :256], 0.7 * expected)
    runner = Two(make)
    runner.add(0, asks("foreign"), PROMPTS[0], output)
    close(runner.step([0], torch.zeros(1, VOCAB))[0, :256], 0.7 * expected)


def test_a_row_follows_its_request_through_moves(make: Make, models: Any) -> None:
    processor, outputs = make(CPU), [[], [], []]
    weights = [0.5, 0.0, 2.0]  # the one in the middle asks for nothing
    order = [0, 1, 2]
    processor.update_state(
        Update(added=[(i, asks(weight=weight), PROMPTS[i], outputs[i]) for i, weight in enumerate(weights)])
    )
    for step, moves in enumerate(([], [(0, 2, Direction.SWAP)], [(0, 1, Direction.SWAP)], [(1, 2, Direction.SWAP)])):
        for source, target, _ in moves:
            order[source], order[target] = order[target], order[source]
        if moves:
            processor.update_state(Update(moved=moves))
        given = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(step))
        found = processor.apply(given.clone())
        for place, which in enumerate(order):
            guided = after(models["arm"], PROMPTS[which] + outputs[which])
            if weights[which]:
                close(found[place], given[place] + weights[which] * guided)
            else:
                assert torch.equal(found[place], given[place])
            outputs[which].append(step + 10 * which)


def test_a_request_that_was_away_reads_as_a_fresh_one(make: Make, models: Any) -> None:
    processor, output = make(CPU), list(range(65, 75))
    given = torch.zeros(1, VOCAB)
    processor.update_state(Update(added=[(0, asks(), PROMPTS[0], output[:4])]))
    processor.apply(given.clone())
    processor.update_state(Update(removed=[0]))
    processor.update_state(Update(added=[(0, asks("anti"), PROMPTS[1], [])]))  # another takes its row
    processor.apply(given.clone())
    processor.update_state(Update(added=[(3, asks(), PROMPTS[0], output)]))
    returned = processor.apply(torch.zeros(4, VOCAB))[3]
    fresh = make(CPU)
    fresh.update_state(Update(added=[(0, asks(), PROMPTS[0], output)]))
    close(returned, fresh.apply(given.clone())[0])
    close(returned, 0.7 * after(models["arm"], PROMPTS[0] + output))


def test_tokens_that_vllm_takes_back_are_forgotten(make: Make, models: Any) -> None:
    processor, output = make(CPU), [65, 66, 67, 68]
    processor.update_state(Update(added=[(0, asks(), PROMPTS[0], output)]))
    processor.apply(torch.zeros(1, VOCAB))
    del output[1:]
    close(processor.apply(torch.zeros(1, VOCAB))[0], 0.7 * after(models["arm"], [*PROMPTS[0], 65]))
    output += [90, 91]
    close(processor.apply(torch.zeros(1, VOCAB))[0], 0.7 * after(models["arm"], [*PROMPTS[0], 65, 90, 91]))


def test_a_step_that_vllm_throws_away_changes_nothing(make: Make) -> None:
    processor = make(CPU)
    processor.update_state(Update(added=[(0, asks(), PROMPTS[0], [])]))
    first = processor.apply(torch.zeros(1, VOCAB))
    close(processor.apply(torch.zeros(1, VOCAB)), first)


@pytest.mark.parametrize("pool_tokens", [96, 160, 1024])
def test_pages_are_given_up_and_computed_again(configure: Any, models: Any, pool_tokens: int) -> None:
    place = configure(pool_tokens=pool_tokens)
    processor = TrimtabProcessor(config(str(place / "base")), CPU)
    outputs: list[list[int]] = [[] for _ in PROMPTS]
    processor.update_state(Update(added=[(i, asks(), prompt, outputs[i]) for i, prompt in enumerate(PROMPTS)]))
    for step in range(4):
        found = processor.apply(torch.zeros(len(PROMPTS), VOCAB))
        for i, prompt in enumerate(PROMPTS):
            close(found[i], 0.7 * after(models["arm"], prompt + outputs[i]))
            outputs[i].append(65 + step + i)
    processor.update_state(Update(removed=list(range(len(PROMPTS)))))
    pool = processor._guides["arm"]._model.runner.pool
    pool.check([])
    assert not processor._guides["arm"]._holding


def watched(processor: TrimtabProcessor) -> list[tuple[int, int]]:
    """Rows and width of every forward of the guide `arm` from now on."""
    shapes: list[tuple[int, int]] = []

    def see(module: Any, given: Any, named: dict[str, Tensor]) -> None:
        rows, width = named["input_ids"].shape
        shapes.append((rows, width))

    processor._guides["arm"]._model.runner.model.base_model.register_forward_pre_hook(see, with_kwargs=True)
    return shapes


@pytest.mark.parametrize("budget", [64, PREFILL])
def test_a_forward_has_no_more_tokens_than_promised_padded_ones_too(
    configure: Any, models: Any, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    """A long prompt among many short ones, and then many of one length."""
    monkeypatch.setattr(guide, "PREFILL", budget)
    place = configure(pool_tokens=8192)
    processor = TrimtabProcessor(config(str(place / "base")), CPU)
    shapes = watched(processor)
    prompts = [[65 + i % 26, 66 + i // 26, 67] for i in range(48)]
    prompts[5] = [70] * 90
    for each in (prompts, [[*prompt, 90] * 20 for prompt in prompts[6:34]]):
        processor.update_state(Update(removed=list(range(48))))
        processor.update_state(Update(added=[(i, asks(), prompt, []) for i, prompt in enumerate(each)]))
        found = processor.apply(torch.zeros(len(each), VOCAB))
        close(found, 0.7 * torch.stack([after(models["arm"], prompt) for prompt in each]))
        assert max(rows * width for rows, width in shapes) <= budget, shapes
    assert shapes[0] == (max(1, budget // 89), min(89, budget)), "the longest is read first"


@pytest.mark.parametrize(("rows", "missing"), [(10, 0), (12, 2), (30, 20)])
def test_a_batch_that_does_not_fit_reads_little_more_than_what_does_not(
    configure: Any, models: Any, rows: int, missing: int
) -> None:
    """The pool holds ten of these requests; those beyond are read again at every step, and the others are not."""
    place = configure(pool_tokens=1024)
    processor = TrimtabProcessor(config(str(place / "base")), CPU)
    prompts = [[65 + i] * 89 for i in range(rows)]
    outputs: list[list[int]] = [[] for _ in prompts]
    processor.update_state(Update(added=[(i, asks(), prompt, outputs[i]) for i, prompt in enumerate(prompts)]))
    shapes = watched(processor)
    for step in range(6):
        shapes.clear()
        found = processor.apply(torch.zeros(rows, VOCAB))
        for i, prompt in enumerate(prompts):
            close(found[i], 0.7 * after(models["arm"], prompt + outputs[i]))
            outputs[i].append(65 + step)
        read = sum(each * width for each, width in shapes)
        if step:
            assert read <= rows + missing * (89 + step), f"step {step}: {shapes}"


@pytest.mark.parametrize(("waiting", "missing"), [(0, 1), (1, 0)])
def test_rows_that_grow_take_the_pages_that_are_missed_least(configure: Any, waiting: int, missing: int) -> None:
    """Twelve rows have 128 pages, of which they need eleven each from the third step on."""
    place = configure(pool_tokens=1024)
    runner = Two(lambda states: TrimtabProcessor(config(str(place / "base")), states), slots=12)
    for slot in range(12):
        runner.add(slot, asks(), [65 + slot] * 79)
    runner.step(range(12), torch.zeros(12, VOCAB))
    shapes = watched(runner.processor)
    active = [slot for slot in range(12) if slot != 3 or not waiting]
    for step in range(2):
        for slot in active:
            runner.append(slot, 70)
        shapes.clear()
        runner.step(active, torch.zeros(len(active), VOCAB))
        read = sum(rows * width for rows, width in shapes)
        assert read == len(active) + (80 * missing if step else 0), shapes


def test_v2_slots_that_are_left_give_their_pages_up(configure: Any, models: Any) -> None:
    place = configure(pool_tokens=160)
    runner = Two(lambda states: TrimtabProcessor(config(str(place / "base")), states))
    for slot, prompt in enumerate(PROMPTS):
        runner.add(slot, asks(), prompt)
        close(runner.step([slot], torch.zeros(1, VOCAB))[0], 0.7 * after(models["arm"], prompt))
    guide = runner.processor._guides["arm"]
    assert sum(len(each.table.pages) for each in guide._holding) * 8 <= 160
    runner.append(0, 70)
    close(runner.step([0], torch.zeros(1, VOCAB))[0], 0.7 * after(models["arm"], [*PROMPTS[0], 70]))
    runner.add(0, params(), PROMPTS[1])  # its slot is used again by one that asks for nothing
    assert torch.equal(runner.step([0], torch.zeros(1, VOCAB)), torch.zeros(1, VOCAB))


def test_v2_answers_grow_on_the_device_and_come_back_after_a_preemption(make: Make, models: Any) -> None:
    runner, output = Two(make), list[int]()
    runner.add(2, asks(), PROMPTS[0])
    runner.add(5, asks("anti", -1.0), PROMPTS[1])
    for step in range(3):
        found = runner.step([5, 2], torch.zeros(2, VOCAB))
        close(found[0], -1.0 * after(models["anti"], PROMPTS[1] + output))
        close(found[1], 0.7 * after(models["arm"], PROMPTS[0] + output))
        output.append(80 + step)
        runner.append(2, output[-1])
        runner.append(5, output[-1])
    runner.add(1, asks(), PROMPTS[0], output)
    close(runner.step([1], torch.zeros(1, VOCAB))[0], 0.7 * after(models["arm"], PROMPTS[0] + output))


def test_v2_prompts_that_are_read_in_part_are_left_alone(make: Make, models: Any) -> None:
    runner = Two(make)
    runner.add(0, asks(), PROMPTS[0])
    given = torch.randn(1, VOCAB)
    assert torch.equal(runner.step([0], given.clone(), lengths=[len(PROMPTS[0]) - 1]), given)
    close(runner.step([0], given.clone())[0], given[0] + 0.7 * after(models["arm"], PROMPTS[0]))


def test_all_ranks_compute_the_same_bits(make: Make) -> None:
    """Each rank of tensor parallelism has a processor of its own."""
    ranks = [make(CPU), make(CPU)]
    both = params({"trimtab": json.dumps({"strategy": "genarm", "arms": {"anti": 0.3, "arm": 1.0}})})
    given = torch.randn(5, VOCAB)
    found = []
    for rank in ranks:
        rank.update_state(Update(added=[(i, both, prompt, []) for i, prompt in enumerate(PROMPTS)]))
        found.append(rank.apply(given.clone()))
    assert torch.equal(*found)


def test_weight_zero_and_strangers_keep_their_bits(make: Make) -> None:
    processor = make(CPU)
    given = torch.randn(3, VOCAB)
    processor.update_state(
        Update(added=[(0, asks(weight=0.0), [1], []), (1, params(), [1], []), (2, asks(weight=0.1), [1], [])])
    )
    found = processor.apply(given.clone())
    assert torch.equal(found[:2], given[:2])
    assert not torch.equal(found[2], given[2])
    assert not Two(make).add(0, asks(weight=0.0), [1]), "a plan that changes nothing is declined"
