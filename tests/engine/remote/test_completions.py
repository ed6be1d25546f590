"""What is asked of each kind of server, and how its answers are read: right, or with an error that says where."""

import copy
import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_faults import Fault
from fake_remote import EOS, SPOKEN, VOCABULARY, FakeRemote
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trimtab.engine.errors import RemoteError, RemoteUnavailable
from trimtab.engine.remote import completions
from trimtab.engine.remote.base import RemoteBase
from trimtab.engine.remote.settings import RemoteSettings
from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.remote.wire import Ask, Capabilities, Reply, Token
from trimtab.engine.sampling import SamplingParams

KINDS = ("vllm", "trimtab", "sglang", "llama.cpp", "other")
PROMPT = VOCABULARY.encode("some words ")
ASK = Ask(PROMPT, 8, SamplingParams(), seed=3)
LETTER = VOCABULARY.encode("e")[0]


@pytest.fixture(scope="module", params=KINDS)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[FakeRemote, RemoteBase]]:
    with FakeRemote(request.param) as fake:
        base = RemoteBase(RemoteSettings(url=fake.url, retries=0), VOCABULARY, RemoteStats())
        fake.calls.clear()
        yield fake, base
        base.close()


@pytest.fixture
def fake(served: tuple[FakeRemote, RemoteBase]) -> FakeRemote:
    served[0].calls.clear()
    served[0].script, served[0].always = [], None
    return served[0]


@pytest.fixture
def base(served: tuple[FakeRemote, RemoteBase], fake: FakeRemote) -> RemoteBase:
    return served[1]


def ids(reply: Reply) -> list[list[int]]:
    return [[token.id for token in each.tokens] for each in reply.continuations]


def known(base: RemoteBase, *kinds: str) -> None:
    if base.capabilities.kind in kinds:
        pytest.skip(f"{base.capabilities.kind} has none of it")


def test_continuations_come_as_asked_for(base: RemoteBase) -> None:
    reply = base.ask(replace(ASK, n=3)).result(20)
    assert len(reply.continuations) == 3
    assert len({tuple(each) for each in ids(reply)}) == 3
    for each in reply.continuations:
        assert each.tokens[-1].id == EOS if each.finish == "stop" else len(each.tokens) == 8
        assert all(token.logprob is None for token in each.tokens)
    assert ids(base.ask(replace(ASK, n=3)).result(20)) == ids(reply)
    assert reply.cached == 3
    assert reply.prompt == ()


def test_a_stream_tells_what_the_whole_answer_says(base: RemoteBase) -> None:
    ask = replace(ASK, n=2, logprobs=2)
    told: dict[int, list[Token]] = {0: [], 1: []}
    streamed = base.ask(ask, lambda number, token: told[number].append(token)).result(20)
    whole = base.ask(ask).result(20)
    assert streamed.continuations == whole.continuations
    assert [tuple(tokens) for tokens in told.values()] == [each.tokens for each in whole.continuations]


def test_continuations_are_the_same_however_calls_are_split(base: RemoteBase) -> None:
    """Number and stream say which continuation it is; places in the text draw anew."""
    together = ids(base.ask(replace(ASK, n=3)).result(20))
    alone = [ids(base.ask(replace(ASK, stream=stream)).result(20))[0] for stream in range(3)]
    assert together == alone
    other = ids(base.ask(replace(ASK, seed=4)).result(20))[0]
    assert other != alone[0]


def test_segments_do_not_draw_with_the_same_numbers(base: RemoteBase, fake: FakeRemote) -> None:
    base.ask(ASK).result(20)
    base.ask(replace(ASK, prompt=[*PROMPT, 81])).result(20)
    seeds = []
    for body in fake.asked(completions.path(base.capabilities)):
        params = body.get("sampling_params", body)
        seeds.append(params.get("sampling_seed", params.get("seed")))
        assert 0 <= seeds[-1] < 2**62
    if base.capabilities.streams:  # trimtab knows where in a text it is
        assert seeds == [3, 3]
    else:
        assert seeds[0] != seeds[1]


def test_log_probabilities_are_the_models_own(base: RemoteBase, fake: FakeRemote) -> None:
    """At temperature 1 and before filters, whatever the sampling; alternatives in order."""
    sampling = SamplingParams(temperature=0.5, top_p=0.9)
    reply = base.ask(replace(ASK, sampling=sampling, logprobs=3)).result(20)
    (drawn,) = reply.continuations
    prefix = list(PROMPT)
    for token in drawn.tokens:
        want = fake.logprobs(prefix)
        assert token.logprob == pytest.approx(want[token.id])
        best = np.argsort(-want)[:3].tolist()
        assert [id_ for id_, _ in token.top] == best
        assert [value for _, value in token.top] == pytest.approx(want[best].tolist())
        prefix.append(token.id)


