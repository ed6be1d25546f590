"""What is put around a conversation: who reads it, in which form, and who reads the words of the client alone."""

from collections.abc import Iterator
from typing import Any

import pytest
from steered import GREEDY, chat, furnish, guides, ids, load, user
from toy import byte_tokenizer

from trimtab import LLM
from trimtab.decoders.floor import Floor
from trimtab.engine.errors import InvalidRequest
from trimtab.engine.program import Conversation
from trimtab.engine.rewards import Pair
from trimtab.requests import GenerationRequest, PreparedRequest

PERSONA = {"method": "persona", "text": "Short, please."}
ENCODE = byte_tokenizer().encode


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    place = furnish(tmp_path_factory.mktemp("framing"))
    with load(place / "base", guides(place)) as llm:
        yield llm


def prepared(llm: LLM, decoding: dict[str, Any], **request: Any) -> PreparedRequest:
    given = request or {"messages": tuple(user())}
    return llm.prepare(GenerationRequest(decoding={"prompt": [PERSONA], **decoding}, **given))


def lane(prepared: PreparedRequest) -> list[int]:
    (only,) = prepared.plan.lanes
    return list(only.prompt)


def test_the_base_and_those_that_write_read_the_framing_and_those_that_score_do_not(llm: LLM) -> None:
    framed = ENCODE("<system>Short, please.\n<user>Hi\n<assistant>")
    for decoding in ({}, {"strategy": "genarm", "arm": "tune"}, {"strategy": "args", "reward": "judge"}):
        assert list(prepared(llm, decoding).prompt_ids) == framed
    assert lane(prepared(llm, {"strategy": "genarm", "arm": "tune"})) == framed
    assert lane(prepared(llm, {"strategy": "args", "reward": "judge"})) == ENCODE("<user>Hi\n<assistant>")
    assert lane(prepared(llm, {"strategy": "args", "reward": "taste"})) == ENCODE("[user] Hi;[reply] ")


def test_the_clients_system_message_comes_first(llm: LLM) -> None:
    messages = tuple(user(system="Be kind."))
    expected = ENCODE("<system>Be kind.\n\nShort, please.\n<user>Hi\n<assistant>")
    assert list(prepared(llm, {}, messages=messages).prompt_ids) == expected
    two = {"prompt": [PERSONA, {"method": "persona", "text": "And warm."}]}
    expected = ENCODE("<system>Be kind.\n\nShort, please.\n\nAnd warm.\n<user>Hi\n<assistant>")
    assert list(prepared(llm, two, messages=messages).prompt_ids) == expected


def test_guidance_drops_the_framing_with_the_system_message(llm: LLM) -> None:
    assert lane(prepared(llm, {"strategy": "cfg"})) == ENCODE("<user>Hi\n<assistant>")


@pytest.mark.parametrize("prompt", ["Once", ENCODE("Once")])
def test_a_text_prompt_has_it_in_front(llm: LLM, prompt: object) -> None:
    framed = ENCODE("Short, please.\n\nOnce")
    assert list(prepared(llm, {}, prompt=prompt).prompt_ids) == framed
    assert lane(prepared(llm, {"strategy": "genarm", "arm": "arm"}, prompt=prompt)) == framed
    assert lane(prepared(llm, {"strategy": "args", "reward": "judge"}, prompt=prompt)) == ENCODE("Once")


def heard(llm: LLM, text: str, decoding: dict[str, Any], **request: Any) -> None:
    """Every candidate of a search is judged as an answer to `text`."""
    sampling = GREEDY.model_copy(update={"temperature": 1.0})
    given = {"strategy": "best_of_n", "n": 3, "reward": "taste", **decoding}
    (result,) = llm.generate([request["prompt"]], sampling, decoding=given, progress=False)
    for candidate in result.candidates:
        (score,) = llm.score("taste", [Pair(tuple(user(text)), candidate.text)])
        assert candidate.reward == pytest.approx(score, abs=1e-4)


@pytest.mark.parametrize("prompt", ["Once", ENCODE("Once")])
def test_rewards_hear_a_text_as_it_was_sent(llm: LLM, prompt: object) -> None:
    heard(llm, "Once", {"prompt": [PERSONA]}, prompt=prompt)
    heard(llm, "Once", {"prompt": [PERSONA, {"method": "urial", "examples": 0, "system": ""}]}, prompt=prompt)


def test_ids_are_read_as_they_are_without_parts(llm: LLM) -> None:
    ids = [65, 256, 66]  # the end of a text within: it would not come back from one
    assert list(llm.prepare(GenerationRequest(prompt=ids)).prompt_ids) == ids


LAW = Floor.model_validate({"prompt": [{"method": "persona", "text": "Obey."}]})


@pytest.mark.parametrize("helper", [True, False])
@pytest.mark.parametrize("model", ["base", "arm"])
def test_everything_that_is_written_is_under_the_operators_parts(llm: LLM, model: str, helper: bool) -> None:
    request = GenerationRequest(messages=tuple(user()), decoding={"prompt": [PERSONA]}, floor=LAW, trusted=True)
    opening = llm.prepare(request).compiler.open(9, Conversation(user("Else"), model, helper))
    read = byte_tokenizer().decode(list(opening.prompt))
    assert "Obey." in read
    assert ("Short, please." in read) is not helper


def test_what_the_operator_says_is_not_told(llm: LLM) -> None:
    request = GenerationRequest(
        messages=tuple(user()), decoding={"prompt": [PERSONA]}, floor=LAW, trusted=True, sampling=GREEDY
    )
    program = llm.prepare(request).compiler.program(9)
    assert program.told == ({"method": "persona"}, {"method": "persona", "text": "Short, please."})


@pytest.mark.parametrize("decoding", [{"prompt": [PERSONA]}, {"strategy": "rewrite"}])
def test_log_probabilities_of_another_prompt_are_refused(llm: LLM, decoding: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="leave them out, or the prompt parts") as caught:
        llm.prepare(GenerationRequest(messages=tuple(user()), decoding=decoding, prompt_logprobs=0))
    assert caught.value.param == "prompt_logprobs"


def test_a_search_judges_by_the_clients_words_and_tells_of_the_parts(llm: LLM) -> None:
    decoding = {"strategy": "best_of_n", "n": 4, "reward": "taste", "prompt": [PERSONA]}
    result = chat(llm, decoding, GREEDY.model_copy(update={"temperature": 1.0}))
    assert result.report["prompt"] == [{"method": "persona", "text": "Short, please."}]
    for candidate in result.candidates:
        (score,) = llm.score("taste", [Pair(tuple(user()), candidate.text)])
        assert candidate.reward == pytest.approx(score, abs=1e-4)


def test_a_part_alone_is_plain_sampling_in_its_frame(llm: LLM) -> None:
    alone = chat(llm, {"strategy": "persona", "text": "Short, please."})
    beside = chat(llm, {"prompt": [PERSONA]})
    said = chat(llm, None, messages=user(system="Short, please."))
    assert ids(alone) == ids(beside) == ids(said)
    assert ids(alone) != ids(chat(llm, None))
