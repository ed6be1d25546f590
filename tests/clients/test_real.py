"""Both Python clients against the real server on a tiny model."""

import math
from typing import Any

import pytest

from trimtab.clients.client import Answer, ClientError, Progress
from trimtab.clients.decoding import BestOfN, Budget, ControlVector, Expression, GenArm, Sample

ASK = [{"role": "user", "content": "Hi"}]
SHORT: dict[str, Any] = {"max_tokens": 8, "ignore_eos": True, "seed": 1}


def test_a_stream_and_a_whole_answer_are_the_same(client: Any, tiny: str) -> None:
    fields = {**SHORT, "n": 3, "logprobs": True, "top_logprobs": 2, "return_token_ids": True}
    whole = client.ask(tiny, "chat", "base", ASK, **fields)
    *pieces, streamed = client.stream(tiny, "stream_chat", "base", ASK, **fields)
    assert len(whole.choices) == 3
    assert len({choice.text for choice in whole.choices}) == 3
    assert [choice.text for choice in whole.choices] == [choice.text for choice in streamed.choices]
    for ours, theirs in zip(whole.choices, streamed.choices, strict=True):
        assert (ours.index, ours.finish_reason) == (theirs.index, theirs.finish_reason)
        assert ours["token_ids"] == theirs["token_ids"]
        assert ours.logprobs is not None
        assert theirs.logprobs is not None
        assert [each.token for each in ours.logprobs] == [each.token for each in theirs.logprobs]
        assert len(ours.logprobs) == 8
        assert len(ours.logprobs[0].top) == 2
        assert theirs.text == "".join(piece for piece in pieces if piece.choice == ours.index)
    assert whole.usage.completion_tokens == streamed.usage.completion_tokens == 24


def test_typed_decoding_does_what_its_object_does(client: Any, tiny: str) -> None:
    reward = Expression(sum=["taste", Expression(guide="brief", weight=0.1)])
    typed = BestOfN(n=3, reward=reward, steer=[GenArm(arm="arm", alpha=2.0)], budget=Budget(max_rows=2))
    ours = client.ask(tiny, "chat", "base", ASK, decoding=typed, **SHORT)
    theirs = client.ask(tiny, "chat", "base", ASK, decoding=typed.to_dict(), **SHORT)
    assert ours.text == theirs.text
    assert len(ours.decoding.candidates) == 3
    assert ours.decoding.reward() == max(each.reward for each in ours.decoding.candidates)
    assert (ours.decoding.kl() or 0.0) > 0.0
    assert ours.decoding.strategy == "best_of_n"


def test_progress_of_a_search(client: Any, tiny: str) -> None:
    decoding = {"strategy": "cd_blockwise", "value": "taste", "k": 2, "block": 2}
    events = client.stream(tiny, "stream_chat", "base", ASK, progress=True, decoding=decoding, **SHORT)
    told = [event for event in events if isinstance(event, Progress)]
    assert told
    assert {each.phase for each in told} <= {"decode", "score"}
    assert told[-1].model_tokens >= told[0].model_tokens > 0
    assert isinstance(events[-1], Answer)


def test_texts_are_continued(client: Any, tiny: str) -> None:
    answer = client.ask(tiny, "complete", "base", ["One", "Two"], n=2, **SHORT)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len(answer.decodings) == 2
    *pieces, streamed = client.stream(tiny, "stream_complete", "base", ["One", "Two"], n=2, **SHORT)
    assert [choice.text for choice in streamed.choices] == [choice.text for choice in answer.choices]
    assert {piece.choice for piece in pieces} == {0, 1, 2, 3}


def test_likelihood_of_a_text(client: Any, tiny: str) -> None:
    answer = client.ask(tiny, "complete", "base", "abc", echo=True, logprobs=1, max_tokens=0)
    (choice,) = answer.choices
    assert choice.text == "abc"
    assert choice.logprobs is not None
    first, *others = choice.logprobs
    assert first.logprob is None
    assert all(each.logprob is not None and each.logprob < 0.0 for each in others)


