"""Rows that come, go, move and swap, against a dictionary that knows where each request is; both interfaces."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from vllm_runner import Direction, Two, Update, params

from trimtab.vllm.processor import TrimtabProcessor

Make = Callable[..., TrimtabProcessor]

VOCAB, PLACES = 272, 5
EVERY = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@dataclass
class Held:
    """A request as the oracle knows it."""

    penalty: float | None
    """None: it does not ask for the plugin"""
    prompt: list[int]
    output: list[int]

    def expected(self, logits: Tensor) -> Tensor:
        if self.penalty is None:
            return logits
        seen = torch.zeros(VOCAB, dtype=torch.bool)
        seen[[*self.prompt, *self.output]] = True
        return torch.where(seen, torch.where(logits > 0, logits / self.penalty, logits * self.penalty), logits)

    @property
    def asks(self) -> Any:
        return params(None if self.penalty is None else {"trimtab_repetition_penalty": self.penalty})


tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6)
held = st.builds(Held, st.sampled_from([None, 1.25, 2.0]), tokens, st.builds(list))
place = st.integers(0, PLACES - 1)
move = st.tuples(place, place, st.sampled_from(Direction)).filter(lambda each: each[0] != each[1])


@dataclass
class Change:
    removed: list[int]
    added: dict[int, Held]
    moved: list[tuple[int, int, Direction]]
    back: list[int]
    """V2: slots whose request has been away and comes back, with its answer so far"""


changes = st.builds(
    Change,
    st.lists(place, max_size=3, unique=True),
    st.dictionaries(place, held, max_size=3),
    st.lists(move, max_size=3),
    st.lists(place, max_size=2, unique=True),
)


def check(found: Tensor, given: Tensor, oracle: dict[int, Held], places: list[int]) -> None:
    for row, where in enumerate(places):
        if where not in oracle or oracle[where].penalty is None:
            assert torch.equal(found[row], given[row]), "a row of somebody else has changed"
        else:
            torch.testing.assert_close(found[row], oracle[where].expected(given[row]))


@EVERY
@given(st.lists(changes, min_size=1, max_size=6), st.integers(0, 9))
def test_v1_rows_are_those_of_the_dictionary(bare: Make, steps: list[Change], seed: int) -> None:
    processor: TrimtabProcessor = bare(torch.device("cpu"))
    oracle: dict[int, Held] = {}
    draws = torch.Generator().manual_seed(seed)
    for change in steps:
        for each in change.removed:
            oracle.pop(each, None)
        oracle |= change.added
        for source, target, direction in change.moved:
            moved, other = oracle.pop(source, None), oracle.pop(target, None)
            if moved is not None:
                oracle[target] = moved
            if other is not None and direction is Direction.SWAP:
                oracle[source] = other
        added = [(where, each.asks, each.prompt, each.output) for where, each in change.added.items()]
        processor.update_state(Update(change.removed, added, change.moved))
        for _ in range(2):  # a step without a change follows
            given = torch.randn(PLACES, VOCAB, generator=draws)
            check(processor.apply(given.clone()), given, oracle, list(range(PLACES)))
            for where, each in sorted(oracle.items()):
                each.output.append((where * 37 + len(each.output)) % VOCAB)
            processor.update_state(None)


@EVERY
@given(st.lists(changes, min_size=1, max_size=6), st.permutations(range(PLACES)), st.integers(0, 9))
def test_v2_slots_are_those_of_the_dictionary(bare: Make, steps: list[Change], order: list[int], seed: int) -> None:
    runner = Two(bare, PLACES)
    oracle: dict[int, Held] = {}
    draws = torch.Generator().manual_seed(seed)
    for change in steps:
        for each in change.removed:
            oracle.pop(each, None)  # nobody tells the plugin
        for where, each in change.added.items():
            oracle[where] = each
            assert runner.add(where, each.asks, each.prompt) is (each.penalty is not None)
        for where in change.back:
            if where in oracle:
                runner.add(where, oracle[where].asks, oracle[where].prompt, oracle[where].output)
        slots = [each for each in order if each in oracle]
        given = torch.randn(len(slots), VOCAB, generator=draws)
        check(runner.step(slots, given.clone()), given, oracle, slots)
        for where in slots:
            oracle[where].output.append((where * 37 + len(oracle[where].output)) % VOCAB)
            runner.append(where, oracle[where].output[-1])
