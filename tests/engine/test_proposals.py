"""The ops of searches over the next token: what Propose and Draw leave behind, and what becomes of wrong ones."""

from array import array
from collections.abc import Callable, Generator
from typing import Any

import pytest
from toy import Toy, random_table

from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.program import Answer, Context, Draw, Extend, Op, Propose
from trimtab.engine.request import Request
from trimtab.engine.results import Failure
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import TextStream

VOCAB, LENGTH, PROMPT = 12, 6, [1, 5, 2]
GREEDY = SamplingParams(temperature=0.0, max_tokens=LENGTH, seed=1)


def toy() -> Toy:
    engine = Toy(random_table(VOCAB))
    engine.add_scorer("token", lambda prefix: float(sum(prefix) % 7))
    return engine


class Script:
    """A program that a test writes down."""

    def __init__(self, run: Callable[[Context], Generator[Op, Any, Answer]]) -> None:
        self.run = run

    def rows(self, choices: int) -> int:
        return 4


def play(engine: Toy, run: Callable[[Context], Generator[Op, Any, Answer]], decoding: Any = None) -> object:
    """Submit a program; the parts of `decoding` steer it."""
    spec = DecodingSpec.parse(decoding)
    handle = object()
    engine.events[handle] = []
    engine.engine.submit(
        Request(
            handle=handle,
            deliver=engine._deliver,
            prompt=array("q", PROMPT),
            messages=(),
            program=Script(run),
            plan=engine.plan(PROMPT, GREEDY, spec),
            text=TextStream(engine.vocabulary),
            choices=1,
            rows=4,
            max_tokens=LENGTH,
        )
    )
    return handle


@pytest.mark.parametrize("decoding", [None, {"strategy": "args", "reward": "token", "k": 5}])
def test_a_proposal_leaves_its_sequence_as_it_was(decoding: Any) -> None:
    """Proposing again and then decoding the sequence and its forks gives what plain decoding does."""
    told: list[Any] = []

    def run(context: Context) -> Generator[Op, Any, Answer]:
        (answer,) = context.prompt.fork(1)
        for k in (2, 5, 2):
            told.append((yield Propose([answer], k)))
        (fork,) = answer.fork(1)
        (ahead,) = context.branch(answer, list(told[0][0])[:1])
        told.append((answer.generated, fork.generated, ahead.generated))
        yield Extend([fork, ahead, answer])
        answers = [answer, fork, ahead]
        return Answer(answers, answers)

    engine = toy()
    handle = play(engine, run, decoding)
    engine.finish()
    plain = engine.run(PROMPT, GREEDY, decoding=decoding).choices[0].token_ids
    (first,), (more,), (last,), lengths = told
    assert first == last == dict(list(more.items())[:2])
    assert list(more.values()) == sorted(more.values(), reverse=True)
    assert len(more) == 5
    assert lengths == (0, 0, 1)
    assert {choice.token_ids for choice in engine.result(handle).choices} == {plain}


@pytest.mark.parametrize("weigh", [lambda proposed: {99: 1.0}, lambda proposed: {}, lambda proposed: None])
def test_a_wrong_draw_ends_its_own_request_alone(weigh: Callable[[Any], Any]) -> None:
    def run(context: Context) -> Generator[Op, Any, Answer]:
        (answer,) = context.prompt.fork(1)
        (proposed,) = yield Propose([answer], 3)
        yield Draw([answer], [weigh(proposed)])
        return Answer([answer], [answer])

    engine = toy()
    handle, neighbour = play(engine, run), engine.submit(PROMPT, GREEDY)
    engine.finish()
    assert isinstance(engine.end(handle), Failure)
    assert engine.result(neighbour).choices == toy().run(PROMPT, GREEDY).choices


def test_a_token_is_drawn_once_for_each_proposal() -> None:
    def run(context: Context) -> Generator[Op, Any, Answer]:
        (answer,) = context.prompt.fork(1)
        (proposed,) = yield Propose([answer], 3)
        yield Draw([answer], [proposed])
        yield Draw([answer], [proposed])
        return Answer([answer], [answer])

    engine = toy()
    handle = play(engine, run)
    engine.finish()
    assert isinstance(engine.end(handle), Failure)
