"""Files of preference pairs: what is asked for, what is written, and what happens on the way."""

import json
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from trimtab.clients.client import ClientError, TrimtabClient

WORDS = ["zero", "one", "two", "three", "four", "five", "six"]
CONVERSATIONS = [[{"role": "system", "content": "Be é."}, {"role": "user", "content": word}] for word in WORDS]


def told(body: dict[str, Any]) -> dict[str, Any]:
    """A pair that names its prompt; none for `two` and `five`, whose answers are all worth the same."""
    word = body["messages"][-1]["content"]
    pair = {"chosen": f"{word}!", "rejected": f"{word}\u2028?", "chosen_reward": 0.5, "rejected_reward": -1.0}
    report = {"n": 3} if word in ("two", "five") else {"n": 3, "pair": pair}
    cost = {"model_tokens": {"base": 9}, "milliseconds": {"total": 1.0}}
    chosen = {"chosen": [None], "candidates": [], "spec": body["decoding"]}
    return {"report": report, "seed": body.get("seed", 77), **chosen, **cost}


def test_each_line_is_a_preference_for_a_conversation(scripted: Any, tmp_path: Path) -> None:
    scripted.decoding = told
    path = tmp_path / "pairs.jsonl"
    with TrimtabClient(scripted.url) as client:
        written = client.pairs(
            "tiny", iter(CONVERSATIONS), path, n=3, reward={"sum": ["a", "b"]}, seed=10, temperature=0.5, max_tokens=9
        )
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert written == len(rows) == 5
    assert rows == [
        {
            "prompt": messages,
            "chosen": [{"role": "assistant", "content": f"{word}!"}],
            "rejected": [{"role": "assistant", "content": f"{word}\u2028?"}],
            "chosen_reward": 0.5,
            "rejected_reward": -1.0,
            "n": 3,
            "seed": 10 + index,
        }
        for index, (word, messages) in enumerate(zip(WORDS, CONVERSATIONS, strict=True))
        if word not in ("two", "five")
    ]
    bodies = sorted(scripted.bodies, key=lambda body: body["seed"])
    assert [body["messages"] for body in bodies] == CONVERSATIONS
    decoding = {"strategy": "best_of_n", "n": 3, "reward": {"sum": ["a", "b"]}, "export": "best_and_worst"}
    assert all(body["decoding"] == decoding for body in bodies)
    assert all((body["temperature"], body["max_tokens"]) == (0.5, 9) for body in bodies)


def test_the_seed_that_the_server_drew_is_noted(scripted: Any, tmp_path: Path) -> None:
    scripted.decoding = told
    with TrimtabClient(scripted.url) as client:
        client.pairs("tiny", CONVERSATIONS[:1], tmp_path / "pairs.jsonl", n=3, reward="a")
    assert json.loads((tmp_path / "pairs.jsonl").read_text())["seed"] == 77
    assert "seed" not in scripted.bodies[0]


def test_a_refusal_ends_it_and_what_was_written_stays(scripted: Any, tmp_path: Path) -> None:
    def failing(body: dict[str, Any]) -> dict[str, Any]:
        if body["messages"][-1]["content"] == "three":
            scripted.refusal = {"message": "no more", "type": "x", "param": None, "code": None}
        return told(body)

    scripted.decoding = failing
    path = tmp_path / "pairs.jsonl"
    with TrimtabClient(scripted.url) as client, pytest.raises(ClientError, match="no more"):
        client.pairs("tiny", CONVERSATIONS * 20, path, n=3, reward="a", parallel=1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["prompt"][1]["content"] for row in rows] == ["zero", "one", "three"]
    assert len(scripted.bodies) < 70  # those that had not begun are not asked for


def test_conversations_are_asked_side_by_side(scripted: Any, tmp_path: Path) -> None:
    """Each answer waits until three requests are there: one after the other none would end."""
    together = Barrier(3)

    def waiting(body: dict[str, Any]) -> dict[str, Any]:
        together.wait(10)
        return told(body)

    scripted.decoding = waiting
    with TrimtabClient(scripted.url) as client:
        assert client.pairs("tiny", CONVERSATIONS[:3], tmp_path / "p", n=3, reward="a", parallel=3) == 2
