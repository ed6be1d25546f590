"""What is sent of a traced answer: a record for each token, however it came to be sent."""

from collections.abc import Generator
from typing import Any

import pytest
from zoo import PROMPT, zoo

from trimtab.decoders.search.sample import Sample
from trimtab.engine.program import Answer, Context, Extend, Op
from trimtab.engine.results import TokenTrace
from trimtab.engine.sampling import SamplingParams

TRACED = {"strategy": "genarm", "arm": "a", "trace": "tokens"}
SAMPLED = SamplingParams(seed=3, max_tokens=8, ignore_eos=True)


def streamed(context: Context) -> Generator[Op, Any, Answer]:
    answers = context.prompt.fork(2)
    context.stream(answers)
    yield Extend(answers)
    return Answer(answers, answers)


def committed(context: Context) -> Generator[Op, Any, Answer]:
    """Two blocks of one answer, which goes on to its end unsent."""
    (answer,) = context.prompt.fork(1)
    for tokens in (3, 2):
        yield Extend([answer], max_tokens=tokens)
        context.commit(answer)
    yield Extend([answer])
    return Answer([answer], [answer])


def retold(context: Context) -> Generator[Op, Any, Answer]:
    """The answer behind what was sent is gone: what was sent is the answer."""
    (answer,) = context.prompt.fork(1)
    yield Extend([answer], max_tokens=5)
    context.commit(answer)
    answer.free()
    return Answer([context.retell(0)], [])


def said(context: Context) -> Generator[Op, Any, Answer]:
    yield Extend([])
    return Answer([context._written([1, 2])], [])


@pytest.mark.parametrize(("run", "sizes"), [(streamed, {1}), (committed, {3, 2}), (retold, {5}), (said, {0})])
@pytest.mark.parametrize("traced", [True, False])
def test_deltas_have_the_records_of_their_tokens(
    monkeypatch: pytest.MonkeyPatch, run: Any, sizes: set[int], traced: bool
) -> None:
    monkeypatch.setattr(Sample, "run", lambda self, context: run(context))
    toy = zoo()
    decoding = TRACED if traced else {"strategy": "genarm", "arm": "a"}
    handle = toy.submit(PROMPT, SAMPLED, n=2 if run is streamed else 1, decoding=decoding)
    toy.finish()
    sent: dict[int, list[TokenTrace]] = {}
    for delta in toy.deltas(handle):
        if not traced:
            assert delta.trace is None
            continue
        sent.setdefault(delta.choice, []).extend(delta.trace or ())
        assert run is said or [each.id for each in delta.trace or ()] == list(delta.token_ids)
    told = {len(delta.trace) for delta in toy.deltas(handle) if delta.trace is not None and delta.token_ids}
    choices = toy.result(handle).choices
    if traced:
        assert told >= sizes
        assert [tuple(each) for _, each in sorted(sent.items())] == [choice.trace for choice in choices]
    else:
        assert {choice.trace for choice in choices} == {None}
