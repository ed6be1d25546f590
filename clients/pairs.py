"""Files of preference pairs out of answers that tell their best and worst candidate."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trimtab.clients.fields import Message
from trimtab.clients.results import Answer


def write_pairs(
    ask: Callable[[int, Sequence[Message]], Answer],
    conversations: Sequence[Sequence[Message]],
    path: Path,
    *,
    n: int,
    parallel: int,
) -> int:
    """Write a line for each conversation whose answer has a pair; returns how many."""

    def row(index: int, messages: Sequence[Message]) -> dict[str, Any] | None:
        return _row(messages, ask(index, messages), n)

    written = 0
    with ThreadPoolExecutor(parallel) as pool, path.open("w", encoding="utf-8") as file:
        for line in pool.map(row, range(len(conversations)), conversations):
            if line is not None:
                file.write(json.dumps(line) + "\n")
                written += 1
    return written


def _row(messages: Sequence[Mapping[str, Any]], answer: Answer, n: int) -> dict[str, Any] | None:
    """A line of the file; None where no answer was better than another."""
    pair = answer.decoding.report.get("pair")
    if pair is None:
        return None
    told = {name: [{"role": "assistant", "content": pair[name]}] for name in ("chosen", "rejected")}
    rewards = {name: pair[name] for name in ("chosen_reward", "rejected_reward")}
    return {"prompt": list(messages), **told, **rewards, "n": n, "seed": answer.decoding.seed}
