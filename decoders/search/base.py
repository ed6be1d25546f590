"""What every search shares: its declaration, and the context that scores and selects."""

from collections.abc import Collection, Generator, Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, field, fields
from math import fsum, inf, isnan
from typing import Any, ClassVar, Self

from trimtab.decoders.params import Params
from trimtab.decoders.preference import Resolved
from trimtab.decoders.rewards import Expression
from trimtab.decoders.select import Argmax, Entry, Rule, Watch
from trimtab.decoders.steer.draft import Draft
from trimtab.engine.budget import Interrupted
from trimtab.engine.errors import GuideError, InvalidRequest
from trimtab.engine.program import Answer, Context, Extend, Op, Preferences, Score
from trimtab.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scale:
    """What rewards are measured by at one prompt; filled by the search, and known when it is ended early."""

    calibration: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """per guide: rewards of the base's own answers, where an expression asks for them"""
    preferences: dict[str, dict[str, float]] = field(default_factory=dict)
    """per preference guide that an expression names: the weight of each reward"""
    known: dict[tuple[str, str, tuple[int, ...]], float] = field(default_factory=dict)
    """raw rewards of guards, by guide, text and tokens, where something else has asked for them"""
    pool: list[Sequence] = field(default_factory=list)
    """what the choices were found among; empty where a search makes one answer for each choice"""


@dataclass(slots=True)
class SearchContext(Context):
    """The engine's context with what the request says about rewards and selection."""

    select: Rule
    scale: Scale
    watch: Watch | None = None
    """what the operator demands of the end"""

    @classmethod
    def of(cls, context: Context, select: Rule, scale: Scale, watch: Watch | None = None) -> Self:
        own = {each.name: getattr(context, each.name) for each in fields(Context)}
        return cls(**own, select=select, scale=scale, watch=watch)

    def score(self, sequences: Many[Sequence], reward: Expression) -> Generator[Op, Any, list[float]]:
        """Rewards of finished answers, noted on the sequences (`reward`, and `rewards` by guide). NaN: a guide failed.

        The search is over if one of them reaches the budget's `reward_at_least`.
        """
        values = yield from self._evaluate(sequences, reward)
        for sequence, value in zip(sequences, values, strict=True):
            sequence.reward = value
        enough = self.budget.reward_at_least
        if enough is not None and any(value >= enough for value in values):
            raise Interrupted("reward_at_least")
        return values

    def assess(self, sequences: Many[Sequence], reward: Expression) -> Generator[Op, Any, list[float]]:
        """Values of answers as far as they go, noted on the sequences (`value`). -inf where a guide failed."""
        values = yield from self._evaluate(sequences, reward)
        values = [-inf if isnan(value) else value for value in values]
        for sequence, value in zip(sequences, values, strict=True):
            sequence.value = value
        return values

    def finish(self, sequences: Many[Sequence], reward: Expression) -> Generator[Op, Any, None]:
        """Extend all sequences to their end and score them; as each ends, where the budget may stop early."""
        live = list(sequences)
        while live:
            yield Extend(live, first=self.budget.reward_at_least is not None)
            yield from self.score([each for each in live if each.finish is not None], reward)
            live = [each for each in live if each.finish is None]

    def choose(self, pool: Many[Sequence], considered: Many[Sequence] | None = None, **report: Any) -> Answer:
        """Answer with what the request's rule selects from `pool`, whose rewards are known.

        `considered` is what the response tells of as candidates, the pool if it is not given. Raises GuideError if
        every reward is NaN.
        """
        if all(each.reward is not None and isnan(each.reward) for each in pool):
            raise GuideError(" and ".join(pool[0].rewards), "gave NaN for every candidate")
        self.scale.pool[:] = pool
        chosen = self.ranked(pool, self.choices)
        told = {**report, **self.select.report([entry(each) for each in pool])}
        candidates = pool if considered is None else considered
        return Answer(chosen, candidates, told) if chosen else self.refuse(candidates, told)

    def ranked(self, pool: Many[Sequence], count: int) -> list[Sequence]:
        """The `count` answers that the request's rule selects, best first; none where it would rather say nothing."""
        return [pool[index] for index in self.select.order([entry(each) for each in pool], count, self.random)]

    def refuse(self, considered: Many[Sequence], report: Mapping[str, Any] | None = None) -> Answer:
        """Answer with the rule's refusal."""
        refusals = [self.say(self.select.refusal) for _ in range(self.choices)]
        return Answer(refusals, considered, report or {}, stopped_by="abstained")

    def stream(self, sequences: Many[Sequence]) -> None:
        """Send the text of `sequences` as it grows, unless it may yet be refused."""
        if not self._may_refuse:
            Context.stream(self, sequences)

    def commit(self, sequence: Sequence, choice: int = 0) -> None:
        """Send the answer so far as final text of a choice, unless it may yet be refused."""
        if not self._may_refuse:
            Context.commit(self, sequence, choice)

    def commit_shared(self, sequences: Many[Sequence], choice: int = 0) -> None:
        """Send what all `sequences` begin with, unless it may yet be refused."""
        if not self._may_refuse:
            Context.commit_shared(self, sequences, choice)

    def judge(self, sequences: Many[Sequence]) -> Generator[Op, Any, list[dict[str, float]]]:
        """Raw rewards by the guards' guides, of the very text that would be returned; NaN: a guide failed.

        Answers that the search has given up are read again where that is needed, and freed with the request.
        """
        assert self.watch is not None
        for sequence in sequences:
            if sequence.finish is None:
                sequence.text.flush()  # what was held back as the beginning of a stop string is returned, too
            if sequence not in self.prompt.family:
                self.prompt.family.append(sequence)
        for guide in self.watch.guides:
            unknown = [each for each in sequences if _key(guide, each) not in self.scale.known]
            if unknown:
                self._know(guide, unknown, (yield Score(unknown, guide)))
        return [{guide: self.scale.known[_key(guide, each)] for guide in self.watch.guides} for each in sequences]

    @property
    def _may_refuse(self) -> bool:
        return self.watch is not None or self.select.may_refuse

    def _know(self, guide: str, sequences: Many[Sequence], scores: Many[float]) -> None:
        self.scale.known.update((_key(guide, each), score) for each, score in zip(sequences, scores, strict=True))

    def _evaluate(self, sequences: Many[Sequence], reward: Expression) -> Generator[Op, Any, list[float]]:
        raw: dict[str, list[float]] = {}
        for guide in reward.guides:
            raw[guide] = yield Score(sequences, guide)
            if self.watch is not None and guide in self.watch.guides:
                self._know(guide, sequences, raw[guide])
        scale = self.scale
        for guide, _ in reward.preferences:
            if guide not in scale.preferences:
                scale.preferences[guide] = yield Preferences(guide)
        terms = reward.terms(raw, scale.calibration)
        for index, sequence in enumerate(sequences):
            sequence.rewards = {guide: scores[index] for guide, scores in raw.items()}
            sequence.terms = {guide: values[index] for guide, values in terms.items()}
        return reward.values(raw, scale.calibration, scale.preferences)


