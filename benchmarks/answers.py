"""Answers of one decoding to many prompts under many seeds, and what is measured of them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

from trimtab import LLM, SamplingParams
from trimtab.engine.results import Failure, Result
from trimtab.engine.rewards import Pair
from trimtab.engine.vocabulary import Message
from trimtab.requests import GenerationRequest


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and what it is worth."""

    strategy: str
    prompt: str
    seed: int
    text: str
    tokens: int
    reward: float
    """of the guide that steers, or that the guides were trained on"""
    gold: float
    """compound score of VADER (Hutto and Gilbert 2014), -1 to 1: word lists and rules that steering never sees"""
    logprob: float
    """nats, of the whole answer under the base as it is"""
    kl: float | None
    """nats, of the whole answer: KL(steered || base), of a search the bound that it reports"""


def answer_all(
    llm: LLM, prompts: Sequence[str], decoding: Mapping[str, Any] | None, sampling: SamplingParams, seed: int
) -> list[Result]:
    """Answer all prompts in shared batches, each under a seed of its own that is the same for every decoding."""
    done: SimpleQueue[Any] = SimpleQueue()
    for index, prompt in enumerate(prompts):
        own = sampling.model_copy(update={"seed": 1_000 * seed + index})  # one seed for all would draw alike for all
        request = GenerationRequest(messages=_messages(prompt), sampling=own, decoding=decoding)
        llm.submit(llm.prepare(request), index, done.put)
    results: dict[int, Result] = {}
    while len(results) < len(prompts):
        for index, event in done.get():
            if isinstance(event, Failure):
                raise event.error
            if isinstance(event, Result):
                results[index] = event
    return [results[index] for index in range(len(prompts))]


def measured(
    llm: LLM, reward: str, strategy: str, seed: int, prompts: Sequence[str], results: Sequence[Result]
) -> Iterator[Answer]:
    """Score the first choice of each result, which must have been asked for its log-probabilities."""
    texts = [result.choices[0].text for result in results]
    rewards = llm.score(reward, [Pair(_messages(prompt), text) for prompt, text in zip(prompts, texts, strict=True)])
    vader = SentimentIntensityAnalyzer()
    for prompt, text, result, score in zip(prompts, texts, results, rewards, strict=True):
        choice = result.choices[0]
        yield Answer(
            strategy=strategy,
            prompt=prompt,
            seed=seed,
            text=text,
            tokens=len(choice.token_ids),
            reward=score,
            gold=vader.polarity_scores(text)["compound"],
            logprob=sum(token.logprob for token in choice.logprobs or ()),
            kl=_distance(result),
        )


def by_prompt(answers: Sequence[Answer], measure: str, seeds: int) -> NDArray[np.float64]:
    """Return one measure of answers that come seed by seed, (P, S)."""
    return np.array([getattr(answer, measure) for answer in answers], dtype=np.float64).reshape(seeds, -1).T


def logprob_per_token(answers: Sequence[Answer]) -> float:
    """Return the mean log-probability of a token under the base, nats: very low for gibberish."""
    return sum(answer.logprob for answer in answers) / max(1, sum(answer.tokens for answer in answers))


def _distance(result: Result) -> float | None:
    """KL from the base: a search's is a bound for all its draws, its choice's own steering would be 0."""
    bound: float | None = result.report.get("kl_bound")
    if bound is not None:
        return bound
    steering = result.choices[0].steering
    return 0.0 if steering is None else steering.kl


def _messages(prompt: str) -> tuple[Message, ...]:
    return (Message(role="user", content=prompt),)
