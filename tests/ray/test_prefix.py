"""Keys of prompts, and the order of replicas that each key has."""

from collections import Counter

import pytest
from pydantic_core import to_json

from trimtab.cluster.prefix import prefix_key, ranked

REPLICAS = [f"replica-{i}" for i in range(8)]
KEYS = [prefix_key(b"", f"session {i}", 512) for i in range(4000)]


def key(session: str = "", length: int = 64, **body: object) -> str:
    return prefix_key(to_json(body), session, length)


def user(text: str) -> dict[str, object]:
    return {"role": "user", "content": text}


def test_a_conversation_keeps_its_key_as_it_goes_on() -> None:
    first = [{"role": "system", "content": "Be kind."}, user("Hello")]
    later = [*first, {"role": "assistant", "content": "Hi!"}, user("And now?")]
    assert key(messages=first) == key(messages=later)
    assert key(messages=first) != key(messages=[user("Hello")])
    assert key(messages=first) != key(messages=[first[0], user("Goodbye")])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"prompt": "a" * 64 + "b"}, {"prompt": "a" * 64 + "c"}),
        ({"prompt": list(range(16))}, {"prompt": [*range(16), 99]}),
        ({"messages": [user("x")], "max_tokens": 3}, {"messages": [user("x")], "seed": 1}),
        (
            {"pairs": [{"prompt": "p", "answer": "a"}]},
            {"pairs": [{"prompt": "p", "answer": "b"}, {"prompt": "q", "answer": "b"}]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, user("y")]},
        ),
    ],
)
def test_equal_beginnings_have_equal_keys(one: dict[str, object], other: dict[str, object]) -> None:
    assert key(**one) == key(**other) != ""


@pytest.mark.parametrize("body", [{"prompt": "b"}, {"prompt": "a", "cache_salt": "s"}, {"prompt": [97]}, {}])
def test_other_beginnings_and_salts_have_other_keys(body: dict[str, object]) -> None:
    assert key(prompt="a") != key(**body)


def test_a_session_stays_together_whatever_it_asks() -> None:
    assert key("s", prompt="a") == key("s", prompt="b") != key("t", prompt="a")
    assert key("s", prompt="a", cache_salt="x") != key("s", prompt="a")
    assert key("a") != key(prompt="a")


@pytest.mark.parametrize("body", [b"", b"no json", b"[1]", b'{"prompt": null}', b'{"prompt": {"a": 1}}'])
def test_nothing_is_said_of_what_has_no_prompt(body: bytes) -> None:
    assert prefix_key(body, "", 64) == ""


def test_keys_tell_nothing_of_the_prompt() -> None:
    assert len(key(prompt="secret" * 99)) == 32


def test_keys_are_spread_evenly() -> None:
    counts = Counter(ranked(each, REPLICAS)[0] for each in KEYS)
    assert len(counts) == len(REPLICAS)
    mean = len(KEYS) / len(REPLICAS)
    assert all(abs(count - mean) < 5 * mean**0.5 for count in counts.values())


def test_a_replica_that_goes_moves_its_own_keys_alone() -> None:
    left = REPLICAS[:-1]
    for each in KEYS[:500]:
        before, after = ranked(each, REPLICAS), ranked(each, left)
        assert [replica for replica in before if replica in left] == after


def test_the_order_does_not_depend_on_how_replicas_are_listed() -> None:
    assert all(ranked(each, REPLICAS) == ranked(each, REPLICAS[::-1]) for each in KEYS[:50])