def test_none_or_only_the_drawn_tokens_numbers(base: RemoteBase) -> None:
    (drawn,) = base.ask(replace(ASK, logprobs=0)).result(20).continuations
    assert all(token.logprob is not None and token.top == () for token in drawn.tokens)


@pytest.mark.parametrize("count", [0, 2])
def test_prompts_are_read(base: RemoteBase, fake: FakeRemote, count: int) -> None:
    known(base, "llama.cpp")
    reply = base.ask(replace(ASK, max_tokens=0, prompt_logprobs=count)).result(20)
    assert reply.continuations == ()
    assert [token.id for token in reply.prompt] == PROMPT
    assert reply.prompt[0] == Token(PROMPT[0])
    for end, token in enumerate(reply.prompt[1:], 1):
        want = fake.logprobs(PROMPT[:end])
        assert token.logprob == pytest.approx(want[token.id])
        assert [id_ for id_, _ in token.top] == np.argsort(-want)[:count].tolist()


def test_a_prompt_is_read_and_continued_in_one_call(base: RemoteBase) -> None:
    known(base, "llama.cpp")
    reply = base.ask(replace(ASK, prompt_logprobs=3, logprobs=1)).result(20)
    apart = base.ask(replace(ASK, logprobs=1)).result(20)
    assert reply.continuations == apart.continuations
    assert len(reply.prompt) == len(PROMPT)
    assert {len(token.top) for token in reply.prompt[1:]} == {3}


def test_a_stop_string_stays_and_is_named(base: RemoteBase) -> None:
    whole = base.ask(replace(ASK, max_tokens=30, sampling=SamplingParams(temperature=0))).result(20).continuations[0]
    stop = VOCABULARY.decode([whole.tokens[2].id])
    ask = replace(ASK, max_tokens=30, sampling=SamplingParams(temperature=0), stop=(stop,), logprobs=1)
    (cut,) = base.ask(ask).result(20).continuations
    assert (cut.finish, cut.stop_reason) == ("stop", stop)
    assert [token.id for token in cut.tokens] == [token.id for token in whole.tokens[: len(cut.tokens)]]
    assert VOCABULARY.decode([token.id for token in cut.tokens]).endswith(stop)


def test_stop_tokens_and_least_lengths_are_sent(base: RemoteBase) -> None:
    known(base, "llama.cpp", "other")
    sampling = SamplingParams(ignore_eos=True)
    (cut,) = (
        base.ask(replace(ASK, max_tokens=90, sampling=sampling, stop_token_ids=SPOKEN[:13])).result(20).continuations
    )
    assert cut.stop_reason in SPOKEN[:13]
    assert cut.tokens[-1].id == cut.stop_reason
    (long,) = base.ask(replace(ASK, max_tokens=60, min_tokens=60)).result(20).continuations
    assert len(long.tokens) == 60


def test_sampling_is_sent(base: RemoteBase, fake: FakeRemote) -> None:
    kind = base.capabilities.kind
    sampling = SamplingParams(
        temperature=0.7, top_p=0.8, top_k=5, min_p=0.1, repetition_penalty=1.1, presence_penalty=0.2,
        frequency_penalty=0.3, logit_bias={LETTER: 50.0}, ignore_eos=True, skip_special_tokens=False,
    )  # fmt: skip
    wanted = sampling.model_dump(exclude={"max_tokens", "seed", "logprobs", "stop", "min_tokens", "stop_token_ids"})
    wanted.pop("include_stop_str_in_output")
    if kind == "other":
        assert completions.refused(sampling, base.capabilities) == "top_k"
        for name in ("top_k", "min_p", "repetition_penalty", "ignore_eos", "skip_special_tokens"):
            wanted.pop(name)
    reply = base.ask(replace(ASK, sampling=sampling, salt="a/b@c", priority=2)).result(20)
    assert ids(reply) == [[LETTER] * 8]
    (body,) = fake.asked(completions.path(base.capabilities))
    params = body.get("sampling_params", body)
    if kind == "llama.cpp":
        assert completions.refused(sampling, base.capabilities) == "presence_penalty"
        assert params["repeat_penalty"] == 1.1
        assert params["repeat_last_n"] == -1
        wanted = {name: wanted[name] for name in ("temperature", "top_p", "top_k", "min_p", "ignore_eos")}
    else:
        assert params["logit_bias"] == {str(LETTER): 50.0}
        wanted.pop("logit_bias")
    assert {name: params[name] for name in wanted} == wanted
    if base.capabilities.salts:
        assert len(body["cache_salt"]) == 64
        assert body["priority"] == 2


