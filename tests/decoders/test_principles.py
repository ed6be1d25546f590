"""Principles: who writes them, how they are read out of a text, and what is drafted and revised under them."""

import math
from typing import Any

import pytest
from scripted import ASKED, GREEDY, WORDS, Letters, Scripted, run, spelled, toy

from trimtab.decoders.floor import Floor
from trimtab.decoders.prompt.principles import ASK, REVISE, UNDER, listed
from trimtab.decoders.prompt.texts import Written
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.job import Job
from trimtab.engine.results import Result
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Message

TEXT = "Here they are:\n1. Be brief.\n2. Name a cause.\n3. No blame.\n"
PART = {"method": "principles", "guide": "writer", "rounds": 0}
ANSWERS = {REVISE: "a better answer", UNDER: "a first answer", "": "no principles"}


def under(*principles: str) -> tuple[Message, ...]:
    """The conversation with principles."""
    lines = [f"{number}. {text}" for number, text in enumerate(principles, start=1)]
    content = "\n".join(["Why?", "", UNDER, "<principles>", *lines, "</principles>"])
    return (*ASKED[:-1], Message(role="user", content=content))


ALL = under("Be brief.", "Name a cause.", "No blame.")


def revising(*drafts: str) -> tuple[Message, ...]:
    """The conversation that asks for the revision of the last of `drafts`."""
    return (*ALL, Message(role="assistant", content=drafts[-1]), Message(role="user", content=REVISE))


def told(result: Result) -> dict[str, Any]:
    (part,) = result.report["prompt"]
    return dict(part)


def writing(text: str = TEXT) -> Scripted:
    return Scripted({"": text})


def test_the_answer_is_made_under_what_the_guide_has_written() -> None:
    base, writer = Scripted(ANSWERS), writing()
    result = run(toy(base, writer=writer), PART)
    question = ASK.replace("{count}", "4").replace("{instruction}", "Why?")
    assert writer.prompts == [spelled((*ASKED[:-1], Message(role="user", content=question)))]
    assert base.prompts == [spelled(ALL)]
    assert result.choices[0].text == "a first answer"
    assert told(result) == {"principles": ["Be brief.", "Name a cause.", "No blame."], "drafts": []}


def test_a_draft_is_revised_in_each_round_and_the_last_revision_is_the_answer() -> None:
    base = Scripted(ANSWERS)
    result = run(toy(base, writer=writing()), {**PART, "rounds": 2})
    drafts = ["a first answer", "a better answer"]
    assert base.prompts == [spelled(ALL), spelled(revising(drafts[0])), spelled(revising(drafts[1]))]
    assert result.choices[0].text == "a better answer"
    assert told(result)["drafts"] == drafts


def test_the_base_writes_them_where_no_guide_is_named_and_revises_once() -> None:
    base = Scripted({"Write down 2 principles": TEXT, **ANSWERS})
    result = run(toy(base), {"method": "principles", "count": 2})
    assert told(result) == {"principles": ["Be brief.", "Name a cause."], "drafts": ["a first answer"]}
    assert result.choices[0].text == "a better answer"


def test_max_tokens_cuts_the_list_and_whole_principles_are_used() -> None:
    room = len("Here they are:\n1. Be brief.\n2. Name a c")
    result = run(toy(Scripted(ANSWERS), writer=writing()), {**PART, "max_tokens": room})
    assert told(result)["principles"] == ["Be brief."]


@pytest.mark.parametrize(
    ("text", "principles"),
    [
        ("1. One.\n2) Two.\n(3) Three.\n4: Four.", ["One.", "Two.", "Three.", "Four."]),
        ("- One.\n* Two.\n• Three.", ["One.", "Two.", "Three."]),
        ("Certainly!\n1. One.\n\n2. One.\n1. One.", ["One."]),
        ("Principles:\nBe kind.\n\nBe brief.", ["Be kind.", "Be brief."]),
        ("1. 10 words at most.\n2.\n3. a\tb", ["10 words at most.", "a b"]),
        ("", []),
        ("Here they are:", []),
    ],
)
def test_how_a_list_is_read(text: str, principles: list[str]) -> None:
    assert listed(Written(text)) == principles


@pytest.mark.parametrize(
    ("text", "because"), [("", "empty"), ("1.\n2.", "empty"), ("so many words...", "cut_off"), (" ", "empty")]
)
def test_without_principles_the_answer_is_made_without(text: str, because: str) -> None:
    base = Scripted(ANSWERS)
    result = run(toy(base, writer=writing(text)), {**PART, "rounds": 1})
    assert base.prompts == [spelled(ASKED)]
    assert result.choices[0].text == "no principles"
    assert told(result) == {"principles": [], "because": because}


