"""PPO-MCTS against the algorithm written down again, without a tree, caches or float32."""

import math
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import numpy as np
import pytest
import torch
from toy import Toy, byte_tokenizer, random_table

from trimtab.decoders.search.puct import Node
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.guides.base import HeadGuide
from trimtab.engine.guides.heads import ValueHead
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.sequence import Sequence
from trimtab.engine.vocabulary import Vocabulary

VOCAB, LENGTH, PROMPT = 8, 5, [1, 5, 2]
PROMPTS = [PROMPT, [4], [2, 7], [6, 6, 6]]
TABLE = random_table(VOCAB, scale=1.0)
GREEDY = SamplingParams(temperature=0.0, max_tokens=LENGTH, seed=1)
WORDS = Vocabulary(byte_tokenizer())
State = tuple[int, ...]
Score = Callable[[str], float]


def noise(name: str) -> Score:
    """A value drawn once per text."""

    @cache
    def value(text: str) -> float:
        return float(np.random.default_rng([*name.encode(), 0, *text.encode()]).normal() * 2)

    return value


@cache
def logits(tokens: State) -> np.ndarray:
    return TABLE(tokens)


TASTE, FINAL = noise("taste"), noise("final")


def mcts(**changes: object) -> dict[str, object]:
    return {"strategy": "ppo_mcts", "value": "taste", "k": 4, "c": 2.0, **changes}


def toy(**options: Any) -> Toy:
    return Toy(TABLE, **{"rewards": {"taste": TASTE, "final": FINAL}, **options})


class Restated:
    """The search by its definition: of every state, the list of all values that came back through it."""

    def __init__(
        self,
        *,
        k: int = 4,
        c: float = 2.0,
        simulations: int = 10,
        tau: float = 1.0,
        parallel: int = 1,
        value: Score = TASTE,
        reward: Score | None = None,
        eos: int | None = None,
        stop: str | None = None,
        length: int = LENGTH,
        prompt: list[int] = PROMPT,
    ) -> None:
        self.k, self.c, self.simulations, self.tau, self.parallel = k, c, simulations, tau, parallel
        self.value, self.reward, self.eos, self.stop = value, reward or value, eos, stop
        self.length, self.prompt = length, prompt
        self.back: dict[State, list[float]] = {(): [self.worth(())]}
        self.made: list[int] = []
        """simulations, answer token by answer token"""
        self.depth = 0
        self.shares: list[float] = []

    def ended(self, state: State) -> bool:
        text = WORDS.decode(state)
        return len(state) >= self.length or state[-1:] == (self.eos,) or (self.stop is not None and self.stop in text)

    def worth(self, state: State) -> float:
        text = WORDS.decode([token for token in state if token != self.eos])
        text = text if self.stop is None else text.split(self.stop)[0]
        return (self.reward if self.ended(state) else self.value)(text)

    def priors(self, state: State) -> dict[int, float]:
        z = logits((*self.prompt, *state)) / self.tau
        best = np.argsort(-z, kind="stable")[: self.k]
        weights = {int(token): math.exp(z[token] - z[best[0]]) for token in best}
        return {token: weight / sum(weights.values()) for token, weight in weights.items()}

    def next(self, state: State, under_way: Counter[State]) -> State:
        priors = self.priors(state)

        def puct(token: int) -> float:
            child = (*state, token)
            values = self.back.get(child, [])
            q = sum(values) / len(values) if values else self.worth(state)
            total = len(self.back[state]) + under_way[state]
            return q + self.c * priors[token] * math.sqrt(total) / (1 + len(values) + under_way[child])

        return (*state, max(priors, key=puct))

    def round(self, answer: State, limit: int) -> int:
        """Simulations that do not know of each other's values; how many there were."""
        under_way: Counter[State] = Counter()
        ends: list[State] = []
        while len(ends) < limit:
            state = answer
            while not self.ended(state) and (state == answer or state in self.back):
                state = self.next(state, under_way)
            if state in ends:
                break
            ends.append(state)
            under_way.update(state[:size] for size in range(len(answer), len(state) + 1))
            self.depth = max(self.depth, len(state) - len(answer))
        for state in ends:
            for size in range(len(answer), len(state) + 1):
                self.back.setdefault(state[:size], []).append(self.worth(state))
        return len(ends)

    def visits(self, answer: State) -> dict[int, tuple[int, float]]:
        """Of each tried token after `answer`: visits and Q, when it is this answer's turn."""
        self.made.append(self.simulations - (len(self.back[answer]) - 1))
        while (seen := len(self.back[answer]) - 1) < self.simulations:
            self.round(answer, min(self.parallel, self.simulations - seen))
        tried = {token: self.back.get((*answer, token), []) for token in self.priors(answer)}
        return {token: (len(values), sum(values) / len(values)) for token, values in tried.items() if values}

    def answer(self) -> list[int]:
        state: State = ()
        while not self.ended(state):
            visits = self.visits(state)
            state = (*state, max(visits, key=visits.__getitem__))
            self.shares.append(visits[state[-1]][0] / self.simulations)
        return list(state)