def test_salts_differ_and_none_is_none(base: RemoteBase, fake: FakeRemote) -> None:
    known(base, "llama.cpp", "other")
    for salt in ("a", "b", "a", ""):
        base.ask(replace(ASK, salt=salt)).result(20)
    sent = [body.get("cache_salt") for body in fake.asked(completions.path(base.capabilities))]
    assert sent[0] == sent[2] != sent[1]
    assert sent[3] is None


def test_a_session_stays_together(base: RemoteBase, fake: FakeRemote) -> None:
    base.ask(replace(ASK, n=2, session="abc")).result(20)
    assert {headers.get("x-session-id") for _, _, headers in fake.calls} == {"abc"}


def test_plain_sampling_is_refused_nowhere(base: RemoteBase) -> None:
    plain = SamplingParams(temperature=0.5, top_p=0.9, seed=1, max_tokens=5, stop=("x",), logprobs=3)
    assert completions.refused(plain, base.capabilities) is None


def test_the_prompt_may_grow_while_it_is_sent(base: RemoteBase, fake: FakeRemote) -> None:
    async def busy() -> None:
        time.sleep(0.2)

    prompt = list(PROMPT)
    base._connection.start(busy())
    call = base.ask(replace(ASK, prompt=prompt))
    prompt += [1] * 100
    call.result(20)
    (body,) = fake.asked(completions.path(base.capabilities))
    assert body.get("prompt", body.get("input_ids")) == PROMPT