def worth(sequence: Sequence) -> float:
    """The reward of an answer, or its value as long as it has no reward; -inf if it has none, or a guide failed."""
    known = sequence.value if sequence.reward is None else sequence.reward
    return -inf if known is None or isnan(known) else known


def entry(sequence: Sequence) -> Entry:
    """An answer as rules see it."""
    return Entry(
        text=sequence.text.text,
        tokens=tuple(sequence.answer),
        reward=sequence.reward,
        rewards=sequence.rewards,
        logprob=fsum(each.base_logprob for each in sequence.measures),
    )


def _key(guide: str, sequence: Sequence) -> tuple[str, str, tuple[int, ...]]:
    """Of what a guide has judged: the text, and the tokens that a value head reads."""
    return guide, sequence.text.text, tuple(sequence.answer)


class Search(Params):
    """Parameters of a method that works on whole answers; `run` is the algorithm.

    Fields that name a reward are of type `Expression`; fields that name a language model are asked for in `call`.
    """

    one_voice: ClassVar[bool] = False
    """it cuts answers back or weighs single tokens, so that no second model can speak in them (nudging, wsd)"""
    most_field: ClassVar[str | None] = None
    """the parameter to raise where it ends with fewer answers than choices are asked for; `rows_field` if None"""
    measures: ClassVar[bool] = False
    """it reads `Sequence.measures`: log-probabilities, KL and entropy of every token"""
    distributions: ClassVar[bool] = False
    """it reads the base's distribution of single tokens: weighs them, or goes by its entropy"""
    weighs_draws: ClassVar[bool] = False
    """it cannot do without log-probabilities under the distribution that tokens were drawn from"""
    whole: ClassVar[bool] = False
    """it writes every answer in one go from its beginning"""
    preferable: ClassVar[frozenset[str]] = frozenset({"reward"})
    own_scores: ClassVar[bool] = False
    """its answers are chosen by scores of its own, of which the reward is a part that a parameter may turn off"""

    @classmethod
    def preferred(cls, given: dict[str, Any], preference: Resolved) -> dict[str, Any]:
        """The reward, of a search that cannot do without: the attributes' rewards by their weights."""
        field = cls.model_fields.get("reward")
        needed = field is not None and field.annotation is Expression and field.is_required()
        return {**given, "reward": preference.reward} if needed and given.get("reward") is None else given

    def rule(self) -> Rule:
        """How the choices are found among the answers where the request does not say."""
        return Argmax()

    def rows(self, choices: int) -> int:
        """Sequences that decode at the same time at most."""
        raise NotImplementedError

    def most(self) -> int | None:
        """Answers among which the choices are found; None: one search for each choice."""
        return None

    @property
    def others_write(self) -> bool:
        """Whether text of another model may become the answer, of which the base's log-probabilities are not known."""
        return False

    def call(self, draft: Draft) -> None:
        """Ask for the language models that the search calls by name: `draft.call(guide, field=...)`."""

    def expressions(self) -> dict[str, Expression]:
        """The reward expressions, by field."""
        values = ((name, getattr(self, name)) for name in type(self).model_fields)
        return {name: value for name, value in values if isinstance(value, Expression)}

    def check(self, *, choices: int, rewards: Collection[str]) -> None:
        for name, expression in self.expressions().items():
            expression.check(rewards, path=f"decoding.{name}")
        most = self.most()
        if most is not None and choices > most:
            field = self.most_field or self.rows_field
            raise InvalidRequest(
                f"a search with {field}={getattr(self, field)} ends with {most} answers and n asks for {choices} "
                f"choices: raise decoding.{field}, or lower n",
                param="n",
            )

    def run(self, context: SearchContext) -> Generator[Op, Any, Answer]:
        """The search itself."""
        raise NotImplementedError
