"""The token-level part of a request, fixed at admission: plain numbers and names, no tensors and no models.

Notation: z are logits, C is the candidate set. For every token v the batched pass over the logits computes

    s(v) = base_weight * z_base(v) + sum of weight * z_lane(v) over the mixture      (or a power mean, see `power`)
         + sum of weight * transform(value(h, v)) over the value terms               for v in C

after hidden-state edits and before temperature, min-p, top-k and top-p. Penalties, biases and bans belong to the
answer: they change s after the mixture, and C is taken from the base logits with the same edits.
"""

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from trimtab.engine.sampling import SamplingParams
from trimtab.kernels.finish_candidates import MOST_LISTED

if TYPE_CHECKING:  # settings read this file, and torch takes seconds to import
    from trimtab.kernels.mixing import Transform

BASE = "base"
"""name of the base model, in plans and in usage reports"""


@dataclass(frozen=True, slots=True)
class Variant:
    """How a row differs from the plain model: a low-rank adapter, maybe scaled, and vectors added to hidden states."""

    adapter: str | None = None
    """name of the adapter guide"""
    vectors: tuple[tuple[str, float], ...] = ()
    """(name of the vector guide, coefficient); the parts of one layer add up"""
    scales: tuple[float, ...] = ()
    """by what each block of the adapter is multiplied, in the adapter's order; empty: all of it counts once"""

    @property
    def salt(self) -> bytes:
        """Keeps cached prefixes of different variants apart; empty for the plain model."""
        return b"" if self == PLAIN else repr((self.adapter, self.vectors, self.scales)).encode()


PLAIN = Variant()


@dataclass(frozen=True, slots=True)
class LanePlan:
    """One model that reads the sequence along with the base."""

    name: str
    """what usage reports call it: the guide's name, or `base` for a second prompt of the base"""
    model: str
    """whose weights run: the guide's name, or `base` for an adapter or a second prompt"""
    prompt: "array[int]"
    variant: Variant = PLAIN
    scores: bool = False
    """it scores candidates for the next token instead of giving logits"""
    called: bool = False
    """it reads, or writes, only when the program calls for it by name"""


@dataclass(frozen=True, slots=True)
class Mixed:
    """One lane of the mixture; `lane` is its index in `SteerPlan.lanes`."""

    lane: int
    weight: float


@dataclass(frozen=True, slots=True)
class Candidates:
    """C(h): the tokens that the base distribution allows; all conditions hold together."""

    top_k: int = 0
    """0: off"""
    top_p: float = 1.0
    """smallest set of this mass"""
    alpha: float = 0.0
    """p >= alpha * max p"""
    keep_others: bool = False
    """tokens outside keep their score and get no value; else they cannot be drawn"""


@dataclass(frozen=True, slots=True)
class ValueTerm:
    """A value or reward of every candidate, read as if the candidate were the last token."""

    guide: str
    weight: float
    transform: "Transform" = "identity"
    """clamp: into [0, 1]; log_sigmoid; centre: minus the mean over the candidates"""
    lane: int | None = None
    """the lane that scores; None: a head on the base's hidden state"""


@dataclass(frozen=True, slots=True)
class HiddenEdit:
    """Gradient ascent of a value head on the base's last hidden state (RE-Control, arXiv 2406.05954)."""

    guide: str
    rate: float
    steps: int


@dataclass(frozen=True, slots=True)
class GatePlan:
    """Which of two models speaks: the base, or the language model in `lane`. They may have different tokenizers."""

    kind: Literal["nudging", "wsd"]
    lane: int
    draft: int
    """tokens that the guide drafts at most before the base reads them"""
    gamma: float = 0.0
    """nudging: the base speaks where its top probability reaches this"""
    window: int = 0
    """wsd: base tokens whose geometric mean probability decides"""
    threshold: float = 0.0
    """wsd: the mean from which the base takes over"""


