"""What the parts of one request ask of the token-level pass, collected and compiled to a `SteerPlan`.

The parts add up in any order, because the plan has one formula for all: the base's weight starts at 1 and every part
shifts weights by its own terms, candidate sets intersect, values and control vectors are summed.
"""

from array import array
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from math import fsum

from trimtab.decoders.preference import PATH
from trimtab.decoders.steer.roles import Roles
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import Guide, HeadGuide, ScorerGuide
from trimtab.engine.plan import (
    BASE,
    PLAIN,
    Candidates,
    GatePlan,
    HiddenEdit,
    LanePlan,
    Mixed,
    SteerPlan,
    ValueTerm,
    Variant,
)
from trimtab.engine.sampling import SamplingParams
from trimtab.kernels.mixing import Transform

MAX_CANDIDATES = 256
"""a scorer reads every candidate of every token: more would cost more than the answer"""


@dataclass(frozen=True, slots=True)
class PromptView:
    """What a lane reads in place of the request's prompt."""

    system: str | None = None
    """this system message instead; None: as it is"""
    added: str | None = None
    """this text at the end of the system message"""
    drop_system: bool = False
    empty: bool = False
    """nothing of the prompt at all"""


AS_IT_IS = PromptView()
Prompts = Callable[[str, PromptView], "array[int]"]
"""the prompt's ids for a guide's name or `base`, in that model's vocabulary"""


@dataclass(frozen=True, slots=True)
class _Reading:
    """Who reads what; a lane each, except the base's own."""

    guide: str
    view: PromptView = AS_IT_IS
    plain: bool = False
    """without the request's adapter and control vectors"""
    called: bool = False
    """only when the search calls for it"""


_OWN = _Reading(BASE)


