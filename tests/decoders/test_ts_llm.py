"""TS-LLM where every possible step is drawn, so that the tree is certain, against the algorithm written down again."""

import math
from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from toy import Toy, byte_tokenizer, random_table

from trimtab.decoders.search.ts_llm import exploration
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Vocabulary

VOCAB, LENGTH, PROMPT = 3, 4, [1, 2]
PROMPTS = [PROMPT, [2], [0, 0, 1]]
TABLE = random_table(VOCAB, scale=0.4)
SAMPLING = SamplingParams(max_tokens=LENGTH, seed=1)
WORDS = Vocabulary(byte_tokenizer())
State = tuple[int, ...]
Score = Callable[[str], float]


def noise(name: str, scale: float = 1.0) -> Score:
    """A value drawn once per text."""

    @cache
    def value(text: str) -> float:
        return float(np.random.default_rng([*name.encode(), 0, *text.encode()]).normal() * scale)

    return value


TASTE, FINAL = noise("taste"), noise("final")


PAIRS = SAMPLING.model_copy(update={"logit_bias": {2: -100.0}})
"""two tokens that can be said: steps of two of them are so likely that 64 draws hold all four"""


@cache
def logprobs(tokens: State, said: int) -> np.ndarray:
    """Of the first `said` tokens, the others being banned."""
    z = TABLE(tokens)[:said]
    return z - np.log(np.exp(z).sum())


def tree(**changes: object) -> dict[str, object]:
    return {"strategy": "ts_llm", "value": "taste", "width": 64, "step_tokens": 1, "endings": [], **changes}


def toy(**options: Any) -> Toy:
    return Toy(TABLE, **{"rewards": {"taste": TASTE, "final": FINAL}, **options})


class Restated:
    """The search by its definition, over all steps that the table can say."""

    def __init__(
        self,
        *,
        simulations: int = 20,
        step: int = 1,
        value: Score = TASTE,
        reward: Score | None = None,
        eos: int | None = None,
        stop: str | None = None,
        length: int = LENGTH,
        prompt: list[int] = PROMPT,
    ) -> None:
        self.simulations, self.step, self.length, self.prompt = simulations, step, length, prompt
        self.said = VOCAB if step == 1 else 2
        self.value, self.reward, self.eos, self.stop = value, reward or value, eos, stop
        self.back: dict[State, list[float]] = {}
        self.steps: dict[State, dict[State, float]] = {}
        self.chosen = self.visits = 0

    def ended(self, state: State) -> bool:
        text = WORDS.decode(state)
        return len(state) >= self.length or state[-1:] == (self.eos,) or (self.stop is not None and self.stop in text)

    def worth(self, state: State) -> float:
        text = WORDS.decode([token for token in state if token != self.eos])
        text = text if self.stop is None else text.split(self.stop)[0]
        return (self.reward if self.ended(state) else self.value)(text)

    def expand(self, state: State) -> None:
        """Every way of going on by a step, with its prior."""
        weights = {}
        for tokens in (each for size in range(1, self.step + 1) for each in product(range(self.said), repeat=size)):
            told = [(*state, *tokens[:size]) for size in range(1, len(tokens) + 1)]
            if any(map(self.ended, told[:-1])) or not (len(tokens) == self.step or self.ended(told[-1])):
                continue
            each = [logprobs((*self.prompt, *child[:-1]), self.said)[child[-1]] for child in told]
            weights[told[-1]] = math.exp(sum(each) / len(each))
        self.steps[state] = {child: weight / sum(weights.values()) for child, weight in weights.items()}

    def q(self, state: State) -> float:
        values = self.back.get(state)
        return sum(values) / len(values) if values else self.worth(state)

    def simulate(self, root: State) -> None:
        path = [root]
        while path[-1] in self.steps:
            state = path[-1]
            seen = len(self.back.get(state, []))
            c = math.log((seen + 19652 + 1) / 19652) + 1.25
            scores = {
                child: self.q(child) + c * prior * math.sqrt(seen) / (1 + len(self.back.get(child, [])))
                for child, prior in self.steps[state].items()
            }
            path.append(max(scores, key=scores.__getitem__))
            if path[-1] in self.back and path[-1] not in self.steps and not self.ended(path[-1]):
                self.expand(path[-1])
        for state in path:
            self.back.setdefault(state, []).append(self.worth(path[-1]))

    def answer(self) -> State:
        state: State = ()
        while not self.ended(state):
            if state not in self.steps:
                self.expand(state)
            for _ in range(self.simulations):
                self.simulate(state)
            self.visits += sum(len(self.back.get(child, [])) for child in self.steps[state])
            state = max(self.steps[state], key=lambda child: (len(self.back.get(child, [])), self.q(child)))
            self.chosen += len(self.back[state])
        return state


