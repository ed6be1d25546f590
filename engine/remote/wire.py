"""What is asked of a remote base and what comes back, whatever server it is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.engine.sampling import SamplingParams


@dataclass(frozen=True, slots=True)
class Ask:
    """Continuations of token ids, or with `max_tokens` 0 only what the base thinks of them."""

    prompt: Sequence[int]
    max_tokens: int
    sampling: SamplingParams
    """of the request; its max_tokens, min_tokens, stop, seed and logprobs are not looked at: those here are"""
    seed: int
    stream: int = 0
    """number of the first continuation's random stream, for servers that know of streams; the others follow"""
    n: int = 1
    stop: tuple[str, ...] = ()
    """end a continuation with the token that completes one; the token is part of it"""
    stop_token_ids: tuple[int, ...] = ()
    min_tokens: int = 0
    """tokens before which nothing ends a continuation"""
    logprobs: int | None = None
    """best tokens wanted at each position beside the drawn one; None: no log-probabilities at all"""
    prompt_logprobs: int | None = None
    """the same of the prompt's tokens"""
    salt: str = ""
    """prefixes are shared only between calls of one salt"""
    session: str = ""
    """calls of one session should reach the same replica, which holds their prefix"""
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Token:
    """One token with what the remote base thinks of it, nats at temperature 1."""

    id: int
    logprob: float | None = None
    """None: not asked for, or the first token of a prompt"""
    top: tuple[tuple[int, float], ...] = ()
    """best tokens at its position, best first"""


@dataclass(frozen=True, slots=True)
class Continuation:
    """What follows the prompt once."""

    tokens: tuple[Token, ...]
    """with the end-of-text or stop token where one ended it and the server tells of it"""
    finish: Literal["stop", "length"]
    stop_reason: str | int | None = None
    """the stop string or token that ended it; None for end of text"""


@dataclass(frozen=True, slots=True)
class Reply:
    """All that one call gave."""

    continuations: tuple[Continuation, ...]
    """n of them, in order; none for max_tokens 0"""
    prompt: tuple[Token, ...] = ()
    """the prompt's tokens, where their log-probabilities were asked for"""
    cached: int = 0
    """tokens of the prompt that the server had stored, as far as it tells"""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a remote server can do, as found by trying it."""

    kind: Literal["trimtab", "vllm", "sglang", "llama.cpp", "other"]
    model: str
    """id that calls name"""
    context_length: int | None
    """tokens of prompt and continuation; None: it does not say"""
    token_prompts: bool
    """it takes prompts as token ids; nothing works without"""
    token_ids: bool
    """it returns the ids of what it wrote; without them text is tokenised again"""
    many: bool
    """it takes n > 1"""
    seeds: bool
    """equal seeds gave equal tokens"""
    streams: bool
    """it takes the number of a random stream, so that its draws are those of a local base"""
    logprobs: int
    """best tokens that it tells of at most; -1: no log-probabilities"""
    prompt_logprobs: int
    """the same of a prompt's tokens"""
    include_stop: bool
    """stop strings may stay in the text"""
    salts: bool
    """it keeps prefixes of different salts apart"""
    scores: tuple[str, ...] = ()
    """of score, classify and pooling: the routes that answer"""
    tokenizer: str = ""
    """hash of how it spells the probe texts; empty: it does not tell"""
