"""Traces that come with the pieces of a stream, for both clients."""

from typing import Any

import pytest

from trimtab.clients.client import Answer, ClientError, Piece, Traced
from trimtab.clients.decoding import BestOfN, GenArm

ASK = [{"role": "user", "content": "Hi"}]
SHORT: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True, "seed": 1, "n": 2}
REFUSING = {"rule": "abstain", "tau": 1e3}


def close(ours: Any, theirs: Any) -> bool:
    """Whether two traces are the same but for the last digits, which a cached prompt may change."""
    told = [[(t.text, t.source, t.best_of_base) for t in each] for each in ours]
    assert told == [[(t.text, t.source, t.best_of_base) for t in each] for each in theirs]
    assert [[t.kl for t in each] for each in ours] == [[pytest.approx(t.kl, abs=1e-4) for t in each] for each in theirs]
    return any(told)


@pytest.mark.parametrize(
    "decoding", [GenArm(arm="arm", alpha=2.0, trace="tokens"), BestOfN(n=3, reward="taste", trace="tokens")]
)
def test_a_traced_stream_ends_with_the_whole_trace(client: Any, tiny: str, decoding: Any) -> None:
    whole = client.ask(tiny, "chat", "base", ASK, decoding=decoding, **SHORT)
    *events, answer = client.stream(tiny, "stream_chat", "base", ASK, decoding=decoding, trace=True, **SHORT)
    assert isinstance(answer, Answer)
    assert close(whole.decoding.trace, answer.decoding.trace)
    for choice, trace in enumerate(answer.decoding.trace):
        told = [
            each for event in events if isinstance(event, Traced) and event.choice == choice for each in event.tokens
        ]
        assert told == list(trace)
        assert len(told) == 8
    plain = client.stream(tiny, "stream_chat", "base", ASK, decoding=decoding, **SHORT)
    assert not any(isinstance(event, Traced) for event in plain)
    assert close(whole.decoding.trace, plain[-1].decoding.trace)


def test_each_prompt_gets_the_traces_of_its_choices(client: Any, tiny: str) -> None:
    asked = {**SHORT, "decoding": {"strategy": "genarm", "arm": "arm", "trace": "tokens"}}
    whole = client.ask(tiny, "complete", "base", ["One", "Two"], **asked)
    answer = client.stream(tiny, "stream_complete", "base", ["One", "Two"], trace=True, **asked)[-1]
    assert len(answer.decodings) == 2
    for ours, theirs in zip(whole.decodings, answer.decodings, strict=True):
        assert close(ours.trace, theirs.trace)


def test_a_refusal_has_an_empty_trace(client: Any, tiny: str) -> None:
    decoding = {"strategy": "best_of_n", "n": 2, "reward": "taste", "select": REFUSING, "trace": "tokens"}
    *events, answer = client.stream(tiny, "stream_chat", "base", ASK, decoding=decoding, trace=True, **SHORT)
    assert all(isinstance(event, Piece) for event in events)
    assert answer.decoding.trace == ((), ())


def test_a_trace_that_is_not_kept_is_an_error(client: Any, tiny: str) -> None:
    with pytest.raises(ClientError) as caught:
        client.stream(tiny, "stream_chat", "base", ASK, trace=True, **SHORT)
    assert caught.value.param == "stream_options.include_trace"