def answers(engine: Toy, **changes: object) -> list[State]:
    """To all prompts, side by side."""
    handles = [engine.submit(prompt, SAMPLING, decoding=tree(**changes)) for prompt in PROMPTS]
    engine.finish()
    return [engine.result(handle).choices[0].token_ids for handle in handles]


def ids(engine: Toy, sampling: SamplingParams = SAMPLING, **changes: object) -> State:
    return engine.run(PROMPT, sampling, decoding=tree(**changes)).choices[0].token_ids


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("simulations", [1, 2, 6, 20, 60])
def test_the_answer_is_that_of_the_definition(simulations: int, step: int) -> None:
    """Its visits too; where values tell little, the priors decide on them."""
    for scale in (1.0, 0.01):
        value = noise("taste", scale)
        engine = toy(rewards={"taste": value})
        decoding, sampling = tree(simulations=simulations, step_tokens=step), SAMPLING if step == 1 else PAIRS
        handles = [engine.submit(prompt, sampling, decoding=decoding) for prompt in PROMPTS]
        engine.finish()
        for prompt, result in zip(PROMPTS, map(engine.result, handles), strict=True):
            restated = Restated(simulations=simulations, step=step, value=value, prompt=prompt)
            assert result.choices[0].token_ids == restated.answer()
            assert result.report["visit_share"] == pytest.approx(restated.chosen / restated.visits)


@pytest.mark.parametrize(("step", "eos"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1)])
def test_an_end_is_worth_its_reward(step: int, eos: int) -> None:
    sampling = SAMPLING if step == 1 else PAIRS
    result = toy(eos=eos).run(PROMPT, sampling, decoding=tree(reward="final", step_tokens=step))
    (choice,) = result.choices
    assert choice.token_ids == Restated(eos=eos, reward=FINAL, step=step).answer()
    assert choice.finish_reason == ("stop" if choice.token_ids[-1] == eos else "length")
    assert result.candidates[0].reward == FINAL(choice.text)


@pytest.mark.parametrize("stop", [WORDS.decode([token]) for token in range(2)])
def test_a_stop_string_ends_an_answer_inside_a_step(stop: str) -> None:
    sampling = PAIRS.model_copy(update={"stop": (stop,)})
    assert ids(toy(), sampling, step_tokens=2) == Restated(stop=stop, step=2).answer()


def test_a_step_ends_where_its_text_does() -> None:
    """Values are read at ends of steps alone, and never within the first tokens of one."""
    read: list[str] = []
    engine = toy(rewards={"taste": lambda text: read.append(text) or 0.0})  # type: ignore[func-returns-value]
    end = WORDS.decode([0])
    sampling = SAMPLING.model_copy(update={"max_tokens": 6})
    engine.run(PROMPT, sampling, decoding=tree(endings=[end], step_tokens=5))
    assert {len(text) for text in read} == {1, 2, 3, 4, 5, 6}
    assert all(text.endswith(end) or len(text) >= 5 for text in read)
    read.clear()
    engine.run(PROMPT, sampling, decoding=tree(endings=[end], step_tokens=5, min_step_tokens=3))
    assert min(map(len, read)) == 3


def test_the_bonus_is_that_of_alphazero() -> None:
    assert exploration(0) == pytest.approx(1.25 + math.log(19653 / 19652))
    assert exploration(100_000) == pytest.approx(1.25 + math.log(119653 / 19652))


def test_one_simulation_takes_the_best_of_the_steps() -> None:
    """At a root without visits nothing is explored: the values decide."""
    best: State = ()
    while len(best) < LENGTH:
        best = max(((*best, token) for token in range(VOCAB)), key=lambda state: TASTE(WORDS.decode(state)))
    assert ids(toy(), simulations=1) == best


def test_it_looks_beyond_a_step_of_low_value() -> None:
    """What begins with the second letter is worth less at once, and the most in the end."""
    good = WORDS.decode([1])

    def value(text: str) -> float:
        return (-0.2 if text == good else 1.0) if text.startswith(good) else 0.0

    engine = toy(rewards={"taste": value})
    assert ids(engine, simulations=2)[0] != 1
    assert ids(engine, simulations=60)[0] == 1


def test_without_temperature_it_is_greedy() -> None:
    cold = SAMPLING.model_copy(update={"temperature": 0.0})
    plain = toy().run(PROMPT, cold).choices[0].token_ids
    result = toy().run(PROMPT, cold, decoding=tree(width=4))
    assert result.choices[0].token_ids == plain
    assert result.report == {
        "simulations": 20 * LENGTH,
        "nodes": LENGTH,
        "expanded": LENGTH,
        "max_depth": LENGTH,
        "visit_share": 1.0,
    }


