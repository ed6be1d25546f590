"""A tiny served model as its clients see it: requests, answers, connections to drop, metrics."""

import json
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import httpx2
from gate import PATIENCE
from toy import FunctionReward

from trimtab import LLM, EngineSettings
from trimtab.engine.rewards import Reward

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
USED = "trimtab:kv_pages_used"
RUNNING = "trimtab:num_requests_running"
WAITING = "trimtab:num_requests_waiting"
PREEMPTIONS = "trimtab:num_preemptions_total"


def checksum(answer: str) -> float:
    """A reward that any change of an answer changes, so that ties do not hide one."""
    return float(int.from_bytes(answer.encode()) % 1_000_003)


def load(folder: Path, **changes: object) -> LLM:
    settings = {"model": str(folder), "dtype": "float32", "device": "cpu", "threads": 1, **changes}
    llm = LLM(settings=EngineSettings.model_validate(settings))
    cast(dict[str, Reward], llm.rewards)["checksum"] = FunctionReward("checksum", checksum)
    return llm


def ask(text: str = "Hi", **changes: object) -> dict[str, Any]:
    """A chat request that runs to its last token."""
    message = {"role": "user", "content": text}
    return {"model": "tiny", "messages": [message], "seed": 1, "ignore_eos": True, "max_tokens": 40, **changes}


def connect(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=PATIENCE)


def leaving(url: str, body: Mapping[str, Any], path: str = CHAT) -> socket.socket:
    """Send a request over a connection that the test can drop."""
    client = connect(url)
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    client.sendall(head.encode() + content)
    return client


def metrics(url: str) -> dict[str, float]:
    """Every sample of /metrics by its name and labels, without the label `model`: the sum over the models."""
    told: dict[str, float] = {}
    for line in httpx2.get(url + "/metrics").text.splitlines():
        if line[0] != "#":
            name, _, value = line.rpartition(" ")
            name = re.sub(r'model="[^"]*",?', "", name).replace(",}", "}").removesuffix("{}")
            told[name] = told.get(name, 0.0) + float(value)
    return told


def empty(url: str) -> bool:
    now = metrics(url)
    return now[USED] == now[RUNNING] == now[WAITING] == 0


Told = list[tuple[str, tuple[int, ...], str]]
"""per choice: text, token ids, finish reason"""


def answers(url: str, body: Mapping[str, Any]) -> Told:
    """What the server answers, read from a whole response or put together from a stream."""
    response = httpx2.post(url + CHAT, json={**body, "return_token_ids": True}, timeout=60)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        choices = response.json()["choices"]
        return [(c["message"]["content"], tuple(c["token_ids"]), c["finish_reason"]) for c in choices]
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    texts, ids, reasons = [[""] * body.get("n", 1) for _ in range(3)]
    tokens: list[tuple[int, ...]] = [()] * len(ids)
    for chunk in (json.loads(line.removeprefix("data: ")) for line in events if line[0] != ":"):
        for choice in chunk["choices"]:
            index = choice["index"]
            texts[index] += choice["delta"].get("content") or ""
            tokens[index] += tuple(choice.get("token_ids") or ())
            reasons[index] += choice["finish_reason"] or ""
    return list(zip(texts, tokens, reasons, strict=True))
