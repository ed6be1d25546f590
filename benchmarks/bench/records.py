"""What a run writes down: settings, answers one by one, and a row per setting and concurrency."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

BASE = "base"
"""name of plain sampling, which every run measures and every gain is over"""

Level = Literal["base", "token", "answer", "prompt"]
"""what a strategy works on: each token, whole answers, or what the models read"""


class Record(BaseModel):
    """One line of JSON; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Setting(Record):
    """One strategy with its parameters, under a name of its own."""

    name: str = Field(min_length=1)
    decoding: dict[str, Any] = Field(default_factory=dict)
    """as in a request; empty: plain sampling"""
    family: str = ""
    """settings of one family differ by `strength` alone; plots join them by a line. Empty: a family of its own"""
    strength: float | None = None
    curve: tuple[int, ...] = ()
    """for `best_of_n`: the numbers of answers, up to its own `n`, whose rewards follow by order statistics; each is
    timed on a few prompts"""

    @property
    def strategy(self) -> str:
        return str(self.decoding.get("strategy", "sample"))


class Considered(Record):
    """One of the answers that a search drew."""

    reward: float | None
    gold: float | None
    tokens: int


class Answer(Record):
    """One request and what came of it: a line of `answers.jsonl`."""

    setting: str
    concurrency: int
    prompt: str
    """id of the prompt"""
    seed: int
    """of the repetition, 0 and up; the request's own seed is drawn from it and the prompt, alike for all settings"""
    part: int
    """of which start of the run: a run that goes on after an interruption counts one more"""
    sent: float
    """seconds since the epoch"""
    ttft: float | None = None
    """seconds from sending to the first text; None if no text came"""
    e2e: float = 0.0
    """seconds from sending to the end"""
    text: str = ""
    finish_reason: str = ""
    stopped_by: str | None = None
    prompt_tokens: int = 0
    delivered: int = 0
    """tokens of the answer"""
    spent: dict[str, int] = Field(default_factory=dict)
    """tokens that each model processed, by model"""
    forwards: dict[str, int] = Field(default_factory=dict)
    reward: float | None = None
    gold: float | None = None
    kl: float | None = None
    """nats, of the whole answer: KL(steered || base); of a search the bound that it reports"""
    bounded: bool = False
    """whether `kl` is a bound"""
    branching: float | None = None
    considered: tuple[Considered, ...] = ()
    """of a setting with a curve"""
    error: str | None = None
    """what the server refused or failed with; then nothing above was measured"""


class Interval(Record):
    """A mean with its 95 % percentile bootstrap interval over prompts."""

    mean: float
    low: float
    high: float


class Gain(Interval):
    """The difference from the mean of plain sampling's answers, paired by prompt."""

    improved: float
    """share of prompts whose mean difference is above 0"""


class Percentiles(Record):
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


class Distance(Record):
    """KL from the base per answer, nats."""

    mean: float
    bound: bool
    """whether it is an upper bound, as searches report it"""


class Conditions(Record):
    """Under which a run was made: the same in all of its rows, and what must agree for a run to go on."""

    url: str
    model: str
    """id that requests named"""
    reward: str
    gold: str | None
    prompts: str
    """name of the prompt set"""
    digest: str
    """of the prompts asked, hexadecimal"""
    seed: int
    repeats: int
    max_tokens: int
    temperature: float
    version: str
    """of the server"""
    commit: str | None
    """of the benchmark's own source tree, where there is one; `, changed` if it was not as committed"""
    dtype: str
    device: str
    machine: Mapping[str, Any]
    """what the server tells of its hardware and libraries"""


class Row(Record):
    """One setting at one concurrency: a line of `rows.jsonl`."""

    setting: str
    strategy: str
    level: Level
    family: str
    strength: float | None
    decoding: dict[str, Any]
    concurrency: int
    prompts: int
    answers: int
    error: str | None = None
    """the first error, if any answer failed; then nothing below is there"""
    estimated: str | None = None
    """how reward, gold, win rate and KL were found, where not from answers of this setting"""
    reward: Interval | None = None
    reward_gain: Gain | None = None
    gold: Interval | None = None
    gold_gain: Gain | None = None
    gold_prompts: int = 0
    """how many of the prompts gold could judge: VADER reads English alone"""
    win_rate: Interval | None = None
    """chance of a higher reward than plain sampling's answer to the same prompt under another seed, ties count half;
    under the same seed where there is no other"""
    kl: Distance | None = None
    distinct: dict[int, float] = Field(default_factory=dict)
    """distinct-n of all answers together, by n"""
    repetition: float | None = None
    """share of an answer's sequences of four words that stood in it before, mean"""
    branching: float | None = None
    """branching factor of the steered distributions, geometric mean over answers"""
    ttft_ms: Percentiles | None = None
    per_token_ms: Percentiles | None = None
    """from the first text to the end over the tokens after the first; where all comes at once, the whole time over all
    tokens"""
    e2e_ms: Percentiles | None = None
    tokens_per_second: float | None = None
    """delivered by all requests together"""
    requests_per_second: float | None = None
    delivered: float | None = None
    """tokens per answer"""
    truncated: float | None = None
    """share of answers that ended at the token limit"""
    spent: dict[str, float] = Field(default_factory=dict)
    """tokens processed per answer, by model"""
    forwards: dict[str, float] = Field(default_factory=dict)
    """per answer, by model"""
    peak_memory_mib: float | None = None
    """largest memory of the server seen while the setting ran, on a GPU or else resident. Resident memory seldom
    shrinks: what is measured later has at least as much"""
    conditions: Conditions

    @property
    def spent_total(self) -> float:
        """Tokens of all models per answer."""
        return sum(self.spent.values())