class Draft:
    """A plan in the making. `where` is the path of the part that speaks; its errors begin with it.

    Every method takes the `field` of the request that it acts for, and raises InvalidRequest that names it when a
    guide is missing or cannot serve.
    """

    def __init__(self, guides: Mapping[str, Guide], prompts: Prompts, vocab_size: int) -> None:
        self.where = "decoding"
        self.filled: Collection[str] = ()
        """fields of the part that the request's preference has filled in"""
        self._roles = Roles(guides, vocab_size)
        self._prompts = prompts
        self._vocab_size = vocab_size
        self._weights: dict[_Reading, list[float]] = {_OWN: [1.0]}
        self._mixing: set[str] = set()
        """paths of the parts that mix"""
        self._power = 0.0
        self._power_path = ""
        self._candidates: Candidates | None = None
        self._top_k_field = ""
        self._values: dict[tuple[str, Transform], list[tuple[float, str]]] = {}
        """weights, each with the path of the field that it comes from"""
        self._limit = 0
        self._vectors: dict[str, list[float]] = {}
        self._adapted: Variant | None = None
        """the base's adapter and its scales, once a part has named them"""
        self._hidden: HiddenEdit | None = None
        self._gate: tuple[str, GatePlan] | None = None
        self._measured = False
        self._one_voice = False
        self._called: list[str] = []
        """language models that the search calls for"""
        self._scoring: list[str] = []
        """paths of the fields that shape scores, which a gate has no room for"""

    @property
    def guides(self) -> frozenset[str]:
        """Names of the guides that the parts and the search have asked for."""
        return frozenset(self._roles.named)

    def rebase(self, weight: float, *, field: str) -> None:
        """Let the base count `weight` where it would count 1."""
        self._mix(_OWN, weight, field)
        self._mix(_OWN, -1.0, field)

    def add(self, guide: str, weight: float, *, field: str, view: PromptView = AS_IT_IS) -> None:
        """Add `weight` times the logits of a language model, or of `base`, reading the prompt as `view` has it."""
        if guide != BASE:
            self._roles.mixable(guide, self._path(field))
        self._mix(_Reading(guide, view), weight, field)

    def power_mean(self, power: float, *, field: str) -> None:
        """Mix by the power mean of probabilities with exponent -power; no other part may mix then."""
        self._power = power
        self._power_path = self._path(field)

    def candidates(
        self, *, top_k: int = 0, top_p: float = 1.0, alpha: float = 0.0, keep_others: bool = False, field: str
    ) -> None:
        """Restrict the draw to what the base allows; with several such parts all conditions hold."""
        path = self._shape(field)
        old = self._candidates or Candidates(keep_others=keep_others)
        if old.keep_others != keep_others:
            raise InvalidRequest(
                "one part excludes the tokens outside its candidates and another keeps them: use one of the two, "
                "or set keep_others alike",
                param=path,
            )
        if top_k and (old.top_k == 0 or top_k < old.top_k):
            self._top_k_field = path
        self._candidates = Candidates(
            top_k=_smaller(old.top_k, top_k),
            top_p=min(old.top_p, top_p),
            alpha=max(old.alpha, alpha),
            keep_others=keep_others,
        )

    def value(self, guide: str, weight: float, transform: Transform = "identity", *, field: str) -> None:
        """Add `weight` times what a scorer, or a head of the whole vocabulary, says of every candidate."""
        path = self._shape(field)
        self._roles.scorer(guide, path)
        self._values.setdefault((guide, transform), []).append((weight, path))

    def scores_vocabulary(self, guide: str, *, field: str) -> bool:
        """Whether one call of the guide gives the value of every token, so that no candidates are needed."""
        return isinstance(self._roles.scorer(guide, self._path(field)), HeadGuide)

    def limit(self, top_k: int, *, field: str) -> None:
        """Draw from the best `top_k` steered scores alone."""
        self._shape(field)
        self._limit = _smaller(self._limit, top_k)

    def vector(self, guide: str, coeff: float, *, field: str) -> None:
        """Add `coeff` times a control vector to the base's hidden states."""
        self._roles.vector(guide, self._path(field))
        self._vectors.setdefault(guide, []).append(coeff)

    def adapt(
        self, guide: str, scales: Mapping[str, float], *, general: float = 1.0, field: str, scales_field: str
    ) -> None:
        """Run the base with an adapter, its blocks scaled: by attribute, 0 for those left out, and the general one.

        `scales_field` is the field of the request that names the attributes.
        """
        path = self._path(field)
        attributes = self._roles.divided(guide, path).attributes
        if unknown := [name for name in scales if name not in attributes]:
            told = f"{PATH}.weights" if scales_field in self.filled else self._path(scales_field)
            raise InvalidRequest(
                f"guide {guide!r} has no attribute {unknown[0]!r}; it knows {', '.join(attributes)}",
                param=f"{told}.{unknown[0]}",
            )
        if self._adapted is not None:
            raise InvalidRequest("two parts adapt the base: leave one out", param=path)
        factors = general, *(scales.get(name, 0.0) for name in attributes)
        self._adapted = Variant(adapter=guide, scales=factors) if any(factors) else PLAIN

    def reference(self, *, field: str) -> None:
        """Run the base as it is beside, without adapter and control vectors, as what reports compare with."""
        self._shape(field)
        self._measured = True

    def edit_hidden(self, guide: str, rate: float, steps: int, *, field: str) -> None:
        """Move the last hidden state up the gradient of a value head before the LM head reads it."""
        path = self._path(field)
        self._roles.head(guide, path)
        if self._hidden is not None:
            raise InvalidRequest("two parts edit the last hidden state: leave one out", param=path)
        self._hidden = HiddenEdit(guide, rate, steps)

    def gate(self, guide: str, plan: GatePlan, *, field: str) -> None:
        """Let the base or a language model of any vocabulary speak; `plan.lane` is filled in by `compile`."""
        path = self._path(field)
        self._roles.language(guide, path)
        if self._gate is not None:
            raise InvalidRequest("two parts decide which model speaks: leave one out", param=path)
        self._gate = guide, plan

    def call(self, guide: str, *, field: str) -> None:
        """Let a language model of the base's vocabulary read along when the search calls for it; `base` always does."""
        if guide != BASE:
            self._roles.mixable(guide, self._path(field))
            self._called.append(guide)

    def writer(self, guide: str, *, field: str) -> None:
        """Let a language model of any vocabulary, or `base`, write texts of its own when the search starts them."""
        if guide != BASE:
            self._roles.language(guide, self._path(field))

    def embedder(self, guide: str, *, field: str) -> None:
        """Let an embedding guide read the query at admission."""
        self._roles.embedding(guide, self._path(field))

    def weigh(self, guide: str, rewards: Collection[str], *, field: str) -> None:
        """Let a preference guide say what `rewards` count; they are those that it was fitted for."""
        path = self._path(field)
        known = self._roles.preference(guide, path).head.rewards
        if set(rewards) != set(known):
            raise InvalidRequest(
                f"preference guide {guide!r} weighs the rewards {', '.join(known)} and the sum has "
                f"{', '.join(rewards)}: give it one term for each of the first",
                param=path,
            )

    def one_voice(self) -> None:
        """Let no second model speak: the search weighs single tokens, or cuts answers back."""
        self._one_voice = True

    def compile(
        self,
        sampling: SamplingParams,
        *,
        seed: int,
        eos_ids: frozenset[int],
        trace: bool = False,
        measured: bool = False,
    ) -> SteerPlan:
        """The plan of everything asked for; InvalidRequest for parts that cannot stand together."""
        self._check()
        coefficients = ((name, fsum(each)) for name, each in sorted(self._vectors.items()))  # sorted: equal cache keys
        variant = replace(self._adapted or PLAIN, vectors=tuple((name, coeff) for name, coeff in coefficients if coeff))
        lanes: dict[_Reading, LanePlan] = {}

        def lane(reading: _Reading) -> int:
            if reading not in lanes:
                lanes[reading] = self._lane(reading, variant)
            return list(lanes).index(reading)

        weights = {reading: fsum(each) for reading, each in self._weights.items()}
        base_weight = weights.pop(_OWN)
        mixture = [Mixed(lane(reading), weight) for reading, weight in weights.items() if weight]
        values = []
        for (guide, transform), terms in self._values.items():
            if weight := fsum(each for each, _ in terms):
                seat = None if self._roles.is_head(guide) else lane(_Reading(guide))
                values.append(ValueTerm(guide, weight, transform, seat))
        reference = None
        if self._measured and variant != PLAIN:
            reference = lane(_Reading(BASE, plain=True))
        gate = None
        if self._gate is not None:
            gate = replace(self._gate[1], lane=lane(_Reading(self._gate[0])))
        for guide in dict.fromkeys(self._called):
            lane(_Reading(guide, called=True))
        return SteerPlan(
            sampling=sampling,
            seed=seed,
            eos_ids=eos_ids,
            variant=variant,
            lanes=tuple(lanes.values()),
            base_weight=base_weight,
            mixture=tuple(mixture),
            power=self._power,
            candidates=self._within_vocabulary(),
            values=tuple(values),
            limit=self._limit,
            hidden=self._hidden if self._hidden and self._hidden.rate else None,
            gate=gate,
            reference=reference,
            trace=trace,
            measured=measured,
        )

    def _within_vocabulary(self) -> Candidates | None:
        """The candidate set, with no more tokens than there are."""
        candidates = self._candidates
        return candidates and replace(candidates, top_k=min(candidates.top_k, self._vocab_size))

    def _lane(self, reading: _Reading, variant: Variant) -> LanePlan:
        """The lane of a reading; a second prompt of the base runs through the same variant as the first."""
        prompt = self._prompts(reading.guide, reading.view)
        if reading.guide == BASE:
            if not reading.plain and prompt == self._prompts(BASE, AS_IT_IS):
                raise InvalidRequest(
                    "the base would read the same prompt twice: add a system message that the second reading can leave "
                    "out, or give it another one (negative_prompt)",
                    param="decoding",
                )
            return LanePlan(BASE, BASE, prompt, PLAIN if reading.plain else variant)
        guide = self._roles.reader(reading.guide)
        scores = isinstance(guide, ScorerGuide)
        return LanePlan(guide.name, guide.model.name, prompt, guide.variant, scores, reading.called)

    def _check(self) -> None:
        """Raise InvalidRequest for parts that each are right and cannot stand together."""
        if self._gate is not None and self._scoring:
            raise InvalidRequest(
                f"{self._gate[1].kind} decides which of two models speaks and leaves their scores alone: it combines "
                "with control_vector (without measure_kl) and re_control only",
                param=self._scoring[0],
            )
        if self._gate is not None and (self._one_voice or self._called):
            raise InvalidRequest(
                "the search weighs single tokens, cuts answers back or calls for other models, which needs one voice: "
                "take nudging and wsd out of `steer`",
                param="decoding.steer",
            )
        if self._power and len(self._mixing) > 1:
            raise InvalidRequest(
                "a power mean of distributions cannot be mixed further: leave the other part out",
                param=self._power_path,
            )
        top_k = min(self._candidates.top_k, self._vocab_size) if self._candidates else 0
        for (guide, _), terms in self._values.items():
            if self._roles.is_head(guide) or not fsum(weight for weight, _ in terms):
                continue
            if top_k == 0:
                raise InvalidRequest(
                    f"guide {guide!r} scores one candidate after another and needs to know which: add "
                    '{"method": "candidates", "top_k": 20} to `steer`',
                    param=terms[0][1],
                )
            if top_k > MAX_CANDIDATES:
                raise InvalidRequest(
                    f"guide {guide!r} scores at most {MAX_CANDIDATES} candidates for a token, not {top_k}: lower it",
                    param=self._top_k_field,
                )

    def _mix(self, reading: _Reading, weight: float, field: str) -> None:
        self._shape(field)
        self._mixing.add(self.where)
        self._weights.setdefault(reading, []).append(weight)

    def _shape(self, field: str) -> str:
        """Note that a field shapes scores; returns its path."""
        self._scoring.append(self._path(field))
        return self._scoring[-1]

    def _path(self, field: str) -> str:
        return f"{self.where}.{field}"


def _smaller(a: int, b: int) -> int:
    """The smaller of two limits of which 0 is none."""
    return min(a, b) if a and b else a or b
