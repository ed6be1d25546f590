"""Parts that rewrite, write principles, quote communities, cite norms or state wishes, on the real demo model."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.decoders.library import Library, Norm
from trimtab.engine.results import Result

pytestmark = [pytest.mark.demo, pytest.mark.timeout(600)]

GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
ASKED = [{"role": "user", "content": "tell me smth about the sea"}]
COMMUNITIES = {
    "fishers": {"system": "You speak for people who fish for a living."},
    "swimmers": {"system": "You speak for people who swim in the sea for fun."},
}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    library = Library()
    library.norms.create(Norm(id="sea", text="When the sea comes up, say that it needs our care.", tags=("nature",)))
    library.norms.create(Norm(id="bread", text="When bread comes up, say that it smells good."))
    settings = EngineSettings(dtype="float32", pool_tokens=8192, threads=os.cpu_count())
    with LLM("demo", settings=settings, library=library) as llm:
        yield llm
    library.close()


def ask(llm: LLM, part: dict[str, Any], **decoding: Any) -> tuple[Result, dict[str, Any]]:
    """The answer, and what the part tells."""
    result = llm.chat([ASKED], GREEDY, decoding={"prompt": [part], **decoding}, progress=False)[0]
    (told,) = result.report["prompt"]
    assert result.choices[0].text.strip()
    assert result.stopped_by == "finished"
    return result, told


def test_rewrite(llm: LLM) -> None:
    result, told = ask(llm, {"method": "rewrite", "max_tokens": 32})
    assert (told["rewritten"] is None) == ("because" in told)
    asked = told["rewritten"] or ASKED[0]["content"]
    plain = llm.chat([[{"role": "user", "content": asked}]], GREEDY, progress=False)[0]
    assert result.choices[0].text == plain.choices[0].text


def test_principles(llm: LLM) -> None:
    result, told = ask(llm, {"method": "principles", "count": 2, "max_tokens": 40})
    if told["principles"]:
        assert len(told["principles"]) <= 2
        assert all(draft.strip() for draft in told["drafts"])
    else:
        plain = llm.chat([ASKED], GREEDY, progress=False)[0]
        assert result.choices[0].text == plain.choices[0].text
        assert told["because"] in ("cut_off", "empty")


@pytest.mark.parametrize("mode", ["overton", "steerable", "distributional"])
def test_pluralism(llm: LLM, mode: str) -> None:
    options: dict[str, Any] = {"mode": mode, "communities": COMMUNITIES}
    if mode == "steerable":
        options["perspective"] = "Somebody who lives from what the nets bring home."
    if mode != "distributional":
        options["max_tokens"] = 16
    result, told = ask(llm, {"method": "pluralism", **options})
    if mode == "overton":
        assert set(told["comments"]) == set(COMMUNITIES)
    elif mode == "steerable":
        assert told["chosen"] in COMMUNITIES
        assert sum(told["probabilities"].values()) == pytest.approx(1.0)
    else:
        assert told["shares"] == {"fishers": 0.5, "swimmers": 0.5}
        assert result.choices[0].steering is not None


def test_norms(llm: LLM) -> None:
    result, told = ask(llm, {"method": "norms", "k": 1})
    assert [each["id"] for each in told["norms"]] == ["sea"]
    plain = llm.chat([ASKED], GREEDY, progress=False)[0]
    assert result.choices[0].text != plain.choices[0].text


def test_persona(llm: LLM) -> None:
    result, told = ask(llm, {"method": "persona", "attributes": {"humour": 1.0}})
    assert told["text"] == "Give an answer that is extremely funny."
    plain = llm.chat([ASKED], GREEDY, progress=False)[0]
    assert result.choices[0].text != plain.choices[0].text