def test_the_report_counts_the_tree() -> None:
    restated = Restated()
    restated.answer()
    report = toy().run(PROMPT, SAMPLING, decoding=tree()).report
    assert report["simulations"] == 20 * LENGTH
    assert report["expanded"] == len(restated.steps)
    assert report["nodes"] == sum(map(len, restated.steps.values()))


def test_each_choice_is_a_search_of_its_own_and_streams_by_steps() -> None:
    engine = toy()
    sampling = SamplingParams(max_tokens=6, seed=2)
    handle = engine.submit(PROMPT, sampling, n=3, decoding=tree(width=2, step_tokens=2, simulations=3))
    engine.finish()
    result = engine.result(handle)
    assert len({choice.token_ids for choice in result.choices}) > 1
    for index, choice in enumerate(result.choices):
        deltas = [delta for delta in engine.deltas(handle) if delta.choice == index]
        assert "".join(delta.text for delta in deltas) == choice.text
        assert [len(delta.token_ids) for delta in deltas if delta.token_ids] == [2, 2, 2]


def test_steps_that_a_guide_fails_on_lose() -> None:
    for token in range(VOCAB):
        bad = WORDS.decode([token])
        engine = toy(rewards={"taste": lambda text, bad=bad: math.nan if text.endswith(bad) else 0.0})
        assert token not in ids(engine)
    late = toy(rewards={"taste": lambda text: math.nan if len(text) < LENGTH else TASTE(text)})
    assert len(ids(late)) == LENGTH


@pytest.mark.parametrize("length", [0, 1])
def test_short_answers(length: int) -> None:
    sampling = SAMPLING.model_copy(update={"max_tokens": length})
    for step in (1, 64):
        assert ids(toy(), sampling, step_tokens=step) == Restated(length=length).answer()


@pytest.mark.parametrize(("pages", "page_size"), [(90, 1), (40, 3)])
def test_a_small_pool_changes_nothing(pages: int, page_size: int) -> None:
    engine = toy(pages=pages, page_size=page_size)
    handles = [engine.submit(PROMPT, SAMPLING, decoding=tree(width=16)) for _ in range(3)]
    engine.finish()
    alone = ids(toy(), width=16)
    assert {engine.result(handle).choices[0].token_ids for handle in handles} == {alone}
    assert engine.stats.preemptions > 0


def test_only_what_follows_from_the_answer_is_kept() -> None:
    engine = toy(page_size=1)
    handle = engine.submit(PROMPT, SAMPLING, decoding=tree(width=16))
    widest, seen = 0, 0
    while not engine.engine.idle:
        engine.engine.tick()
        seen = max(seen, sum(len(delta.token_ids) for delta in engine.deltas(handle)))
        for job in engine.engine.scheduler.running:
            widest = max(widest, len(job.prompt.family))
            kept = [each for each in job.prompt.family if each is not job.prompt]
            assert len({each.answer[:seen].tobytes() for each in kept}) == 1
    assert widest > 16


def test_a_budget_ends_the_search() -> None:
    result = toy().run(PROMPT, SAMPLING, decoding=tree(reward="final", budget={"reward_at_least": -100.0}))
    assert result.stopped_by == "reward_at_least"
    short = toy().run(PROMPT, SAMPLING, decoding=tree(simulations=1, budget={"max_model_tokens": 180}))
    assert short.stopped_by == "max_model_tokens"
    assert 0 < len(short.choices[0].token_ids) < LENGTH


@pytest.mark.parametrize(
    "change", [{"simulations": 1}, {"step_tokens": 2}, {"value": "final"}, {"reward": "final"}, {"width": 1}]
)
def test_every_option_changes_something(change: dict[str, object]) -> None:
    assert answers(toy(), **change) != answers(toy())


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"simulations": 257}, "decoding.simulations", "less than or equal to 256"),
        ({"width": 65}, "decoding.width", "less than or equal to 64"),
        ({"step_tokens": 0}, "decoding.step_tokens", "greater than or equal to 1"),
        ({"endings": [""]}, "decoding.endings.0", "at least 1 character"),
        ({"endings": ["."] * 17}, "decoding.endings", "at most 16"),
        ({"value": "none"}, "decoding.value", "no reward guide"),
        ({"reward": "none"}, "decoding.reward", "no reward guide"),
    ],
)
def test_a_wrong_parameter_names_the_key(change: dict[str, object], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse(tree(**change)).check(choices=1, rewards=["taste", "final"])
    assert caught.value.param == param


def test_its_spec_survives_an_echo() -> None:
    spec = DecodingSpec.parse({"strategy": "ts_llm", "value": "taste", "reward": "final", "endings": ["\n\n"]})
    assert spec.temperature is None
    assert spec.program.rows(4) == 6
    assert DecodingSpec.parse(spec.dump()) == spec
