"""The guides that come with the demo model: they load, rank sentences as people do, and steer towards the reward."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
from guides import STRATEGIES

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.engine.guides.base import HeadGuide
from trimtab.engine.guides.card import Card
from trimtab.engine.guides.folders import SHIPPED, shipped_guides
from trimtab.engine.guides.vectors import load_vectors
from trimtab.engine.loading import LoadedModel, load_causal_lm
from trimtab.engine.rewards import Pair
from trimtab.engine.vocabulary import Message, Vocabulary
from trimtab.training.demo.__main__ import GUIDES
from trimtab.training.features import read_states
from trimtab.training.metrics import spearman
from trimtab.training.rows import answer_row, closing_id
from trimtab.training.vector import last_states

pytestmark = [pytest.mark.demo, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[1]
SENTENCES = [json.loads(line) for line in (ROOT / "tests" / "data" / "sentences.jsonl").read_text().splitlines()]
TEXTS, RATINGS = [each["text"] for each in SENTENCES], [each["score"] for each in SENTENCES]
PROMPTS = [json.loads(line)["prompt"] for line in (ROOT / "benchmarks" / "prompts.jsonl").read_text().splitlines()]
ASKED = (Message(role="user", content="Tell me what you think."),)
SMALLER = 0.1
"""how much lower a correlation with our few sentences may be than what the card says of the held-out data"""


def card(name: str) -> Card:
    found = Card.load(SHIPPED / name)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(settings=EngineSettings(model="demo")) as llm:
        yield llm


@pytest.fixture(scope="module")
def base() -> LoadedModel:
    return load_causal_lm("demo")


def test_what_is_shipped_is_what_the_recipe_makes() -> None:
    assert shipped_guides().keys() == GUIDES.keys()
    told = (ROOT / "docs" / "guides.md").read_text()
    assert all(re.search(rf"^\|.*`{name}`.*\|$", told, re.MULTILINE) for name in GUIDES)


def test_all_load_without_a_complaint(llm: LLM, caplog: pytest.LogCaptureFixture) -> None:
    assert llm.guides.keys() >= GUIDES.keys()
    assert all(contract.ok for contract in llm.contracts.values())
    assert all(llm.cards[name].base.source == "demo" for name in GUIDES)


def test_reward_ranks_sentences_as_people_do(llm: LLM) -> None:
    scores = llm.score("positivity", [Pair(ASKED, text) for text in TEXTS])
    found = spearman(scores, RATINGS)
    assert found >= card("positivity").metrics["spearman"] - SMALLER
    assert card("positivity").metrics["spearman"] >= 0.8
    assert mean((score - rating / 4) ** 2 for score, rating in zip(scores, RATINGS, strict=True)) < 0.1


def test_prompts_do_not_sway_the_reward(llm: LLM) -> None:
    gloomy = (Message(role="user", content="How awful was it?"),)
    alone = llm.score("positivity", [Pair((), text) for text in TEXTS[:8]])
    assert llm.score("positivity", [Pair(gloomy, text) for text in TEXTS[:8]]) == pytest.approx(alone, abs=0.05)


@pytest.mark.parametrize("name", ["positivity-value", "positivity-td", "positivity-prefix", "positivity-control"])
def test_values_rank_sentences(llm: LLM, base: LoadedModel, name: str) -> None:
    guide = llm.guides[name]
    assert isinstance(guide, HeadGuide)
    vocabulary = Vocabulary(base.tokenizer, base.embedding_rows)
    eos_id = closing_id(base, vocabulary)
    rows = [answer_row(vocabulary, ASKED, text, eos_id, base.context_length) for text in TEXTS]
    states = read_states(base, rows)
    ends = torch.stack([states.hidden[states.offsets[i + 1] - 2] for i in range(len(rows))])  # before the EOS
    if guide.head.width > 1:
        told = guide.head.at(ends, torch.tensor([[row.ids[-1]] for row in rows]))[:, 0]
    else:
        told = guide.head(ends)
    assert spearman(told.tolist(), RATINGS) >= card(name).metrics["spearman_end"] - 2 * SMALLER


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize(
    ("name", "sign"), [("positivity-arm", 1), ("aligned", 1), ("positive-lm", 1), ("negative-lm", -1)]
)
def test_adapters_shift_the_base_as_people_rate(base: LoadedModel, name: str, sign: int) -> None:
    """PEFT itself reads the folder; sentences gain likelihood per token over the base as they are rated."""
    from peft import PeftModel

    vocabulary = Vocabulary(base.tokenizer, base.embedding_rows)
    rows = [answer_row(vocabulary, ASKED, text, closing_id(base, vocabulary), base.context_length) for text in TEXTS]
    adapted = PeftModel.from_pretrained(base.model, SHIPPED / name).eval()
    gains = []
    with torch.inference_mode():
        for row in rows:
            ids = torch.tensor([row.ids])
            with_adapter = _logprob(adapted, ids, row.start)
            with adapted.disable_adapter():
                gains.append((with_adapter - _logprob(adapted, ids, row.start)) / (len(row.ids) - row.start))
    adapted.unload()
    assert sign * spearman(gains, RATINGS) > 0.3


def _logprob(model: Any, ids: torch.Tensor, start: int) -> float:
    logprobs = model(input_ids=ids).logits[0, :-1].float().log_softmax(dim=-1)
    return float(logprobs.gather(1, ids[0, 1:, None])[start - 1 :].sum())


def test_vector_points_where_people_rate_high(base: LoadedModel) -> None:
    config = base.model.config
    directions = load_vectors(
        SHIPPED / "positivity-vector" / "control_vector.gguf", config.hidden_size, config.num_hidden_layers
    )
    vocabulary = Vocabulary(base.tokenizer, base.embedding_rows)
    rows = [answer_row(vocabulary, ASKED, text, None, base.context_length) for text in TEXTS]
    layers = sorted(directions)
    states = last_states(base, rows, layers)  # (N, L, D)
    shifts = [
        spearman((states[:, at].float() @ directions[layer]).tolist(), RATINGS) for at, layer in enumerate(layers)
    ]
    assert mean(shifts) > 0.4


@pytest.fixture(scope="module")
def plain(llm: LLM) -> list[float]:
    return _rewards(llm, None)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_measured_strategy_raises_the_reward(llm: LLM, plain: list[float], strategy: str) -> None:
    steered = _rewards(llm, {"strategy": strategy, **STRATEGIES[strategy]})
    assert mean(steered) > mean(plain), f"{mean(steered):.3f} is no more than {mean(plain):.3f}"


def _rewards(llm: LLM, decoding: dict[str, Any] | None) -> list[float]:
    """Rewards of short answers to a quarter of the held-out prompts."""
    asked = [(Message(role="user", content=prompt),) for prompt in PROMPTS[::4]]
    sampling = SamplingParams(max_tokens=32, temperature=1.0, seed=3)
    results = llm.chat(asked, sampling, decoding=decoding, progress=False)
    return llm.score("positivity", [Pair(p, r.choices[0].text) for p, r in zip(asked, results, strict=True)])