def ids(toy: Toy, sampling: SamplingParams = GREEDY, **changes: object) -> list[int]:
    return list(toy.run(PROMPT, sampling, decoding=mcts(**changes)).choices[0].token_ids)


def answers(engine: Toy, **changes: object) -> list[list[int]]:
    """To all prompts, side by side."""
    handles = [engine.submit(prompt, GREEDY, decoding=mcts(**changes)) for prompt in PROMPTS]
    engine.finish()
    return [list(engine.result(handle).choices[0].token_ids) for handle in handles]


@pytest.mark.parametrize("c", [0.0, 0.5, 8.0])
@pytest.mark.parametrize("k", [1, 3, 8, 64])
@pytest.mark.parametrize("simulations", [1, 7, 24])
def test_the_answer_is_that_of_the_definition(simulations: int, k: int, c: float) -> None:
    expected = [Restated(k=k, c=c, simulations=simulations, prompt=prompt).answer() for prompt in PROMPTS]
    assert answers(toy(), k=k, c=c, simulations=simulations) == expected


@pytest.mark.parametrize("eos", range(VOCAB))
def test_an_end_is_a_leaf_of_its_own_reward(eos: int) -> None:
    for reward in (None, FINAL):
        expected = Restated(eos=eos, reward=reward, simulations=20).answer()
        given = {} if reward is None else {"reward": "final"}
        result = toy(eos=eos).run(PROMPT, GREEDY, decoding=mcts(simulations=20, **given))
        (choice,) = result.choices
        assert list(choice.token_ids) == expected
        assert choice.finish_reason == ("stop" if expected[-1] == eos else "length")
        assert result.candidates[0].reward == pytest.approx((reward or TASTE)(choice.text))


@pytest.mark.parametrize("stop", [WORDS.decode([token]) for token in range(VOCAB)])
def test_a_stop_string_is_an_end(stop: str) -> None:
    sampling = GREEDY.model_copy(update={"stop": (stop,)})
    assert ids(toy(), sampling, simulations=16) == Restated(stop=stop, simulations=16).answer()


@pytest.mark.parametrize("parallel", [2, 3, 16])
def test_simulations_at_once_count_each_other_as_visits(parallel: int) -> None:
    how = {"simulations": 24, "parallel": parallel}
    assert answers(toy(), **how) == [Restated(**how, prompt=prompt).answer() for prompt in PROMPTS]
    alone = toy()
    ids(alone, **how)
    assert 1 < max(alone.runner.widths) <= parallel


def test_the_temperature_of_the_priors() -> None:
    found = [answers(toy(), prior_temperature=tau) for tau in (0.2, 1.0, 5.0)]
    assert found == [[Restated(tau=tau, prompt=prompt).answer() for prompt in PROMPTS] for tau in (0.2, 1.0, 5.0)]
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_a_step_is_drawn_by_its_visits(temperature: float) -> None:
    """P ~ N ** (1 / T), 6,000 draws, total variation; a child without visits is never drawn."""
    visits, draws, random = (7, 0, 2, 1), 6_000, np.random.default_rng(3)
    root = Node(cast(Sequence, None))
    root.children = [Node(root.sequence, root, visits=count) for count in visits]
    drawn = Counter(root.choose(temperature, random) for _ in range(draws))
    weights = [count ** (1 / temperature) if count else 0.0 for count in visits]
    pairs = zip(root.children, weights, strict=True)
    distance = sum(abs(drawn[child] / draws - weight / sum(weights)) for child, weight in pairs) / 2
    assert distance < 0.02, f"total variation {distance:.4f}"
    assert drawn[root.children[1]] == 0


