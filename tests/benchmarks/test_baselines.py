"""The hand-written strategies against the engine: the same greedy tokens, alone and in padded batches."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from baselines.args import Args
from baselines.best_of_n import BestOfN
from baselines.cd_blockwise import CdBlockwise
from baselines.genarm import GenArm
from baselines.generation import extend, until
from baselines.models import Conversation, Language, Reward
from baselines.nudging import Nudging
from folders import classifier_folder, foreign_folder, head_file, teach_letters
from steered import DRAWN, GREEDY, load, user
from tiny import VOCAB, tiny_folder
from torch import Tensor

from trimtab import LLM, SamplingParams
from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.results import Result
from trimtab.engine.rewards import Pair

TOKENS = 24
WIDTH = 48
EOS = 256
LETTERS = "abcdehilnorstuwy "
TALK = [user(text) for text in ("Hi", "Tell me of boats and of the sea", "Why?", "What is a small tab for", "Go on")]
"""of different lengths, so that a batch is padded"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("baselines")
    tiny_folder(place / "base")
    tiny_folder(place / "arm", seed=1)
    teach_letters(tiny_folder(place / "letters", seed=2), "aeno ", loudness=7.0)
    teach_letters(foreign_folder(place / "aligned", seed=12, positions=1024), LETTERS, loudness=2.0)
    classifier_folder(place / "taste", seed=4)
    head_file(place / "state.safetensors", width=1, seed=7)
    return place


@pytest.fixture(scope="module")
def llm(place: Path) -> Iterator[LLM]:
    guides = {
        "arm": {"role": "lm", "model": str(place / "arm")},
        "taste": {"role": "reward", "model": str(place / "taste")},
        "state": {"role": "value", "model": str(place / "state.safetensors")},
    }
    with load(place / "base", guides) as llm:
        yield llm


@pytest.fixture(scope="module")
def speller(place: Path) -> Iterator[LLM]:
    """A base of few letters, so that words are short, beside an aligned model that spells them otherwise."""
    with load(place / "letters", {"aligned": {"role": "lm", "model": str(place / "aligned")}}) as llm:
        yield llm


@pytest.fixture(scope="module")
def base(place: Path) -> Language:
    return Language.load(place / "base", torch.float32)


@pytest.fixture(scope="module")
def taste(place: Path) -> Reward:
    return Reward.load(place / "taste", torch.float32)


@pytest.fixture(scope="module")
def value(place: Path) -> ValueHead:
    return ValueHead.load(place / "state.safetensors", WIDTH, VOCAB)


def served(
    llm: LLM, decoding: dict[str, Any], sampling: SamplingParams = GREEDY, tokens: int = TOKENS
) -> list[list[int]]:
    """The engine's answers to all of the talk, as ids without EOS."""
    limited = sampling.model_copy(update={"max_tokens": tokens})
    results = llm.chat(TALK, limited, decoding=decoding, progress=False)
    eos_ids = () if limited.ignore_eos else (EOS,)
    return [until(result.choices[0].token_ids, eos_ids) for result in results]


def alone(strategy: Any, tokens: int = TOKENS) -> list[list[int]]:
    return [strategy.answer([conversation], tokens)[0] for conversation in TALK]


@pytest.mark.parametrize(("w", "k"), [(1.5, 10), (40.0, 5)])
def test_args_writes_the_same_tokens(llm: LLM, base: Language, taste: Reward, w: float, k: int) -> None:
    expected = served(llm, {"strategy": "args", "reward": "taste", "w": w, "k": k})
    strategy = Args(base, taste, w=w, k=k)
    assert strategy.answer(TALK, TOKENS) == expected
    assert alone(strategy) == expected
    assert expected != served(llm, {"strategy": "args", "reward": "taste", "w": 0.0})


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_genarm_writes_the_same_tokens(llm: LLM, base: Language, place: Path, alpha: float) -> None:
    expected = served(llm, {"strategy": "genarm", "arm": "arm", "alpha": alpha})
    strategy = GenArm(base, Language.load(place / "arm", torch.float32), alpha=alpha, sample=False)
    assert strategy.answer(TALK, TOKENS) == expected
    assert alone(strategy) == expected
    assert expected != served(llm, {"strategy": "genarm", "arm": "arm", "alpha": 0.0})


