"""What the engine tells its caller: deltas while a request runs, one result or one error at the end."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.tally import ROWS, STRATEGIES, Tally

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its log-probability under the base model, and the base model's best alternatives."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


Source = Literal["base", "steered", "nudge", "draft"]
"""who chose a token: the base as it is, the steered distribution, or another model (nudging, a draft)"""


@dataclass(frozen=True, slots=True)
class TokenTrace:
    """What is known of one generated token; None where no distribution was at hand (words of another tokenizer)."""

    id: int
    source: Source
    logprob_base: float | None
    logprob_steered: float | None
    """under the distribution that it was drawn from: after temperature and filters"""
    entropy: float | None
    """nats, of the distribution that it was drawn from"""
    entropy_base: float | None
    kl: float | None
    """nats: KL(steered || base) at this position"""
    values: tuple[tuple[str, float | None], ...] = ()
    """what each value or reward guide gave the token, raw; None: it was not among the candidates"""
    top_base: tuple[tuple[int, float], ...] = ()
    """the base's most likely tokens with their log-probabilities"""
    top_steered: tuple[tuple[int, float], ...] = ()
    """the same of the steered scores, before temperature and filters"""


@dataclass(frozen=True, slots=True)
class Steering:
    """How far one answer is from the base's; sums are over its tokens, nats."""

    tokens: int
    kl: float | None
    """total KL(steered || base); None where the base's own distribution was not computed (control vectors)"""
    kl_mean: float | None
    logprob_base: float | None
    logprob_steered: float | None
    intervention_rate: float | None
    """share of tokens that another model spoke or, without a gate, of positions whose top token steering changed"""
    branching_factor: float | None
    """exp of the mean entropy of the distributions that the tokens were drawn from (Yang & Holtzman, arXiv 2506.17871):
    how many equally likely tokens a draw chose among; the words of another tokenizer's model are left out, and None
    where nothing else was said"""
    branching_factor_base: float | None
    """the same of the base's own distributions at those positions; None where they were not computed"""


@dataclass(frozen=True, slots=True)
class Delta:
    """Final text of one choice that was not sent before; deltas of a choice concatenate to its text."""

    choice: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """on the first delta of each choice, where the request asks for those of the prompt's tokens"""
    trace: tuple[TokenTrace, ...] | None = None
    """of these tokens, where the request asks for it; empty for words of the program's own"""


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `stop_reason` is the stop string or stop token id that ended it, None for EOS or length."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stop_reason: str | int | None
    logprobs: tuple[TokenLogprob, ...] | None
    steering: Steering | None = None
    """None where nothing but sampling parameters shaped the answer"""
    trace: tuple[TokenTrace, ...] | None = None
    """per token, if the request asked for it"""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer that a search considered; `choice` is its index among the returned choices, or None."""

    text: str
    tokens: int
    finish_reason: FinishReason
    reward: float | None
    choice: int | None
    rewards: Mapping[str, float] = field(default_factory=dict)
    """by guide, as the guides gave them"""
    terms: Mapping[str, float] = field(default_factory=dict)
    """by guide, after the transforms of the reward expression and before its weights"""
    value: float | None = None
    """what the search thought of it before it was finished"""


Fate = Literal["chosen", "kept", "pruned"]
"""on the way to a choice; on the way to another candidate; given up on the way"""


@dataclass(frozen=True, slots=True)
class TreeNode:
    """Tokens that a search wrote after those of the parent, with what it thought of the answer up to their end."""

    parent: int | None
    """index of a node before this one; None: the root"""
    token_ids: tuple[int, ...]
    """none: the root, and a further end of an answer where its parent ends"""
    value: float | None
    """None: the search thought nothing of it here"""
    reward: float | None
    fate: Fate
    candidate: int | None = None
    """index of the candidate that ends here"""
    choice: int | None = None
    """index of the choice that ends here"""


@dataclass(frozen=True, slots=True)
class Tree:
    """Everything that a search wrote as the beginnings of answers; each path from the root is one."""

    nodes: tuple[TreeNode, ...]
    """the root first, parents before children"""
    omitted: int = 0
    """nodes that were left out, of branches given up"""


PhaseName = Literal["queue", "prefill", "decode", "guide", "select"]


class Phase(NamedTuple):
    """What a request was doing for a while; times are seconds of time.monotonic."""

    name: PhaseName
    """guide: waiting for rewards and other readings of guides; select: the search's own code"""
    began: float
    ended: float


