"""The tree of every search: valid, true to the answers, and without effect on them."""

import math
from typing import Any

import pytest
import torch
from scripted import ASKED, GREEDY, Scripted, spelled
from scripted import toy as scripted
from searches import EOS, MESSAGES, OTHER, PROMPT, SAMPLED, SEARCHES, TABLE, VOCAB, taste, toy
from toy import Toy

from trimtab.decoders.prompt.principles import REVISE, UNDER
from trimtab.engine.guides.preference import PreferenceHead
from trimtab.engine.job import Job
from trimtab.engine.results import Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import TextStream
from trimtab.server import trace

TREES = {**SEARCHES, "sample": {}}
every = pytest.mark.parametrize("name", TREES)


def submit(engine: Toy, name: str, *, n: int = 1, sampling: SamplingParams = SAMPLED, **shared: Any) -> object:
    decoding = {"strategy": name, "trace": "search", **TREES[name], **shared}
    return engine.submit(PROMPT, sampling, n=n, decoding=decoding, messages=MESSAGES)


def run(name: str, engine: Toy | None = None, **options: Any) -> Result:
    engine = engine or toy()
    handle = submit(engine, name, **options)
    engine.finish()
    return engine.result(handle)


def told(engine: Toy, result: Result, stop: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """The nodes as the server tells of them."""
    assert result.tree is not None
    nodes: list[dict[str, Any]] = trace.tree(result.tree, TextStream(engine.vocabulary, stop=stop), engine._eos)[
        "nodes"
    ]
    return nodes


def paths(nodes: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Of each node, the text and the number of tokens up to its end."""
    found: list[tuple[str, int]] = []
    for node in nodes:
        text, tokens = ("", 0) if node["parent"] is None else found[node["parent"]]
        found.append((text + node["text"], tokens + node["tokens"]))
    return found


def check(engine: Toy, result: Result, stop: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """What holds of every tree; returns its nodes."""
    nodes = told(engine, result, stop)
    found = paths(nodes)
    assert [node["parent"] for node in nodes].count(None) == 1
    assert nodes[0]["parent"] is None
    assert all(node["parent"] < index for index, node in enumerate(nodes) if index)
    choices = {node["choice"]: index for index, node in enumerate(nodes) if node["choice"] is not None}
    assert sorted(choices) == list(range(len(result.choices)))
    for number, index in choices.items():
        choice = result.choices[number]
        assert found[index] == (choice.text, len(choice.token_ids))
    candidates = {node["candidate"]: index for index, node in enumerate(nodes) if node["candidate"] is not None}
    assert sorted(candidates) == list(range(len(result.candidates)))
    for number, index in candidates.items():
        candidate, node = result.candidates[number], nodes[index]
        assert found[index] == (candidate.text, candidate.tokens)
        assert candidate.reward is None or node["reward"] == pytest.approx(candidate.reward, nan_ok=True)
        assert node["choice"] == candidate.choice
    inner = {node["parent"] for node in nodes if node["fate"] == "chosen"}
    chosen = [index for index, node in enumerate(nodes) if node["fate"] == "chosen"]
    assert {index for index in chosen if index not in inner} <= set(choices.values())
    assert set(choices.values()) <= set(chosen)
    for index, node in enumerate(nodes):
        if index and node["fate"] != "pruned":
            assert nodes[node["parent"]]["fate"] in ("chosen", node["fate"])
    return nodes


@every
@pytest.mark.parametrize("seed", range(2))
def test_every_search_has_a_tree(name: str, seed: int) -> None:
    engine = toy()
    result = run(name, engine, sampling=SAMPLED.model_copy(update={"seed": seed}))
    nodes = check(engine, result)
    assert result.tree is not None
    assert result.tree.omitted == 0
    assert (len(nodes) > 2) == (name not in ("sample", "tqstar"))


@every
def test_it_tells_of_what_was_written_and_given_up(name: str) -> None:
    """Every token that was drawn for an answer stands in the tree, unless it was drawn twice."""
    engine = toy()
    nodes = check(engine, run(name, engine))
    pruned = [node for node in nodes if node["fate"] == "pruned"]
    if name in ("beam_search", "cbs", "cd_blockwise", "dvts", "particle_filter", "ppo_mcts", "treebon", "ts_llm"):
        assert pruned, "a search that drops what it has begun"
        assert any(node["value"] is not None for node in pruned)
    if name in ("best_of_n", "sample", "self_consistency", "rps", "tqstar", "refine", "dts", "dts_star", "qalign"):
        assert not pruned, "a search all of whose answers are candidates"
    valued = {"beam_search", "cards", "cd_blockwise", "darwin", "dvts", "gsi", "ppo_mcts", "rsd", "treebon", "ts_llm"}
    if name in valued:
        assert any(node["value"] is not None and node["fate"] == "chosen" for node in nodes)


@every
def test_two_choices(name: str) -> None:
    engine = toy()
    shared = {"chains": 2} if name == "qalign" else {}
    check(engine, run(name, engine, n=2, **shared))


@every
def test_it_changes_nothing_and_is_always_the_same(name: str) -> None:
    traced, again, plain = run(name), run(name), run(name, trace=None)
    assert traced.tree == again.tree
    assert plain.tree is None
    assert run(name, trace="tokens").tree is None
    assert (traced.choices, traced.candidates, traced.report) == (plain.choices, plain.candidates, plain.report)


@every
def test_a_stop_string_ends_its_text(name: str) -> None:
    free = run(name).choices[0].text
    stop = (free[len(free) // 2],)
    engine = toy()
    result = run(name, engine, sampling=SAMPLED.model_copy(update={"stop": stop}))
    if name != "refine":  # another model may have written the stop string
        check(engine, result, stop)


@every
@pytest.mark.parametrize("ticks", [0, 3, 11])
def test_a_search_that_is_ended_early(name: str, ticks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = toy()
    handle = submit(engine, name, budget={"deadline_ms": 3_600_000})
    over = {"at": math.inf}
    monkeypatch.setattr(
        Job, "overspent", property(lambda job: "deadline_ms" if engine.stats.steps >= over["at"] else None)
    )
    for _ in range(ticks):
        if not engine.engine.idle:
            engine.engine.tick()
    over["at"] = -1
    engine.finish()
    check(engine, engine.result(handle))


@pytest.mark.parametrize(
    "name",
    [
        "beam_search", "best_of_n", "cbs", "deal", "dts", "dts_star", "dvts", "gsi", "particle_filter", "ppo_mcts",
        "speculative_rejection", "tqstar", "treebon", "ts_llm",
    ],
)  # fmt: skip
def test_a_preemption_changes_nothing(name: str) -> None:
    engine = Toy(TABLE, rewards={"taste": taste}, eos=EOS, pages=24)
    engine.add_lm("other", OTHER)
    handles = [submit(engine, name) for _ in range(3)]
    engine.finish()
    assert engine.stats.preemptions
    assert [engine.result(handle).tree for handle in handles] == [run(name).tree] * 3


@pytest.mark.parametrize("early", [False, True])
def test_texts_for_the_prompt_are_no_part_of_the_tree(early: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """But the draft is the answer if the time is up before there is another."""
    base = Scripted({"Write down 2": "1. Be brief.\n2. Be kind.", REVISE: "a better answer", UNDER: "a first answer"})
    engine = scripted(base)
    part = {"method": "principles", "count": 2}
    decoding = {"strategy": "best_of_n", "n": 2, "reward": "taste", "prompt": [part], "trace": "search"}
    budget = {"budget": {"deadline_ms": 3_600_000}}
    prompt = engine.vocabulary.encode(spelled(ASKED))
    handle = engine.submit(prompt, GREEDY, decoding={**decoding, **budget}, messages=ASKED)
    over = {"at": math.inf}
    monkeypatch.setattr(
        Job, "overspent", property(lambda job: "deadline_ms" if engine.stats.steps >= over["at"] else None)
    )
    while not engine.engine.idle:
        engine.engine.tick()
        (job,) = engine.engine._jobs.values() or (None,)
        drafted = job is not None and any("first" in each.text.text for each in job.prompt.family)
        if early and drafted:
            over["at"] = -1
    result = engine.result(handle)
    nodes = check(engine, result)
    (part,) = result.report["prompt"]
    texts = "".join(node["text"] for node in nodes)
    if not early:
        assert part["drafts"] == ["a first answer"]
        assert texts == "a better answer"
    else:
        assert part["because"] == "interrupted"
        assert "a first" in texts
        assert "better" not in texts
    assert "kind" not in texts


def test_a_reward_that_fails_leaves_a_tree() -> None:
    def moody(text: str) -> float:
        if sum(map(ord, text)) % 3 == 0:
            raise ZeroDivisionError
        return taste(text)

    engine = toy(moody, EngineSettings(max_rows=4096, guides={}, reward_errors="lose"))
    nodes = check(engine, run("best_of_n", engine, n=1))
    assert any(node["reward"] is not None and math.isnan(node["reward"]) for node in nodes)


def test_a_preference_that_the_prompt_tells_leaves_a_tree() -> None:
    """The request begins anew when the weights are known."""
    engine = toy()
    engine.add_preference("balance", PreferenceHead(("taste", "short"), torch.zeros(2, VOCAB), torch.zeros(2)))
    weighed = {"sum": ["taste", "short"], "weights": "balance"}
    check(engine, run("best_of_n", engine, reward=weighed))
