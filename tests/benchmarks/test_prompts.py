"""Our own texts: prompts to train on and others held out, sentences rated by hand."""

import json
import re
from pathlib import Path

import pytest
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from trimtab.training.metrics import spearman

ROOT = Path(__file__).parents[2]
COMMON = re.findall(
    r"\w+",
    "about after and describe for give has how its like old one opinion our review say short some story "
    "tell that the think through was what when who will with write your you",
)


def prompts(file: str) -> list[str]:
    return [json.loads(line)["prompt"] for line in (ROOT / file).read_text().splitlines()]


@pytest.mark.parametrize(("file", "count"), [("training/demo/prompts.jsonl", 300), ("benchmarks/prompts.jsonl", 60)])
def test_prompts_are_different_and_short(file: str, count: int) -> None:
    found = prompts(file)
    assert len(found) == len(set(found)) == count
    assert all(4 <= len(prompt.split()) <= 20 for prompt in found)


def test_no_held_out_prompt_is_like_one_to_train_on() -> None:
    seen = [words(prompt) for prompt in prompts("training/demo/prompts.jsonl")]
    close = [
        prompt
        for prompt in prompts("benchmarks/prompts.jsonl")
        for other in seen
        if len(words(prompt) & other) > 0.5 * len(words(prompt))
    ]
    assert not close


def test_sentences_are_rated_as_a_lexicon_would_roughly_rate_them() -> None:
    lines = [json.loads(line) for line in (ROOT / "tests/data/sentences.jsonl").read_text().splitlines()]
    assert len({line["text"] for line in lines}) == 60
    assert all(-4 <= line["score"] <= 4 for line in lines)
    vader = SentimentIntensityAnalyzer()
    found = [vader.polarity_scores(line["text"])["compound"] for line in lines]
    assert 0.75 < spearman(found, [line["score"] for line in lines]) < 0.95  # some are negated, on purpose


def words(prompt: str) -> set[str]:
    return set(re.findall(r"\w{3,}", prompt.lower())) - {*COMMON}