def test_the_temperature_of_the_request_is_that_of_the_visits() -> None:
    law = Restated(simulations=24, length=1).visits(())
    engine, draws, counts = toy(), 200, {}
    for temperature in (0.0, 1.0):
        sampling = SamplingParams(temperature=temperature, max_tokens=1)
        seeded = (sampling.model_copy(update={"seed": seed}) for seed in range(draws))
        handles = [engine.submit(PROMPT, each, decoding=mcts(simulations=24)) for each in seeded]
        engine.finish()
        counts[temperature] = Counter(engine.result(handle).choices[0].token_ids[0] for handle in handles)
    assert dict(counts[0.0]) == {max(law, key=law.__getitem__): draws}
    distance = sum(abs(counts[1.0][token] / draws - count / 24) for token, (count, _) in law.items()) / 2
    assert distance < 0.1, f"total variation {distance:.3f}"


def test_a_value_that_tells_nothing_leaves_the_most_likely_tokens() -> None:
    plain = toy().run(PROMPT, GREEDY).choices[0].token_ids
    for value in (0.0, -7.3):
        assert ids(toy(rewards={"taste": lambda text, value=value: value}), simulations=17) == list(plain)
    assert ids(toy(), k=1) == list(plain)


def test_a_value_head_on_the_base_reads_the_last_token() -> None:
    weight = torch.linspace(-1.0, 1.0, VOCAB)[None]
    engine = toy()
    engine.guides["head"] = HeadGuide("head", ValueHead([weight], [torch.zeros(1)]))
    spelled = {WORDS.decode([token]): token for token in range(VOCAB)}

    def value(text: str) -> float:
        return float(weight[0].double().numpy() @ TABLE([*PROMPT, *(spelled[letter] for letter in text)]))

    assert ids(engine, value="head") == Restated(value=value).answer()


def test_answers_that_a_guide_fails_on_lose() -> None:
    plain = toy().run(PROMPT, GREEDY).choices[0]
    engine = toy(rewards={"taste": lambda text: math.nan if text.startswith(plain.text[0]) else 0.0})
    second = int(TABLE(PROMPT).argsort()[-2])
    assert ids(engine)[0] == second
    low = toy(rewards={"taste": lambda text: math.nan if len(text) < LENGTH else TASTE(text)})
    assert len(ids(low)) == LENGTH


def test_a_failure_speaks_for_nobody_else() -> None:
    """Neither for what comes before it nor for what comes after it."""
    first, second = (WORDS.decode([token]) for token in TABLE(PROMPT).argsort()[-2:].tolist()[::-1])
    after = toy(rewards={"taste": lambda text: math.nan if not text else float(text.startswith(second))})
    assert WORDS.decode(ids(after)).startswith(second)
    likely = first + WORDS.decode([int(TABLE([*PROMPT, WORDS.encode(first)[0]]).argmax())])
    before = toy(rewards={"taste": lambda text: math.nan if text == likely else float(text.startswith(first))})
    answer = WORDS.decode(ids(before))
    assert answer.startswith(first)
    assert not answer.startswith(likely)


def test_each_choice_is_a_search_of_its_own() -> None:
    sampling = SamplingParams(temperature=1.0, max_tokens=LENGTH, seed=4)
    engine = toy()
    handle = engine.submit(PROMPT, sampling, n=3, decoding=mcts())
    engine.finish()
    result = engine.result(handle)
    assert len({choice.token_ids for choice in result.choices}) > 1
    for index, choice in enumerate(result.choices):
        deltas = [delta for delta in engine.deltas(handle) if delta.choice == index]
        assert "".join(delta.text for delta in deltas) == choice.text
        assert [len(delta.token_ids) for delta in deltas if delta.token_ids] == [1] * LENGTH
    twins = toy().run(PROMPT, GREEDY, n=2, decoding=mcts()).choices
    assert {choice.token_ids for choice in twins} == {tuple(Restated().answer())}


