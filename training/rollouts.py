"""Answers that the engine samples for prompts, with their rewards, for data that is prompts alone."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from tqdm import tqdm

from trimtab.engine.guides.card import CARD
from trimtab.engine.guides.config import GuideConfigs, ModelGuideConfig, RewardModelConfig
from trimtab.engine.guides.folders import locate
from trimtab.engine.loading import fingerprint
from trimtab.engine.rewards import Pair
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.sources import resolve, short_name
from trimtab.engine.vocabulary import Message
from trimtab.llm import LLM
from trimtab.training.checkpoint import write
from trimtab.training.errors import DataError
from trimtab.training.options import Sampled, Source
from trimtab.training.rows import answer_row
from trimtab.training.run import device_of

REWARD: Final = "reward"
"""name of the reward guide while answers are sampled; `guides` may not use it"""
SCORED: Final = 256
"""answers between two steps of the progress bar"""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A sampled answer. One that `max_tokens` cut ends without an EOS, and its reward is that of the cut text."""

    messages: tuple[Message, ...]
    prompt_ids: tuple[int, ...]
    tokens: tuple[int, ...]
    """as they were decoded, the EOS included if there was one"""
    answer: str
    reward: float


def rollouts(
    options: Source,
    sampled: Sampled,
    prompts: Sequence[tuple[Message, ...]],
    *,
    seed: int,
    decoding: Mapping[str, Any] | None = None,
    guides: GuideConfigs | None = None,
) -> list[Rollout]:
    """Return `sampled.answers` answers for each prompt, in the order of the prompts, with their rewards.

    `decoding` steers them by `guides`. They are kept as JSON Lines in `sampled.cache`, or beside the guide, under a
    digest of everything that decides them, so that guides share them and a second run samples nothing.
    Raises DataError without a reward, and what loading and sampling raise.
    """
    if sampled.reward is None:
        raise DataError("the data holds prompts alone: pass --reward with the guide that scores sampled answers")
    named = {REWARD: RewardModelConfig(model=sampled.reward)} | (guides or {})
    told = {
        "base": _base(options),
        "guides": {name: _guide(config) for name, config in named.items()},
        "sampled": sampled.model_dump(exclude={"reward", "cache"}),
        "prompts": prompts,
        "seed": seed,
        "decoding": decoding,
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]
    path = (sampled.cache or options.out / "rollouts") / f"{digest}.jsonl"
    if not path.is_file():
        found = _sample(options, sampled, prompts, seed, decoding, named)
        lines = "".join(json.dumps(asdict(each)) + "\n" for each in found)
        write(path, lambda place: place.write_text(lines, encoding="utf-8"))
    return [_read(line) for line in path.read_text(encoding="utf-8").splitlines()]


def policy(options: Source, sampled: Sampled, decoding: Mapping[str, Any] | None = None) -> str:
    """Say whose answers they are, for the card."""
    how = "plain" if decoding is None else ", ".join(f"{key} {value}" for key, value in decoding.items())
    return (
        f"{short_name(options.base)}, {how}, temperature {sampled.temperature:g}, {sampled.answers} answers of at most "
        f"{sampled.max_tokens} tokens for each prompt"
    )


def checksum(found: Sequence[Rollout]) -> str:
    """Return 16 hex digits of answers and rewards, for what a run depends on."""
    told = json.dumps([(each.prompt_ids, each.tokens, each.reward) for each in found])
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def content(source: str) -> str:
    """Return 16 hex digits of the files of a guide that lies on this machine; other names stand for themselves."""
    place = locate(source)
    if not place.exists():
        return source
    files = [place] if place.is_file() else sorted(each for each in place.iterdir() if each.is_file())
    digest = hashlib.sha256()
    for file in files:
        if file.suffix in (".safetensors", ".gguf", ".jinja", ".json") and file.name not in (CARD, "report.json"):
            digest.update(b"" if file is place else file.name.encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _base(options: Source) -> list[str]:
    folder = resolve(options.base)
    words = hashlib.sha256()
    for file in sorted([*folder.glob("tokenizer*"), *folder.glob("*.jinja")]):
        words.update(file.name.encode() + file.read_bytes())
    return [fingerprint(folder), words.hexdigest()[:16], options.dtype, device_of(options)]


def _guide(config: Any) -> dict[str, Any]:
    told: dict[str, Any] = config.model_dump(mode="json")
    return told | ({"model": content(config.model)} if isinstance(config, ModelGuideConfig) else {})


def _sample(
    options: Source,
    sampled: Sampled,
    prompts: Sequence[tuple[Message, ...]],
    seed: int,
    decoding: Mapping[str, Any] | None,
    guides: GuideConfigs,
) -> list[Rollout]:
    settings = EngineSettings(
        model=options.base,
        dtype=options.dtype,
        device=options.device,
        guides=guides,
        max_waiting=max(1, len(prompts)),
        max_candidates=max(256, sampled.answers),
    )
    how = [
        SamplingParams(temperature=sampled.temperature, max_tokens=sampled.max_tokens, seed=seed * 1_000_003 + index)
        for index in range(len(prompts))
    ]
    with LLM(settings=settings) as llm:
        ids = [answer_row(llm.vocabulary, messages, "", None, llm.context_length).ids for messages in prompts]
        results = llm.generate(ids, how, n=sampled.answers, decoding=decoding)
        answers = [(index, choice) for index, result in enumerate(results) for choice in result.choices]
        pairs = [Pair(prompts[index], choice.text) for index, choice in answers]
        rewards: list[float] = []
        with tqdm(total=len(pairs), unit="answer", desc="scores") as bar:
            for at in range(0, len(pairs), SCORED):
                rewards += llm.score(REWARD, pairs[at : at + SCORED])
                bar.update(len(rewards) - bar.n)
    return [
        Rollout(prompts[index], tuple(ids[index]), choice.token_ids, choice.text, reward)
        for (index, choice), reward in zip(answers, rewards, strict=True)
    ]


def _read(line: str) -> Rollout:
    given = json.loads(line)
    return Rollout(
        messages=tuple(Message(role=each["role"], content=each["content"]) for each in given["messages"]),
        prompt_ids=tuple(given["prompt_ids"]),
        tokens=tuple(given["tokens"]),
        answer=given["answer"],
        reward=given["reward"],
    )
