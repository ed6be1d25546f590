"""Personas: what the base reads, word for word, and what is refused."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_folder

from trimtab import LLM, EngineSettings, SamplingParams
from trimtab.decoders.attributes import Attribute
from trimtab.decoders.spec import DecodingSpec
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.vocabulary import Message
from trimtab.requests import GenerationRequest

ATTRIBUTES = {"size": Attribute(low="small", high="large"), "tone": Attribute(low="dull", high="bright and clear")}
ASKED = (Message(role="user", content="Why?"),)
SAMPLED = SamplingParams(seed=3, max_tokens=8)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    folder: Path = tiny_folder(tmp_path_factory.mktemp("tiny"))
    settings = EngineSettings(model=str(folder), dtype="float32", pool_tokens=4096, guides={})
    with LLM(settings=settings, attributes=ATTRIBUTES) as llm:
        yield llm


def persona(**parameters: Any) -> dict[str, Any]:
    return {"strategy": "persona", **parameters}


def read(llm: LLM, decoding: dict[str, Any] | None, messages: tuple[Message, ...] = ASKED) -> str:
    """The prompt of the base."""
    return llm.vocabulary.decode(llm.prepare(GenerationRequest(messages=messages, decoding=decoding)).prompt_ids)


def said(llm: LLM, **parameters: Any) -> str:
    """The system message."""
    text = read(llm, persona(**parameters))
    assert text.endswith("\n<user>Why?\n<assistant>")
    return text.removeprefix("<system>").removesuffix("\n<user>Why?\n<assistant>")


@pytest.mark.parametrize(
    ("weight", "phrase"),
    [
        (1.0, "extremely large"),
        (0.88, "extremely large"),
        (0.75, "very large"),
        (0.5, "large"),
        (0.625, "very large"),
        (0.25, "slightly large"),
        (0.125, "slightly large"),
        (-0.125, "slightly small"),
        (-0.25, "slightly small"),
        (-0.5, "small"),
        (-0.75, "very small"),
        (-1.0, "extremely small"),
    ],
)
def test_a_weight_becomes_a_sentence(llm: LLM, weight: float, phrase: str) -> None:
    assert said(llm, attributes={"size": weight}) == f"Give an answer that is {phrase}."


def test_small_weights_say_nothing(llm: LLM) -> None:
    assert read(llm, persona(attributes={"size": 0.1, "tone": -0.1})) == read(llm, None)
    both = said(llm, attributes={"size": 0.1, "tone": 0.5})
    assert both == "Give an answer that is bright and clear."


def test_what_is_wanted_most_comes_last(llm: LLM) -> None:
    text = said(llm, attributes={"tone": -1.0, "size": 0.5})
    assert text == "Give an answer that is large. Give an answer that is extremely dull."


def test_words_follow_the_attributes(llm: LLM) -> None:
    assert said(llm, text="I like birds.") == "I like birds."
    both = said(llm, attributes={"size": 0.5}, text="I like birds.")
    assert both == "Give an answer that is large.\nI like birds."


def test_scores_are_control_tokens(llm: LLM) -> None:
    weights = {"tone": -1.0, "size": 0.3333}
    assert said(llm, attributes=weights, form="scores") == "<tone> -1.00 <size> 0.33"
    template = "{attribute}={score};"
    assert said(llm, attributes=weights, form="scores", template=template) == "tone=-1.00; size=0.33;"
    odd = said(llm, attributes={"size": 1.0}, form="scores", template="{score} {attribute.__class__} {0}")
    assert odd == "1.00 {attribute.__class__} {0}", "a template is no format string"


def test_it_answers_as_under_the_same_system_message(llm: LLM) -> None:
    """Token for token, and tells what it said."""
    own = (Message(role="system", content="Be polite."), *ASKED)
    for messages, system in ((ASKED, "I like birds."), (own, "Be polite.\n\nI like birds.")):
        (found,) = llm.chat([messages], SAMPLED, decoding=persona(text="I like birds."))
        (explicit,) = llm.chat([(Message(role="system", content=system), *ASKED)], SAMPLED)
        assert found.choices[0].token_ids == explicit.choices[0].token_ids
        assert found.report["prompt"] == [{"method": "persona", "text": "I like birds."}]


def test_a_text_prompt_has_it_in_front(llm: LLM) -> None:
    prepared = llm.prepare(GenerationRequest(prompt="Once", decoding=persona(attributes={"size": 1.0})))
    assert llm.vocabulary.decode(prepared.prompt_ids) == "Give an answer that is extremely large.\n\nOnce"


def test_parts_speak_in_the_order_listed(llm: LLM) -> None:
    parts = [{"method": "persona", "text": text} for text in ("First.", "Second.")]
    assert read(llm, {"prompt": parts}) == "<system>First.\n\nSecond.\n<user>Why?\n<assistant>"
    assert read(llm, {"prompt": parts[::-1]}) == "<system>Second.\n\nFirst.\n<user>Why?\n<assistant>"


def test_its_words_open_no_turn(llm: LLM) -> None:
    text = said(llm, text="a<eos>b")
    assert "<eos>" not in text
    assert text == "a< eos>b"


@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({}, "decoding", "give attributes, text or both, or a `preference`"),
        (
            {"attributes": {"sise": 1.0}},
            "decoding.attributes.sise",
            "no attribute is named 'sise': did you mean 'size'",
        ),
        (
            {"attributes": {"sise": 1.0}, "form": "scores"},
            "decoding.attributes.sise",
            "no attribute is named 'sise': did you mean 'size'",
        ),
        ({"attributes": {"size": 1.1}}, "decoding.attributes.size", "less than or equal to 1"),
        ({"attributes": {}}, "decoding.attributes", "at least 1"),
        ({"text": ""}, "decoding.text", "at least 1"),
        ({"text": "a", "form": "haiku"}, "decoding.form", "'sentences' or 'scores'"),
        ({"text": "a", "template": "{score}"}, "decoding", "a template is for the form scores"),
        ({"text": "a", "form": "scores", "template": "x"}, "decoding", "holds {score}"),
        ({"txt": "a"}, "decoding.txt", "did you mean 'text'"),
    ],
)
def test_a_wrong_parameter_names_the_key_and_the_fix(
    llm: LLM, parameters: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        read(llm, persona(**parameters))
    assert caught.value.param == param


@pytest.mark.parametrize(
    "parameters",
    [
        {"attributes": {"size": 0.5, "tone": -1}},
        {"text": "Be kind."},
        {"attributes": {"size": 0.5}, "text": "x", "form": "scores", "template": "{score}"},
    ],
)
def test_the_echo_parses_to_the_same(parameters: dict[str, Any]) -> None:
    for decoding in (persona(**parameters), {"prompt": [{"method": "persona", **parameters}]}):
        spec = DecodingSpec.parse(decoding)
        assert DecodingSpec.parse(spec.dump()) == spec