def test_the_report_counts_the_tree() -> None:
    restated = Restated()
    restated.answer()
    assert toy().run(PROMPT, GREEDY, decoding=mcts()).report == {
        "simulations": sum(restated.made),
        "nodes": len(restated.back),
        "expanded": sum(not restated.ended(state) for state in restated.back),
        "max_depth": restated.depth,
        "visit_share": pytest.approx(sum(restated.shares) / LENGTH),
    }
    assert 10 < sum(restated.made) < 10 * LENGTH  # some were inherited


@pytest.mark.parametrize(("pages", "page_size"), [(14, 2), (30, 1)])
def test_a_small_pool_changes_nothing(pages: int, page_size: int) -> None:
    engine = toy(pages=pages, page_size=page_size)
    handles = [engine.submit(PROMPT, GREEDY, decoding=mcts(parallel=4)) for _ in range(2)]
    engine.finish()
    assert {engine.result(handle).choices[0].token_ids for handle in handles} == {tuple(Restated(parallel=4).answer())}
    assert engine.stats.preemptions > 0


def test_only_what_follows_from_the_answer_is_kept() -> None:
    engine = toy(page_size=1)
    engine.submit(PROMPT, GREEDY, decoding=mcts())
    held: list[int] = []
    while not engine.engine.idle:
        engine.engine.tick()
        held += [len(job.prompt.family) for job in engine.engine.scheduler.running]
    assert max(held) <= 1 + 1 + 10


@pytest.mark.parametrize("length", [0, 1])
def test_short_answers(length: int) -> None:
    sampling = GREEDY.model_copy(update={"max_tokens": length})
    assert ids(toy(), sampling) == Restated(length=length).answer()


def test_a_budget_ends_the_search() -> None:
    enough = toy().run(PROMPT, GREEDY, decoding=mcts(reward="final", budget={"reward_at_least": -100.0}))
    assert enough.stopped_by == "reward_at_least"
    assert enough.candidates[0].reward is not None
    short = toy().run(PROMPT, GREEDY, decoding=mcts(budget={"max_model_tokens": 15}))
    assert short.stopped_by == "max_model_tokens"
    answer = Restated().answer()
    assert list(short.choices[0].token_ids)[:1] == answer[:1]


@pytest.mark.parametrize(
    "change", [{"k": 2}, {"c": 0.0}, {"simulations": 2}, {"value": "final"}, {"reward": "final"}, {"parallel": 8}]
)
def test_every_option_changes_something(change: dict[str, object]) -> None:
    assert answers(toy(), **change) != answers(toy())


@pytest.mark.parametrize(
    ("change", "param", "words"),
    [
        ({"k": 65}, "decoding.k", "less than or equal to 64"),
        ({"simulations": 0}, "decoding.simulations", "greater than or equal to 1"),
        ({"simulations": 257}, "decoding.simulations", "less than or equal to 256"),
        ({"c": -1.0}, "decoding.c", "greater than or equal to 0"),
        ({"parallel": 17}, "decoding.parallel", "less than or equal to 16"),
        ({"prior_temperature": 0.0}, "decoding.prior_temperature", "greater than 0"),
        ({"value": "none"}, "decoding.value", "no reward guide"),
        ({"reward": "none"}, "decoding.reward", "no reward guide"),
    ],
)
def test_a_wrong_parameter_names_the_key(change: dict[str, object], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        DecodingSpec.parse(mcts(**change)).check(choices=1, rewards=["taste", "final"])
    assert caught.value.param == param


def test_it_is_greedy_by_default_and_its_spec_survives_an_echo() -> None:
    spec = DecodingSpec.parse(mcts(reward="final", parallel=3))
    assert spec.temperature == 0.0
    assert spec.program.rows(5) == 3
    assert DecodingSpec.parse(spec.dump()) == spec