@pytest.mark.parametrize("gamma", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_nudging_writes_the_same_tokens(place: Path, speller: LLM, gamma: float, ignore_eos: bool) -> None:
    """The two spell words differently: the one byte by byte, the other in merged tokens."""
    sampling = GREEDY.model_copy(update={"ignore_eos": ignore_eos})
    expected = served(speller, {"strategy": "nudging", "aligned": "aligned", "gamma": gamma}, sampling, 64)
    base = Language.load(place / "letters", torch.float32)
    strategy = Nudging(base, Language.load(place / "aligned", torch.float32), gamma=gamma)
    assert strategy.answer(TALK, 64, ignore_eos=ignore_eos) == expected
    assert ignore_eos or alone(strategy, 64) == expected


def test_greedy_blocks_and_answers_are_those_of_the_base(
    llm: LLM, base: Language, taste: Reward, value: ValueHead
) -> None:
    expected = served(llm, {"strategy": "cd_blockwise", "value": "state", "k": 3, "block": 5})
    assert CdBlockwise(base, value, k=3, block=5, sample=False).answer(TALK, TOKENS) == expected
    assert expected == served(llm, {"strategy": "best_of_n", "reward": "taste", "n": 3})
    assert BestOfN(base, taste, n=3, sample=False).answer(TALK, TOKENS) == expected


def test_best_of_n_chooses_as_the_engine_does(llm: LLM, base: Language, taste: Reward) -> None:
    """The engine's own sampled answers, given to the hand-written choice: the same rewards, and the same best."""
    found = results(llm, {"strategy": "best_of_n", "reward": "taste", "n": 4})
    texts = [candidate.text for result in found for candidate in result.candidates]
    rewards = [candidate.reward for result in found for candidate in result.candidates]
    conversations = [conversation for conversation in TALK for _ in range(4)]
    assert taste.score(conversations, texts).tolist() == pytest.approx(rewards, abs=1e-4)
    assert taste.score(conversations[:1], texts[:1]).tolist() == pytest.approx(rewards[:1], abs=1e-4)
    assert len({round(reward, 3) for reward in rewards if reward is not None}) > len(TALK)
    best = [next(i for i, each in enumerate(result.candidates) if each.choice == 0) for result in found]
    assert BestOfN(base, taste, n=4).best(TALK, texts) == best
    assert len(set(best)) > 1


def test_best_of_n_returns_the_best_of_what_it_drew(llm: LLM, base: Language, taste: Reward) -> None:
    """The same seed draws the same answers again, which the engine then scores."""
    torch.manual_seed(3)
    drawn = extend(base, TALK, tokens=TOKENS, sample=True, ignore_eos=False, copies=4)
    torch.manual_seed(3)
    chosen = BestOfN(base, taste, n=4).answer(TALK, TOKENS)
    for index, conversation in enumerate(TALK):
        texts = [base.text(row) for row in drawn[4 * index : 4 * index + 4]]
        scores = llm.score("taste", [Pair(tuple(conversation), text) for text in texts])
        assert chosen[index] == drawn[4 * index + scores.index(max(scores))]
        assert len(set(map(tuple, drawn[4 * index : 4 * index + 4]))) == 4


def test_blocks_of_whole_answers_are_valued_as_the_engine_values_them(
    llm: LLM, base: Language, value: ValueHead
) -> None:
    """One block for all: the engine's candidates are answers, whose texts can be read again."""
    found = results(llm, {"strategy": "cd_blockwise", "value": "state", "k": 4, "block": TOKENS})
    for conversation, result in zip(TALK, found, strict=True):
        best = result.candidates[[each.choice for each in result.candidates].index(0)]
        assert best.value == max(each.value for each in result.candidates if each.value is not None)
        tokens = list(result.choices[0].token_ids)
        assert best.value == pytest.approx(end_value(base, value, conversation, tokens), abs=1e-4)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_the_block_that_stands_is_the_best_of_those_drawn(base: Language, value: ValueHead, ignore_eos: bool) -> None:
    """Values are noted as they are asked for; an answer's own, read anew at each end of a block, is the highest."""
    noted: list[Tensor] = []

    def heard(hidden: Tensor) -> Tensor:
        noted.append(value(hidden))
        return noted[-1]

    eager = replace(base, eos_ids=() if ignore_eos else tuple(range(0, 260, 12)))  # many, so that answers end
    torch.manual_seed(5)
    answers = CdBlockwise(eager, heard, k=3, block=5).answer(TALK, 12, ignore_eos=ignore_eos)
    assert {len(answer) for answer in answers} == {12} if ignore_eos else len(set(map(len, answers))) > 1
    going = list(range(len(TALK)))
    for turn, values in enumerate(noted):
        end = min(5 * turn + 5, 12)
        highest = values.view(len(going), 3).max(1).values.tolist()
        for index, known in zip(going, highest, strict=True):
            if len(answers[index]) >= end:
                assert known == pytest.approx(end_value(base, value, TALK[index], answers[index][:end]), abs=1e-4)
        going = [index for index in going if len(answers[index]) >= end]
        assert (values.view(-1, 3).max(1).values - values.view(-1, 3).min(1).values > 1e-3).all()


def test_sampled_rows_of_a_batch_follow_the_law_of_each_alone(base: Language, place: Path) -> None:
    """First tokens of a padded row against the mixture of the two models, read without padding."""
    arm = Language.load(place / "arm", torch.float32)
    torch.manual_seed(1)
    short, long = TALK[0], TALK[1]
    count = 1000
    drawn = GenArm(base, arm, alpha=0.5).answer([short] * count + [long], 1, ignore_eos=True)
    logits = [model.model(input_ids=torch.tensor([model.prompt(short)])).logits[0, -1] for model in (base, arm)]
    law = (logits[0] + 0.5 * logits[1]).softmax(0)
    found = torch.bincount(torch.tensor([row[0] for row in drawn[:count]]), minlength=VOCAB) / count
    noise = (2 * law / (torch.pi * count)).sqrt().sum()  # of counts alone: the mean of |found - law|, summed
    assert float((found - law).abs().sum()) < 1.2 * float(noise)


def results(llm: LLM, decoding: dict[str, Any]) -> list[Result]:
    """The engine's sampled answers, with their candidates."""
    limited = DRAWN.model_copy(update={"max_tokens": TOKENS})
    return llm.chat(TALK, limited, decoding=decoding, progress=False)


def end_value(base: Language, value: ValueHead, conversation: Conversation, answer: list[int]) -> float:
    """What the head says of an answer, the whole of it read in one forward without padding."""
    ids = torch.tensor([[*base.prompt(conversation), *answer]])
    return float(value(base.model.base_model(input_ids=ids).last_hidden_state[:, -1]))