@dataclass(frozen=True, slots=True)
class SteerPlan:
    """What the batched pass over the logits needs to know of one request, and which tokens end its sequences."""

    sampling: SamplingParams
    seed: int
    eos_ids: frozenset[int]
    """end the sequence; empty under ignore_eos"""
    variant: Variant = PLAIN
    """of the base's own rows"""
    lanes: tuple[LanePlan, ...] = ()
    base_weight: float = 1.0
    mixture: tuple[Mixed, ...] = ()
    power: float = 0.0
    """0: the weighted sum of logits; else a power mean of probabilities with exponent -power (MOD, 2406.18853)"""
    candidates: Candidates | None = None
    values: tuple[ValueTerm, ...] = ()
    limit: int = 0
    """keep only so many of the best scores (a top-k of the steered distribution); 0: off"""
    hidden: HiddenEdit | None = None
    gate: GatePlan | None = None
    reference: int | None = None
    """the lane whose distribution counts as the base's in reports; None: the base lane itself"""
    trace: bool = False
    """keep a record of every token"""
    measured: bool = False
    """keep the measures of every token, for a program that weighs by them, even if nothing steers"""
    banned_early: tuple[int, ...] = field(init=False)
    """tokens that may not be drawn while the answer is shorter than `min_tokens`"""

    def __post_init__(self) -> None:
        if self.sampling.ignore_eos:
            object.__setattr__(self, "eos_ids", frozenset())
        banned = self.ends if self.sampling.min_tokens else ()
        object.__setattr__(self, "banned_early", tuple(sorted(banned)))

    @property
    def ends(self) -> frozenset[int]:
        """Tokens that end an answer and are no text."""
        return self.eos_ids.union(self.sampling.stop_token_ids)

    @property
    def edits_logits(self) -> bool:
        """Whether some logit changes before the draw (penalties, bias, or a ban on ending early)."""
        sampling = self.sampling
        penalties = sampling.repetition_penalty != 1.0 or sampling.presence_penalty or sampling.frequency_penalty
        return bool(penalties or sampling.logit_bias or self.banned_early)

    @property
    def candidate_count(self) -> int:
        """Candidates that scorers read at most; 0: nobody scores some tokens alone."""
        return self.candidates.top_k if self.candidates is not None and self.values else 0

    @property
    def drawn_as_given(self) -> bool:
        """Whether the sampling parameters leave a distribution as it is."""
        sampling = self.sampling
        filters = sampling.top_k or self.limit or sampling.top_p < 1.0 or sampling.min_p > 0.0
        return sampling.temperature == 1.0 and not filters and not self.edits_logits

    @property
    def short(self) -> bool:
        """Whether every token that can be drawn stands in a list of candidates with the base's own logits."""
        sets = self.candidates
        listed = sets is not None and 0 < sets.top_k <= MOST_LISTED and not sets.keep_others
        return listed and not self.mixture and self.base_weight == 1 and not self.trace

    @property
    def plausible(self) -> bool:
        """Whether the candidate set is plausibility alone, without values: the pass that draws knows it."""
        sets = self.candidates
        alone = sets is not None and (sets.top_k, sets.top_p) == (0, 1.0) and not sets.keep_others
        return alone and not self.values and not self.power

    @property
    def shaped(self) -> bool:
        """Whether the scores that tokens are drawn from need more than the base's logits and the answer's edits.

        The base's turn in a greedy duet does not: its token is the most likely one, and nothing is to be measured.
        """
        quiet = self.gate is not None and self.hidden is None and self.sampling.temperature == 0
        return (
            self.trace
            or (self.measured and not self.drawn_as_given)
            or (self.steered and (not quiet or self.edits_logits))
        )

    @property
    def guides(self) -> frozenset[str]:
        """Names of the guides that shape each token; not those that the program calls for."""
        lanes = [lane for lane in self.lanes if not lane.called]
        variants = [self.variant, *(lane.variant for lane in lanes)]
        names = {lane.name for lane in lanes} | {term.guide for term in self.values}
        names |= {name for variant in variants for name in (variant.adapter, *dict(variant.vectors)) if name}
        return frozenset(names | ({self.hidden.guide} if self.hidden else set())) - {BASE}

    @property
    def steered(self) -> bool:
        """Whether anything but the base model and the sampling parameters shapes the next token."""
        lanes = any(not lane.called for lane in self.lanes)
        scores = self.base_weight != 1 or self.candidates or self.values or self.hidden or self.limit
        return bool(lanes or scores or self.variant != PLAIN)

    @property
    def alone(self) -> "SteerPlan":
        """The same sampling from one model as it is; control vectors stay, because cached keys and values hold them."""
        return SteerPlan(
            self.sampling,
            self.seed,
            self.eos_ids,
            self.variant,
            trace=self.trace,
            measured=self.measured,
        )
