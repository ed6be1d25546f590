"""Nudging and weak-to-strong decoding by two models of different tokenizers, against the rule on plain text."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from collector import Collector
from folders import foreign_folder, teach_letters
from plain import Plain, base_prompt
from steered import GREEDY, chat, ids, load, user
from tiny import tiny_folder
from torch import Tensor
from toy import byte_tokenizer
from transformers import AutoTokenizer

from trimtab import LLM, SamplingParams
from trimtab.engine.results import Delta, Result
from trimtab.engine.words import word_starts
from trimtab.requests import GenerationRequest

LETTERS = "abcdehilnorstuwy "
EOS = 256
COUNT = 48


@dataclass(frozen=True)
class Voices:
    """The two models and tokenizers as transformers runs them, and how the guide reads the question."""

    place: Path
    base: Plain
    guide: Plain
    guide_tokens: Any
    guide_prompt: str = "[user] Hi;[reply] "

    @cache  # noqa: B019 - lives as long as the module's fixture
    def base_says(self, text: str) -> Tensor:
        """The base's log-probabilities after the question and `text`, (V,)."""
        return self.base.logprobs([*base_prompt("Hi"), *byte_tokenizer().encode(text)])

    @cache  # noqa: B019
    def draft(self, text: str, count: int) -> tuple[list[str], bool]:
        """What the guide says after `text`, at most `count` tokens, and whether it ended there."""
        read = self.guide_tokens.encode(self.guide_prompt) + self.guide_tokens.encode(text)
        said: list[str] = []
        while len(said) < count:
            token = int(self.guide.logits(read).argmax())
            if token == self.guide_tokens.eos_token_id:
                return said, True
            read.append(token)
            said.append(self.guide_tokens.decode([token]))
        return said, False


def char(token: int) -> str:
    return str(byte_tokenizer().decode([token]))


def make_voices(place: Path, seed: int) -> Voices:
    base = teach_letters(tiny_folder(place / "base", seed=seed), "aeno ", loudness=7.0)
    guide = teach_letters(foreign_folder(place / "guide", seed=10 + seed), LETTERS, loudness=2.0)
    return Voices(place, Plain(base), Plain(guide), AutoTokenizer.from_pretrained(guide))


