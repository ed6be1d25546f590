"""Models, strategies, tokens, health and metrics of the shared server."""

import os
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from wire import metrics

from trimtab.decoders.registry import strategies

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def test_alive_and_accepting(http: httpx2.Client) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").json() == {"status": "ready"}
    assert http.get("/version").json()["version"]


def test_machine_tells_what_the_models_run_on(http: httpx2.Client) -> None:
    told = http.get("/v1/machine").json()
    assert told["hardware"]["torch"] == torch.__version__
    assert told["hardware"]["cores"] == os.cpu_count()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    assert told["memory_mib"]["resident"] == pytest.approx(resident, rel=0.1)
    (model,) = told["models"]
    assert (model["id"], model["dtype"], model["device"]) == ("tiny", "float32", "cpu")


def test_strategies_are_those_of_the_registry_and_auto(http: httpx2.Client) -> None:
    listed = http.get("/v1/strategies").json()
    assert [each["name"] for each in listed["data"]] == [*strategies(), "auto"]
    assert [each["available"] for each in listed["data"] if "available" in each] == [False]
    best = next(each for each in listed["data"] if each["name"] == "best_of_n")
    assert best["schema"]["properties"]["n"]["default"] == 8
    assert "brevity" in listed["rewards"]


def test_tokenize_and_back(http: httpx2.Client) -> None:
    told = http.post("/tokenize", json={"prompt": "héé", "return_token_strs": True}).json()
    assert told["count"] == len(told["tokens"]) == 5
    assert told["token_strs"][0] == "h"
    assert told["max_model_len"] == 512
    assert http.post("/detokenize", json={"tokens": told["tokens"]}).json() == {"prompt": "héé"}


def test_tokenize_applies_the_chat_template(http: httpx2.Client) -> None:
    told = http.post("/tokenize", json={"messages": CHAT["messages"]}).json()
    text = http.post("/detokenize", json={"tokens": told["tokens"]}).json()["prompt"]
    assert text == "<|user|>Hi<|end|><|assistant|>"
    used = http.post("/v1/chat/completions", json=CHAT).json()["usage"]["prompt_tokens"]
    assert used == told["count"]


def test_developer_is_the_templates_system(http: httpx2.Client) -> None:
    told = http.post("/tokenize", json={"messages": [{"role": "developer", "content": "a"}]}).json()
    text = http.post("/detokenize", json={"tokens": told["tokens"]}).json()["prompt"]
    assert text.startswith("<|system|>a")


def test_token_ids_are_returned_on_request(http: httpx2.Client) -> None:
    told = http.post("/v1/chat/completions", json={**CHAT, "return_token_ids": True}).json()
    assert len(told["prompt_token_ids"]) == told["usage"]["prompt_tokens"]
    assert len(told["choices"][0]["token_ids"]) == told["usage"]["completion_tokens"]
    assert "token_ids" not in http.post("/v1/chat/completions", json=CHAT).json()["choices"][0]


def test_metrics_count_what_was_served(http: httpx2.Client, shared: Any) -> None:
    before = metrics(shared.url)
    decoding = {"strategy": "best_of_n", "n": 3, "reward": "brevity"}
    told = http.post("/v1/chat/completions", json={**CHAT, "decoding": decoding}).json()
    after = metrics(shared.url)

    def grew(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    reason = told["choices"][0]["finish_reason"]
    label = f'finished_reason="{reason}",strategy="best_of_n"'
    assert grew(f"trimtab:request_success_total{{{label}}}") == 1
    assert grew("trimtab:generation_tokens_total") == sum(c["tokens"] for c in told["decoding"]["candidates"])
    assert grew("trimtab:prefix_cache_queries_total") > 0
    assert grew('trimtab:reward_batch_size_sum{guide="brevity"}') == 3
    assert grew('trimtab:candidates_per_request_sum{strategy="best_of_n"}') == 3
    assert grew('trimtab:e2e_request_latency_seconds_count{strategy="best_of_n"}') == 1
    assert after["trimtab:num_requests_running"] == 0
    assert after["trimtab:kv_pages_used"] == 0