def test_a_drawn_token_without_its_number_is_refused(base: RemoteBase, fake: FakeRemote) -> None:
    """Only the first token of a prompt has none."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(each) for key, each in value.items()}
        if isinstance(value, list):
            return [without(each) for each in value]
        return None if type(value) is float else value

    fake.always = Fault(mangle=without)
    for told in (None, lambda number, token: None):
        with pytest.raises(RemoteError, match="a log-probability"):
            base.ask(replace(ASK, logprobs=0), told).result(20)


def test_minus_infinity_is_read(base: RemoteBase, fake: FakeRemote) -> None:
    def lowest(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: lowest(each) for key, each in value.items()}
        if isinstance(value, list):
            return [lowest(each) for each in value]
        return -9999.0 if type(value) is float else value

    fake.always = Fault(mangle=lowest)
    (drawn,) = base.ask(replace(ASK, logprobs=1)).result(20).continuations
    assert {token.logprob for token in drawn.tokens} == {-math.inf}


def test_text_is_spelled_again_where_no_ids_come() -> None:
    with FakeRemote("other", speaks_ids=False) as fake:
        base = RemoteBase(RemoteSettings(url=fake.url, retries=0), VOCABULARY, RemoteStats())
        try:
            assert not base.capabilities.token_ids
            assert base.capabilities.logprobs == -1
            (reply,) = base.ask(ASK).result(20).continuations
            with_ids = fake._draw(PROMPT, {}, fake.asked("/v1/completions")[-1]["seed"], 8)
            assert [token.id for token in reply.tokens] == [id_ for id_ in with_ids.ids if id_ != EOS]
        finally:
            base.close()


# Whatever an answer says, it is read right or refused.

JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.sampled_from([math.inf, -math.inf, 0.5, -9999.0, 1e300]),
    st.text(max_size=5), st.just([]), st.just({}), st.lists(st.integers(-1, 300), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(0, 5), max_size=2), st.sampled_from(["stop", "token_id:3"]),
)  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, each in items for place in ((*at, key), *places(each, (*at, key)))]


@st.composite
def mangled(draw: st.DrawFn, answer: Any) -> Any:
    """The answer with one to three of its parts dropped, replaced, doubled or nested."""
    answer = copy.deepcopy(answer)
    for _ in range(draw(st.integers(1, 3))):
        spots = places(answer)
        if not spots:
            return draw(JUNK)
        *way, last = draw(st.sampled_from(spots))
        parent = answer
        for key in way:
            parent = parent[key]
        match draw(st.sampled_from(["drop", "replace", "double", "nest"])):
            case "drop":
                del parent[last]
            case "replace":
                parent[last] = draw(JUNK)
            case "double":
                parent[last] = [parent[last], parent[last]]
            case "nest":
                parent[last] = {"value": parent[last]}
    return answer


def right(ask: Ask, reply: Reply) -> None:
    """Everything that may be relied on."""
    assert len(reply.continuations) == (ask.n if ask.max_tokens else 0)
    for each in reply.continuations:
        assert each.finish in ("stop", "length")
        assert each.stop_reason is None or type(each.stop_reason) is int or each.stop_reason in ask.stop
        assert len(each.tokens) <= ask.max_tokens
        assert each.tokens or each.finish == "stop"
        for token in each.tokens:
            assert type(token.id) is int
            assert 0 <= token.id < VOCABULARY.size
            if ask.logprobs is not None:
                sound(token, ask.logprobs)
    if ask.prompt_logprobs is not None:
        assert [token.id for token in reply.prompt] == list(ask.prompt)
        for token in reply.prompt[1:]:
            sound(token, ask.prompt_logprobs)
    assert type(reply.cached) is int
    assert reply.cached >= 0


def sound(token: Token, count: int) -> None:
    assert token.logprob is not None
    assert token.logprob <= 0.0
    assert len(token.top) <= count
    assert all(0 <= id_ < VOCABULARY.size and value <= 0.0 for id_, value in token.top)


ASKS = (
    replace(ASK, n=2, logprobs=2, max_tokens=3),
    replace(ASK, max_tokens=3, stop=("e", " ")),
    replace(ASK, max_tokens=0, prompt=PROMPT[:4], prompt_logprobs=1),
)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), which=st.integers(0, 2))
def test_a_mangled_answer_is_read_right_or_refused(
    base: RemoteBase, fake: FakeRemote, data: st.DataObject, which: int
) -> None:
    ask, found = ASKS[which], base.capabilities
    if found.kind == "llama.cpp":
        ask = replace(ask, n=1, prompt_logprobs=None, max_tokens=ask.max_tokens or 3)
    answer = spoken(fake, ask, found)
    right(ask, completions.reply(ask, found, answer, VOCABULARY))
    try:
        reply = completions.reply(ask, found, data.draw(mangled(answer)), VOCABULARY)
    except (RemoteError, RemoteUnavailable):
        return
    right(ask, reply)


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), which=st.integers(0, 1))
def test_a_mangled_stream_is_read_right_or_refused(
    base: RemoteBase, fake: FakeRemote, data: st.DataObject, which: int
) -> None:
    ask, found = ASKS[which], base.capabilities
    deltas = completions.deltas(ask, found, VOCABULARY)
    if deltas is None:
        pytest.skip("not streamed")
    chunks = data.draw(mangled(fake.chunks(spoken(fake, ask, found))))
    told: dict[int, list[Token]] = {}
    try:
        for chunk in chunks if isinstance(chunks, list) else [chunks]:
            for number, token in deltas.take(chunk):
                told.setdefault(number, []).append(token)
        reply = deltas.reply()
    except (RemoteError, RemoteUnavailable):
        return
    right(ask, reply)
    assert [told.get(number, []) for number in range(ask.n)] == [list(each.tokens) for each in reply.continuations]


def spoken(fake: FakeRemote, ask: Ask, found: Capabilities) -> Any:
    body = completions.body(ask, found)
    return {"sglang": fake._sglang, "llama.cpp": fake._llamacpp}.get(fake.kind, fake._openai)(body)


def test_errors_say_where_and_not_what(base: RemoteBase, fake: FakeRemote) -> None:
    secret = "the-secret-of-the-answer"
    fake.always = Fault(mangle=lambda answer: secret)
    with pytest.raises(RemoteError, match="the answer") as caught:
        base.ask(ASK).result(20)
    assert secret not in str(caught.value)


@pytest.mark.parametrize("error", [{"code": "draining"}, {"code": 503}, {"type": "rate_limit_error"}])
def test_a_stream_that_says_it_is_busy_is_worth_another_try(error: dict[str, Any]) -> None:
    found = Capabilities("vllm", "toy", 99, True, True, True, True, False, 20, 20, True, True)
    deltas = completions.deltas(ASK, found, VOCABULARY)
    assert deltas is not None
    with pytest.raises(RemoteUnavailable):
        deltas.take({"error": error})
    with pytest.raises(RemoteError):
        deltas.take({"error": {"code": 500, "message": "internal"}})