def test_trace_tells_who_wrote_each_token(client: Any, tiny: str) -> None:
    decoding = GenArm(arm="arm", alpha=2.0, trace="tokens")
    answer = client.ask(tiny, "chat", "base", ASK, decoding=decoding, return_token_ids=True, **SHORT)
    (trace,) = answer.decoding.trace
    assert [each["id"] for each in trace] == answer.choices[0]["token_ids"]
    assert {each.source for each in trace} <= {"base", "steered"}
    assert math.isclose(sum(each.kl or 0.0 for each in trace), answer.decoding.kl() or 0.0, rel_tol=1e-3)


def test_strategies_are_compared_in_order(client: Any, tiny: str) -> None:
    strategies = {
        "plain": None,
        "best": BestOfN(n=3, reward="taste"),
        "wrong": BestOfN(n=3, reward="tase"),
        "calm": ControlVector(vector="calm", coeff=8.0, measure_kl=True),
    }
    compared = client.ask(tiny, "compare", "base", ASK, strategies, **SHORT)
    assert [row.name for row in compared] == list(strategies)
    assert compared["plain"].text == client.ask(tiny, "chat", "base", ASK, **SHORT).text
    assert compared["best"].reward is not None
    assert compared["best"].model_tokens > compared["plain"].model_tokens
    assert compared["calm"].kl > 0.0
    assert isinstance(compared["wrong"].error, ClientError)
    assert compared["wrong"].error.param == "decoding.reward"
    lines = str(compared).splitlines()
    assert [line.split()[0] for line in lines] == ["strategy", *strategies]
    assert "error: " in lines[3]
    with pytest.raises(KeyError):
        compared["nobody"]


def test_tokens_there_and_back(client: Any, tiny: str) -> None:
    tokens = client.ask(tiny, "tokenize", "é!", texts=True)
    assert len(tokens.ids) == len(tokens.texts or ()) == 3
    assert client.ask(tiny, "detokenize", tokens.ids) == "é!"
    chat = client.ask(tiny, "tokenize", ASK, model="base")
    assert client.ask(tiny, "detokenize", chat.ids, model="base").startswith("<user>Hi")


def test_scores(client: Any, tiny: str) -> None:
    scores = client.ask(tiny, "score", "brief", [("Hi", "yes"), (ASK, "yes, yes")], request_id="mine")
    assert scores[0] > scores[1]
    assert client.ask(tiny, "classify", "taste", [("Hi", "yes")])[0].probs


def test_what_is_served(client: Any, tiny: str) -> None:
    assert client.ask(tiny, "models")[0] == "base"
    assert client.ask(tiny, "model", "base")["id"] == "base"
    assert {each["name"] for each in client.ask(tiny, "strategies")} >= {"best_of_n", "genarm"}
    by_name = {guide.name: guide for guide in client.ask(tiny, "guides")}
    assert by_name["taste"].scores_answers
    assert by_name["calm"].role == "vector"
    assert client.ask(tiny, "health") is True
    assert client.ask(tiny, "ready") is True
    assert client.ask(tiny, "version")
    with pytest.raises(ClientError) as unknown:
        client.ask(tiny, "model", "nobody")
    assert unknown.value.status == 404
    assert unknown.value.request_id


def test_request_ids_come_back(client: Any, tiny: str) -> None:
    assert client.ask(tiny, "chat", "base", ASK, request_id="a-1", **SHORT).request_id == "a-1"
    assert client.stream(tiny, "stream_chat", "base", ASK, request_id="a-2", **SHORT)[-1].request_id == "a-2"
    with pytest.raises(ClientError) as refused:
        client.ask(tiny, "chat", "base", ASK, request_id="a-3", decoding=Sample(select="soft"), **SHORT)
    assert refused.value.request_id == "a-3"
