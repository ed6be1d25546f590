"""What a server can do is found by trying it; one that will not do is refused with the fix."""

import json
import string
from collections.abc import Callable
from typing import Any

import pytest
from fake_faults import Fault
from fake_remote import VOCABULARY, FakeRemote
from toy import byte_tokenizer

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.remote.base import RemoteBase
from trimtab.engine.remote.settings import RemoteSettings
from trimtab.engine.remote.spelling import Spelling
from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.remote.wire import Capabilities
from trimtab.engine.vocabulary import Vocabulary

ALL = ("/v1/models", "/tokenize", "/v1/completions", "/generate", "/completion", "/openapi.json", "/props")


def probed(fake: FakeRemote, **changes: Any) -> Capabilities:
    settings = {"url": fake.url, "retries": 0, "backoff": 0.01, **changes}
    base = RemoteBase(RemoteSettings(**settings), VOCABULARY, RemoteStats())
    base.close()
    return base.capabilities


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("trimtab", {"streams": True, "salts": True, "prompt_logprobs": 20, "scores": ("score", "classify")}),
        ("vllm", {"streams": False, "salts": True, "prompt_logprobs": 20, "scores": ("score", "pooling")}),
        ("sglang", {"salts": True, "prompt_logprobs": 20, "scores": ()}),
        ("llama.cpp", {"many": False, "salts": False, "prompt_logprobs": -1}),
        ("other", {"salts": False, "context_length": None, "prompt_logprobs": 20}),
    ],
)
def test_each_kind_is_known_by_what_it_says_and_does(kind: str, wanted: dict[str, Any]) -> None:
    with FakeRemote(kind) as fake:
        found = probed(fake)
    assert (found.kind, found.model, found.token_prompts, found.token_ids, found.seeds) == (
        kind, "toy", True, True, True,
    )  # fmt: skip
    assert found.logprobs == 20
    assert found.include_stop
    default = {"many": True, "context_length": 4096, "streams": False} | wanted
    assert {name: getattr(found, name) for name in default} == default
    assert len(found.tokenizer) == 64


def test_an_older_trimtab_without_streams_is_taken() -> None:
    with FakeRemote("trimtab") as fake:
        fake.knows_streams = False
        found = probed(fake)
    assert found.token_ids
    assert not found.streams
    assert found.logprobs == 20


def mangled(change: Callable[[dict[str, Any]], None]) -> Fault:
    """Changes each choice of an answer."""

    def mangle(answer: dict[str, Any]) -> dict[str, Any]:
        answer = json.loads(json.dumps(answer))
        for choice in answer.get("choices", ()):
            change(choice)
        return answer

    return Fault(mangle=mangle)


def test_log_probabilities_after_temperature_are_not_used() -> None:
    with FakeRemote("vllm", warped=True) as fake:
        assert probed(fake).logprobs == -1


def test_log_probabilities_without_ids_are_not_used() -> None:
    def by_text(choice: dict[str, Any]) -> None:
        if choice["logprobs"]:
            choice["logprobs"]["tokens"] = ["?"] * len(choice["logprobs"]["tokens"])

    with FakeRemote("trimtab") as fake:
        fake.always = mangled(by_text)
        found = probed(fake)
    assert (found.logprobs, found.prompt_logprobs) == (-1, -1)


def test_seeds_that_change_nothing_back_are_noticed() -> None:
    draws = iter(range(10**6))

    with FakeRemote("vllm") as fake:
        draw = fake._draw
        fake._draw = lambda prompt, told, seed, most: draw(prompt, told, next(draws), most)  # type: ignore[method-assign]
        assert not probed(fake).seeds


def test_fewer_alternatives_are_taken() -> None:
    with FakeRemote("vllm") as fake:
        invalid = fake._invalid
        fake._invalid = lambda body: "too many" if (body.get("logprobs") or 0) > 5 else invalid(body)  # type: ignore[method-assign]
        assert probed(fake).logprobs == 5


def test_one_answer_at_a_time_is_taken() -> None:
    with FakeRemote("vllm") as fake:
        invalid = fake._invalid
        fake._invalid = lambda body: "n" if body.get("n", 1) > 1 else invalid(body)  # type: ignore[method-assign]
        assert not probed(fake).many


def test_the_kind_may_be_given_and_the_model_chosen() -> None:
    with FakeRemote("vllm") as fake:
        assert probed(fake, kind="vllm", served="toy").model == "toy"
        with pytest.raises(ModelLoadError, match=r"does not serve 'mine', only \['toy'\]: set served"):
            probed(fake, served="mine")


def test_nobody_there_is_told_with_the_address() -> None:
    stats = RemoteStats()
    with pytest.raises(ModelLoadError, match=r"remote: the server at http://127.0.0.1:9 cannot be reached: start it"):
        RemoteBase(RemoteSettings(url="http://127.0.0.1:9", retries=1, backoff=0.01), VOCABULARY, stats)
    assert stats.failures == {"connect": 2}


@pytest.mark.parametrize("path", ALL[:3])
@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"data": []}', b'{"data": [{"id": 3}]}'])
def test_what_is_no_such_server_is_refused(path: str, body: bytes) -> None:
    with FakeRemote("vllm") as fake:
        fake.always = Fault(body=body, only=(path,))
        with pytest.raises(ModelLoadError):
            probed(fake)


def test_a_server_without_token_prompts_is_refused_with_the_fix() -> None:
    with FakeRemote("vllm") as fake:
        fake.always = Fault(status=400)
        with pytest.raises(ModelLoadError, match=r"takes no token ids as a prompt of /v1/completions .*use trimtab"):
            probed(fake)


@pytest.mark.parametrize(
    ("kind", "speaks_ids"), [("vllm", True), ("llama.cpp", True), ("other", True), ("other", False)]
)
def test_another_tokenizer_is_refused_and_the_first_difference_shown(kind: str, speaks_ids: bool) -> None:
    """By /tokenize, by the ids of a text prompt, and by what is read in ids."""
    with FakeRemote(kind, speaks_ids=speaks_ids) as fake:
        fake.shift = 1
        with pytest.raises(ModelLoadError, match=r"another tokenizer than engine.model: 'The quick .* is \[.*\] there"):
            probed(fake)


def test_the_hash_is_of_what_came() -> None:
    with FakeRemote("vllm") as fake, FakeRemote("trimtab") as other:
        assert probed(fake).tokenizer == probed(other).tokenizer


def test_texts_show_special_tokens_and_words_from_all_over() -> None:
    tokenizer = byte_tokenizer()
    plain = Spelling.of(Vocabulary(tokenizer))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    more = Spelling.of(Vocabulary(tokenizer))
    assert plain.differs(plain.ids) is None
    assert more.differs([*plain.ids[:-2], more.ids[-2][:-1], plain.ids[-1]]) is not None
    assert {id_ for each in plain.ids for id_ in each} >= set(VOCABULARY.encode(string.printable))
    assert more.ids[-2][-1] == 257
    for place in range(len(plain.ids)):
        wrong = [list(each) for each in plain.ids]
        wrong[place][-1] += 1
        assert repr(plain.texts[place][:60]) in (plain.differs(wrong) or "")