def test_an_empty_draft_is_not_revised() -> None:
    base = Scripted({REVISE: "a better answer", UNDER: "", "": "no"})
    result = run(toy(base, writer=writing()), {**PART, "rounds": 2})
    assert base.prompts == [spelled(ALL)]
    assert told(result)["drafts"] == []
    assert told(result)["because"] == "empty_draft"


@pytest.mark.parametrize(("room", "because", "rounds"), [(-1, "too_long", 0), (60, "too_long", 0), (400, None, 1)])
def test_what_does_not_fit_is_left_out(room: int, because: str | None, rounds: int) -> None:
    """No room for the principles; room for these and not for the request to revise; room for all."""
    base = Scripted(ANSWERS)
    engine = toy(base, writer=writing())
    object.__setattr__(engine.base, "context_length", len(spelled(ALL)) + room)
    result = run(engine, {**PART, "rounds": 1})
    assert told(result).get("because") == because
    assert len(told(result).get("drafts", ())) == rounds
    assert bool(told(result)["principles"]) == (room > 0)
    assert result.choices[0].text == (
        "a better answer" if rounds else "a first answer" if room > 0 else "no principles"
    )


def test_what_was_written_opens_no_turn_and_closes_no_list() -> None:
    base = Scripted({})
    result = run(toy(base, writer=writing("1. a </principles> b<eos>")), PART)
    assert told(result)["principles"] == ["a </principles> b< eos>"]
    assert base.prompts == [spelled(under("a < /principles> b< eos>"))]


def test_without_a_question_nothing_is_written() -> None:
    messages = [Message(role="system", content="Be kind.")]
    writer = writing()
    result = run(toy(writer=writer), PART, messages=messages)
    assert writer.prompts == []
    assert told(result) == {"principles": [], "because": "no_instruction"}


def test_a_search_decodes_the_revision() -> None:
    base = Letters()
    sampling = SamplingParams(seed=3, max_tokens=10)
    result = run(
        toy(base, writer=writing()), {**PART, "rounds": 1}, sampling=sampling, strategy="best_of_n", n=3, reward="taste"
    )
    (draft,) = told(result)["drafts"]
    assert base.prompts == [spelled(ALL), spelled(revising(draft))]
    assert len(result.candidates) == 3
    assert draft not in [each.text for each in result.candidates]


def test_under_a_guard_no_text_of_the_part_is_told() -> None:
    floor = Floor.model_validate({"guard": {"reward": "taste", "at_least": 1.0, "refusal": "No."}})
    result = run(toy(Scripted(ANSWERS), writer=writing()), {**PART, "rounds": 1}, floor=floor)
    assert result.choices[0].text == "a better answer"
    assert "a first answer" not in str(result)
    assert "Be brief" not in str(result)


def stopped(ticks: int, monkeypatch: pytest.MonkeyPatch, **decoding: Any) -> Result:
    """The end of a request whose time is up after so many ticks."""
    engine = toy(Scripted(ANSWERS), writer=writing())
    over = {"at": math.inf}
    overspent = property(lambda job: "deadline_ms" if engine.stats.steps >= over["at"] else None)
    monkeypatch.setattr(Job, "overspent", overspent)
    decoding = {"prompt": [{**PART, "rounds": 1}], "budget": {"deadline_ms": 3_600_000}, **decoding}
    handle = engine.submit(WORDS.encode(spelled(ASKED)), GREEDY, decoding=decoding, messages=ASKED)
    for _ in range(ticks):
        engine.engine.tick()
    over["at"] = -1
    engine.finish()  # which looks for pages that are left
    return engine.result(handle)


@pytest.mark.parametrize("strategy", [{}, {"strategy": "best_of_n", "n": 2, "reward": "taste"}])
def test_when_time_is_up_the_draft_is_the_answer_as_far_as_it_goes(
    strategy: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [stopped(ticks, monkeypatch, **strategy).choices[0].text for ticks in range(0, 110, 3)]
    assert texts[0] == ""
    assert "a first answer" in texts
    assert all("a first answer".startswith(text) or "a better answer".startswith(text) for text in texts)
    assert all(text in ("a first answer", "a better answer") for text in texts[texts.index("a first answer") :]) or (
        not strategy
    ), "a search has the draft until it has something finished"


@pytest.mark.parametrize(
    ("parameters", "param"), [({"count": 0}, "count"), ({"rounds": 5}, "rounds"), ({"max_tokens": 0}, "max_tokens")]
)
def test_a_wrong_parameter_names_the_key(parameters: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        DecodingSpec.parse({"prompt": [{"method": "principles", **parameters}]})
    assert caught.value.param == f"decoding.prompt.0.{param}"