@pytest.fixture(scope="module", params=[2, 4])
def voices(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Voices:
    return make_voices(tmp_path_factory.mktemp("voices"), request.param)


@pytest.fixture(scope="module")
def llm(voices: Voices) -> Iterator[LLM]:
    with load(voices.place / "base", {"guide": {"role": "lm", "model": str(voices.place / "guide")}}) as llm:
        yield llm


def nudged(voices: Voices, gamma: float, count: int) -> tuple[str, str, int]:
    """The answer by the rule, its finish reason, and how many of its bytes the guide wrote."""
    answer, by_guide = "", 0

    def opinion(text: str) -> tuple[int, float]:
        p, token = voices.base_says(text).exp().max(dim=0)
        return int(token), float(p)

    def sure(text: str) -> bool:
        token, p = opinion(text)
        return p >= gamma and token != EOS

    while len(answer) < count:
        said, ended = voices.draft(answer, 2 * COUNT)
        turn = "".join(said)
        for start in word_starts(turn)[1:]:
            token, _ = opinion(answer + turn[:start])
            if sure(answer + turn[:start]) or (token != EOS and char(token) == turn[start]):
                break
        else:
            assert ended or len(answer + turn) >= count
            by_guide += min(len(turn), count - len(answer))
            answer += turn
            break
        by_guide += min(start, count - len(answer))
        answer += turn[:start]
        answer += char(opinion(answer)[0])
        while len(answer) < count and sure(answer):
            answer += char(opinion(answer)[0])
    return answer[:count], "length" if len(answer) >= count else "stop", by_guide


def handed_over(voices: Voices, window: int, threshold: float, count: int) -> tuple[str, str]:
    """The answer of weak-to-strong decoding and its finish reason."""
    said, ended = voices.draft("", 2 * COUNT)
    text = "".join(said)
    logprobs: list[float] = []
    for i in range(len(text)):
        logprobs.append(float(voices.base_says(text[:i])[byte_tokenizer().encode(text[i])[0]]))
        if len(logprobs) >= window and math.exp(sum(logprobs[-window:]) / window) >= threshold:
            break
    else:
        return text[:count], "stop" if ended and len(text) < count else "length"
    answer = text[: i + 1]
    while len(answer) < count:
        token = int(voices.base_says(answer).argmax())
        if token == EOS:
            return answer, "stop"
        answer += char(token)
    return answer[:count], "length"


def sampling(count: int = COUNT, **changes: object) -> SamplingParams:
    return GREEDY.model_copy(update={"max_tokens": count, **changes})


@pytest.mark.parametrize("draft", [3, 16])
def test_nudging_follows_the_rule_on_text(llm: LLM, voices: Voices, draft: int) -> None:
    spoken = set()
    for gamma in (0.2, 0.5, 0.8):
        decoding = {"strategy": "nudging", "aligned": "guide", "gamma": gamma, "draft": draft, "trace": "tokens"}
        choice = chat(llm, decoding, sampling()).choices[0]
        answer, reason, by_guide = nudged(voices, gamma, COUNT)
        assert (choice.text, choice.finish_reason) == (answer, reason), gamma
        assert choice.trace is not None
        assert sum(each.source == "nudge" for each in choice.trace) == by_guide
        assert choice.steering is not None
        assert choice.steering.intervention_rate == pytest.approx(by_guide / len(answer))
        spoken |= {each.source for each in choice.trace}
    assert spoken == {"nudge", "base"}


def test_the_strong_model_takes_over_at_the_first_sure_window(llm: LLM, voices: Voices) -> None:
    switched = 0
    for window, threshold in ((1, 0.3), (2, 0.05), (4, 0.01), (3, 1.0)):
        decoding = {"strategy": "wsd", "aligned": "guide", "window": window, "threshold": threshold, "trace": "tokens"}
        choice = chat(llm, decoding, sampling()).choices[0]
        assert (choice.text, choice.finish_reason) == handed_over(voices, window, threshold, COUNT)
        sources = [each.source for each in choice.trace or ()]
        assert sources == sorted(sources, reverse=True)  # drafted words, then the base's
        switched += "base" in sources
    assert switched


def test_with_gamma_zero_the_guide_says_one_word(llm: LLM, voices: Voices) -> None:
    choice = chat(llm, {"strategy": "nudging", "aligned": "guide", "gamma": 0.0}, sampling()).choices[0]
    said, _ = voices.draft("", 2 * COUNT)
    turn = "".join(said)
    text = turn[: [*word_starts(turn), len(turn)][1]]
    if len(text) < len(turn):
        while len(text) < COUNT and int(voices.base_says(text).argmax()) != EOS:
            text += char(int(voices.base_says(text).argmax()))
    assert choice.text == text[:COUNT]


NUDGED = {"strategy": "nudging", "aligned": "guide", "gamma": 0.5}


def test_streams_concatenate_to_the_text(llm: LLM) -> None:
    for decoding in (NUDGED, {"strategy": "wsd", "aligned": "guide", "window": 2, "threshold": 0.05}):
        request = GenerationRequest(messages=tuple(user()), sampling=sampling(logprobs=0), n=2, decoding=decoding)
        collector = Collector()
        llm.submit(llm.prepare(request), object(), collector)
        assert collector.done.wait(20)
        result = collector.events[-1]
        assert isinstance(result, Result)
        for index, choice in enumerate(result.choices):
            mine = [each for each in collector.events if isinstance(each, Delta) and each.choice == index]
            assert "".join(each.text for each in mine) == choice.text
            assert tuple(token for each in mine for token in each.token_ids) == choice.token_ids
            assert [each for part in mine for each in part.logprobs or ()] == list(choice.logprobs or ())
            assert len(mine) > 2
        assert result.choices[0].text == result.choices[1].text  # greedy


def test_a_stop_string_ends_inside_a_word_of_the_guide(llm: LLM, voices: Voices) -> None:
    whole, _, _ = nudged(voices, 0.5, COUNT)
    at = next(i for i in range(2, len(whole)) if whole.find(whole[i : i + 3]) == i)
    stop = whole[at : at + 3]
    choice = chat(llm, NUDGED, sampling(stop=(stop,))).choices[0]
    assert (choice.text, choice.finish_reason, choice.stop_reason) == (whole[:at], "stop", stop)
    kept = chat(llm, NUDGED, sampling(stop=(stop,), include_stop_str_in_output=True)).choices[0]
    assert kept.text == whole[: at + 3]


@pytest.mark.parametrize("count", [1, 2, 5, 17])
def test_max_tokens_holds_inside_a_draft(llm: LLM, voices: Voices, count: int) -> None:
    choice = chat(llm, NUDGED, sampling(count)).choices[0]
    answer, reason, _ = nudged(voices, 0.5, count)
    assert (choice.text, choice.finish_reason) == (answer, reason)
    assert len(choice.token_ids) == len(answer)


def test_the_guide_ends_an_answer_unless_it_shall_go_on(tmp_path: Path) -> None:
    voices = make_voices(tmp_path, 0)
    early, reason, _ = nudged(voices, 0.9, COUNT)
    assert reason == "stop"
    assert len(early) < COUNT // 2
    guided = {**NUDGED, "gamma": 0.9}
    with load(tmp_path / "base", {"guide": {"role": "lm", "model": str(tmp_path / "guide")}}) as llm:
        ended = chat(llm, guided, sampling()).choices[0]
        assert (ended.text, ended.finish_reason, ended.stop_reason) == (early, "stop", None)
        for changes in ({"ignore_eos": True}, {"min_tokens": COUNT}):
            choice = chat(llm, guided, sampling(**changes)).choices[0]
            assert (len(choice.text), choice.finish_reason) == (COUNT, "length")
            assert choice.text.startswith(early)
        assert len(chat(llm, guided, sampling(min_tokens=len(early) + 1)).choices[0].text) > len(early)


def test_drawn_answers_differ_and_repeat(llm: LLM) -> None:
    drawn = sampling(temperature=1.0)
    first, second = (chat(llm, NUDGED, drawn, n=2) for _ in range(2))
    assert first.choices == second.choices
    assert ids(first, 0) != ids(first, 1)


def test_a_crowded_pool_changes_nothing(voices: Voices, llm: LLM) -> None:
    """Both pools are too small for what runs: voices lose their pages and read again."""
    requests = [
        GenerationRequest(messages=tuple(user(f"Hi {i}")), sampling=sampling(temperature=0.7), n=2, decoding=decoding)
        for i, decoding in enumerate([NUDGED, None, {**NUDGED, "gamma": 0.2}, NUDGED])
    ]
    roomy = llm._run(requests, progress=False)
    guide = {"role": "lm", "model": str(voices.place / "guide"), "pool_tokens": 128}
    with load(voices.place / "base", {"guide": guide}, pool_tokens=128) as cramped:
        small = cramped._run(requests, progress=False)
        assert cramped.stats.preemptions
        for model in cramped.models.values():
            model.runner.pool.check([])
    for one, other in zip(roomy, small, strict=True):
        assert [each.text for each in one.choices] == [each.text for each in other.choices]


def test_an_answer_ends_where_the_context_of_the_guide_does(voices: Voices) -> None:
    """Or it goes on alone, where the base does not ask the guide again."""
    guide = {"role": "lm", "model": str(voices.place / "guide"), "context_length": 40}
    with load(voices.place / "base", {"guide": guide}) as llm:
        short = chat(llm, {**NUDGED, "gamma": 1.0}, sampling(200)).choices[0]
        whole, reason, _ = nudged(voices, 1.0, 100)
        assert whole.startswith(short.text)
        assert short.finish_reason == ("stop" if short.text == whole and reason == "stop" else "length")
        assert len(short.token_ids) == len(short.text)
        for model in llm.models.values():
            model.runner.pool.check([])
        assert torch.isfinite(torch.tensor(short.steering.logprob_base if short.steering else math.nan))


@pytest.mark.parametrize("temperature", [0.0, 0.6])
def test_the_summary_is_that_of_the_trace_with_and_without_one(llm: LLM, temperature: float) -> None:
    """A greedy duet measures less on its way; what it reports is the same."""
    sampling = GREEDY.model_copy(update={"temperature": temperature, "seed": 3, "max_tokens": COUNT})
    decoding = {"strategy": "nudging", "aligned": "guide", "gamma": 0.4}
    short, long = (chat(llm, each, sampling).choices[0] for each in (decoding, {**decoding, "trace": "tokens"}))
    assert short.token_ids == long.token_ids
    assert short.steering is not None
    assert long.steering is not None
    assert long.trace is not None
    assert {each.source for each in long.trace} == {"base", "nudge"}
    assert asdict(short.steering) == pytest.approx(asdict(long.steering), abs=1e-4)
    assert short.steering.logprob_base == pytest.approx(sum(each.logprob_base or 0.0 for each in long.trace), abs=1e-4)
    spoken = sum(each.kl or 0.0 for each in long.trace if each.source == "base")
    assert (spoken > 1e-3) == (temperature > 0), "only a temperature takes the base's own words from the base"
