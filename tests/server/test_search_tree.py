"""`decoding.tree`: what a search wrote, as clients are told of it."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from steered import furnish, guides
from wire import CHAT, TEXT

from trimtab.clients.client import TrimtabClient
from trimtab.decoders.attributes import Attribute
from trimtab.decoders.rewards import Expression
from trimtab.engine.guides.preference import PreferenceHead
from trimtab.engine.results import Fate, Result, Tree, TreeNode, Usage
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import TextStream, Vocabulary
from trimtab.llm import LLM
from trimtab.server import trace
from trimtab.server.offload import weight
from trimtab.server.settings import Settings

ASK = [{"role": "user", "content": "Hi"}]
BEST = {"strategy": "best_of_n", "n": 3, "reward": "taste"}
BEAMS = {"strategy": "beam_search", "value": "taste", "n": 4, "m": 2, "step_tokens": 4}
FIELDS = {"parent", "text", "tokens", "value", "reward", "fate", "candidate", "choice"}
FLOOR = {"steer": [{"method": "control_vector", "vector": "calm", "coeff": 4.0}]}
POLICIES: dict[str, Any] = {
    "guarded": {"forbidden": [], "floor": {"guard": {"reward": "worth", "at_least": -1e9}}},
    "closed": {"floor": FLOOR},
    "open": {"forbidden": [], "floor": FLOOR},
    "free": {},
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    place: Path = furnish(tmp_path_factory.mktemp("grown"))
    head = PreferenceHead(("brief", "taste"), torch.eye(2, 48), torch.zeros(2))
    head.save(place / "balance.safetensors")
    configured = {**guides(place), "balance": {"role": "preference", "model": str(place / "balance.safetensors")}}
    settings = {"model": str(place / "base"), "device": "cpu", "threads": 1, "pool_tokens": 4096, "guides": configured}
    attributes = {name: Attribute(low="small", high="large", reward=Expression.of(name)) for name in ("brief", "taste")}
    with LLM(settings=EngineSettings.model_validate(settings), attributes=attributes) as llm:
        yield llm


@pytest.fixture(scope="module")
def url(llm: LLM, start_shared: Callable[..., Any]) -> str:
    keys = {name: {"sha256": hashlib.sha256(name.encode()).hexdigest(), "policy": name} for name in POLICIES}
    return str(start_shared(llm, Settings.model_validate({"policies": POLICIES, "keys": keys})).url)


def post(url: str, decoding: dict[str, Any], caller: str = "free", path: str = CHAT, **changes: Any) -> httpx2.Response:
    asked = {"messages": ASK} if path == CHAT else {"prompt": "Hi"}
    body = {"model": "base", "max_tokens": 12, "seed": 1, **asked, "decoding": decoding, **changes}
    return httpx2.post(url + path, json=body, headers={"authorization": f"Bearer {caller}"}, timeout=60)


def ask(url: str, decoding: dict[str, Any], caller: str = "free", **changes: Any) -> dict[str, Any]:
    response = post(url, decoding, caller, **changes)
    assert response.status_code == 200, response.text
    answered: dict[str, Any] = response.json()
    return answered


def texts(nodes: list[dict[str, Any]]) -> list[str]:
    """Of each node, the text up to its end."""
    found: list[str] = []
    for node in nodes:
        found.append(("" if node["parent"] is None else found[node["parent"]]) + node["text"])
    return found


@pytest.mark.parametrize("decoding", [BEST, BEAMS, {"strategy": "sample"}, {"strategy": "genarm", "arm": "arm"}])
@pytest.mark.parametrize("n", [1, 2])
def test_the_answers_stand_in_the_tree(url: str, decoding: dict[str, Any], n: int) -> None:
    answered = ask(url, {**decoding, "trace": "search"}, n=n)
    told = answered["decoding"]
    assert told["spec"]["trace"] == "search"
    assert "trace" not in told
    nodes, omitted = told["tree"]["nodes"], told["tree"]["omitted"]
    assert omitted == 0
    assert all(set(node) == FIELDS for node in nodes)
    found = texts(nodes)
    ends = {node["choice"]: index for index, node in enumerate(nodes) if node["choice"] is not None}
    assert {index: found[at] for index, at in ends.items()} == {
        choice["index"]: choice["message"]["content"] for choice in answered["choices"]
    }
    assert [nodes[ends[index]]["candidate"] for index in range(n)] == told["chosen"]
    for number, candidate in enumerate(told["candidates"]):
        (node,) = [node for node in nodes if node["candidate"] == number]
        assert node["reward"] == candidate["reward"]


def test_each_trace_tells_what_it_is_named_for(url: str) -> None:
    told = {name: ask(url, {**BEST, "trace": name})["decoding"] for name in ("tokens", "search", "both")}
    plain = ask(url, BEST)["decoding"]
    assert {name: {"trace", "tree"} & set(each) for name, each in told.items()} == {
        "tokens": {"trace"}, "search": {"tree"}, "both": {"trace", "tree"},
    }  # fmt: skip
    assert not {"trace", "tree"} & set(plain)
    assert told["both"]["tree"] == told["search"]["tree"]
    assert told["both"]["trace"] == told["tokens"]["trace"]
    assert told["search"]["candidates"] == plain["candidates"]


def test_a_stream_tells_it_at_the_end(url: str) -> None:
    traced = {**BEAMS, "trace": "both"}
    options = {"include_usage": True}
    *_, last, done = post(url, traced, stream=True, stream_options=options).text.strip().split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["decoding"]["tree"] == ask(url, traced)["decoding"]["tree"]


def test_each_prompt_has_its_own(url: str) -> None:
    answered = ask(url, {**BEST, "trace": "search"}, path=TEXT, prompt=["Hi", "Ho"])
    for told, choice in zip(answered["decoding"], answered["choices"], strict=True):
        nodes = told["tree"]["nodes"]
        (at,) = [index for index, node in enumerate(nodes) if node["choice"] == 0]
        assert texts(nodes)[at] == choice["text"]


def test_a_preference_that_a_guide_infers_leaves_one(url: str) -> None:
    told = ask(url, {"strategy": "best_of_n", "n": 3, "preference": {"infer": "balance"}, "trace": "search"})[
        "decoding"
    ]
    assert told["report"]["preference"]
    rewards = [each["reward"] for each in told["candidates"]]
    nodes = {node["candidate"]: node for node in told["tree"]["nodes"] if node["candidate"] is not None}
    assert [nodes[number]["reward"] for number in range(3)] == rewards


def test_a_guard_leaves_no_tree(url: str) -> None:
    for decoding in (BEST, {"strategy": "sample"}):
        told = ask(url, {**decoding, "trace": "search"}, "guarded")["decoding"]
        assert "tree" not in told
        assert told["report"]["withheld"] == 0
    assert "tree" in ask(url, {**BEST, "trace": "search"}, "open")["decoding"]
    for name in ("search", "both", "tokens"):
        refused = post(url, {**BEST, "trace": name}, "closed")
        assert refused.status_code == 403
        assert refused.json()["error"]["param"] == "decoding.trace"


def test_a_trace_that_there_is_not(url: str) -> None:
    refused = post(url, {**BEST, "trace": "serch"})
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == "decoding.trace"
    assert "did you mean 'search'" in error["message"]
    assert "'tokens', 'search', 'both'" in error["message"]


def test_the_client_has_it_typed(url: str) -> None:
    with TrimtabClient(url, api_key="free") as client:
        answer = client.chat("base", ASK, decoding={**BEAMS, "trace": "search"}, max_tokens=12, seed=1)
        plain = client.chat("base", ASK, decoding=BEAMS, max_tokens=12, seed=1)
    tree = answer.decoding.tree
    assert tree is not None
    assert tree.omitted == 0
    (node,) = [node for node in tree.nodes if node.choice == 0]
    assert node.fate == "chosen"
    assert node.reward == answer.decoding.reward()
    assert plain.decoding.tree is None


def offline(vocabulary: Vocabulary, *parts: tuple[int | None, bytes, Fate], stop: tuple[str, ...] = ()) -> list[str]:
    """Texts of a tree whose nodes have these parents and bytes."""
    ids = {vocabulary.token_bytes(id_): id_ for id_ in range(256)}
    nodes = [
        TreeNode(parent, tuple(ids[bytes([byte])] for byte in raw), None, None, fate) for parent, raw, fate in parts
    ]
    told = trace.tree(Tree(tuple(nodes)), TextStream(vocabulary, stop=stop), ())
    return [node["text"] for node in told["nodes"]]


def test_a_character_cut_between_two_nodes_is_the_second_ones(llm: LLM) -> None:
    smile = "🙂".encode()
    nodes: list[tuple[int | None, bytes, Fate]] = [
        (None, b"", "chosen"),
        (0, b"a" + smile[:2], "chosen"),
        (1, smile[2:3], "chosen"),
        (2, smile[3:] + b"!", "chosen"),
        (1, b"b", "pruned"),
        (1, "é".encode()[:1], "pruned"),
        (1, b"", "kept"),
        (0, smile[:3], "pruned"),
    ]
    assert offline(llm.vocabulary, *nodes) == ["", "a", "", "🙂!", "�b", "��", "�", "�"]


def test_what_begins_a_stop_string_is_held_for_what_follows(llm: LLM) -> None:
    nodes: list[tuple[int | None, bytes, Fate]] = [
        (None, b"", "chosen"),
        (0, b"aX", "chosen"),
        (1, b"Y", "chosen"),
        (1, b"b", "kept"),
        (1, b"", "kept"),
    ]
    assert offline(llm.vocabulary, *nodes, stop=("XY",)) == ["", "a", "", "Xb", "X"]


def test_a_large_tree_is_built_on_a_thread() -> None:
    nodes = tuple(TreeNode(None if index == 0 else 0, (index,), None, None, "pruned") for index in range(300))
    long = TreeNode(0, (1,) * 4000, None, None, "pruned")
    for tree in (Tree(nodes), Tree((nodes[0], long))):
        assert weight([Result((), (), Usage(), 1, "finished", tree=tree)]) >= 200