@dataclass(slots=True)
class Usage:
    """What a request cost. Times are wall-clock milliseconds; every field is filled by the engine."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """prompt tokens whose keys and values were found in the prefix cache"""
    completion_tokens: int = 0
    """tokens of the returned choices"""
    model_tokens: dict[str, int] = field(default_factory=dict)
    """tokens each model processed for this request: prompt, drafts and recomputation after preemption"""
    forwards: dict[str, int] = field(default_factory=dict)
    """forward passes each model took part in for this request"""
    milliseconds: dict[str, float] = field(default_factory=dict)
    """per phase: queue, prefill, decode, score, total"""
    preemptions: int = 0
    phases: tuple[Phase, ...] = ()
    """one after the other, without gaps; filled when the request ends"""


@dataclass(frozen=True, slots=True)
class Result:
    """The end of a request that succeeded."""

    choices: tuple[Choice, ...]
    candidates: tuple[Candidate, ...]
    usage: Usage
    seed: int
    stopped_by: str
    """`finished` when the program ran to its end, `abstained`, or the part of the budget that ended it"""
    report: Mapping[str, Any] = field(default_factory=dict)
    """numbers of the search, under the names of its strategy"""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """per token of the prompt, where the request asks for them; None: the first, and what the budget left unread"""
    tree: Tree | None = None
    """what the search wrote, if the request asked for it"""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a request stands after an op of its program."""

    phase: str
    """what has just ended: decode, score"""
    candidates: int
    """answers in the making, and finished ones, that may be returned"""
    finished: int
    best_reward: float | None
    model_tokens: int
    """processed by all models so far"""
    milliseconds: float
    """since the request arrived"""


@dataclass(frozen=True, slots=True)
class Failure:
    """The end of a request that did not succeed."""

    error: Exception
    usage: Usage | None = None
    """what it cost until then"""


Event = Delta | Progress | Result | Failure
Deliver = Callable[[list[tuple[object, Event]]], None]
"""Called once per tick from the engine's thread with every (handle, event) of that tick; must not block."""


@dataclass(slots=True)
class EngineStats:
    """Counters since start and gauges of now, read by /metrics; written by the engine's thread alone."""

    running: int = 0
    waiting: int = 0
    rows: int = 0
    pages_total: int = 0
    pages_used: int = 0
    """pages that a live sequence refers to"""
    pages_cached: int = 0
    """pages kept only because a later prompt may share them"""
    pages_pinned: int = 0
    """stored pages of constant prefixes, which are given up last"""
    prefix_queries: int = 0
    """prompt tokens looked up in the prefix cache"""
    prefix_hits: int = 0
    """prompt tokens found there"""
    prompt_tokens: int = 0
    """tokens prefilled"""
    generation_tokens: int = 0
    steps: int = 0
    forks: int = 0
    preemptions: int = 0
    stopped: bool = False
    """the engine gave up after repeated errors"""
    model_tokens: dict[str, int] = field(default_factory=dict)
    """tokens that each model processed, prefill and decode"""
    guide_errors: dict[str, int] = field(default_factory=dict)
    guide_circuit: dict[str, int] = field(default_factory=dict)
    """1: requests that need the guide are refused; 0: they are taken again"""
    rows_per_step: Tally = field(default_factory=lambda: Tally(ROWS))
    strategies_per_step: Tally = field(default_factory=lambda: Tally(STRATEGIES))
    """distinct ones among the requests of one decode step"""
    reward_batch_size: dict[str, Tally] = field(default_factory=dict)
    """answers of one batch that did not fail, by guide"""
    reward_latency: dict[str, Tally] = field(default_factory=dict)
    """seconds of one such batch, by guide"""
    remotes: dict[str, RemoteStats] = field(default_factory=dict)
    """calls to other servers, by what they run: `base`, or a guide"""


def add(counter: dict[str, int], name: str, amount: int) -> None:
    """Add to one of several counters that are kept by name."""
    counter[name] = counter.get(name, 0) + amount
