"""The API as OpenAI's own client sees it, with strict validation of every response."""

import json
from typing import Literal

import pytest
from openai import BadRequestError, NotFoundError, OpenAI
from pydantic import BaseModel, Field

from trimtab.llm import LLM

ASK = [{"role": "user", "content": "Hi"}]


def test_chat(openai: OpenAI, llm: LLM) -> None:
    answer = openai.chat.completions.create(model="tiny", messages=ASK, max_tokens=8, seed=1)
    (choice,) = answer.choices
    (offline,) = llm.chat([ASK], _sampling(max_tokens=8, seed=1), progress=False)
    assert choice.message.content == offline.choices[0].text
    assert choice.message.role == "assistant"
    assert choice.finish_reason == offline.choices[0].finish_reason
    assert answer.id.startswith("chatcmpl-")
    assert answer.usage.prompt_tokens == len("Hi") + 3
    assert answer.usage.completion_tokens == len(offline.choices[0].token_ids)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0


def test_stream_equals_the_whole_answer(openai: OpenAI) -> None:
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 24, "seed": 3, "n": 3, "logprobs": True}
    whole = openai.chat.completions.create(**ask)
    chunks = list(openai.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    for choice in whole.choices:
        mine = [c.choices[0] for c in chunks if c.choices and c.choices[0].index == choice.index]
        assert mine[0].delta.role == "assistant"
        assert mine[0].delta.content == ""
        assert "".join(c.delta.content or "" for c in mine) == choice.message.content
        assert [c.finish_reason for c in mine if c.finish_reason] == [choice.finish_reason]
        assert mine[-1].finish_reason
        assert not mine[-1].delta.content
        tokens = [entry for c in mine if c.logprobs for entry in c.logprobs.content]
        assert [t.token for t in tokens] == [t.token for t in choice.logprobs.content]
    assert len({c.id for c in chunks}) == 1
    assert all(c.usage is None for c in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_stream_without_usage_ends_with_a_choice(openai: OpenAI) -> None:
    chunks = list(openai.chat.completions.create(model="tiny", messages=ASK, max_tokens=4, stream=True))
    assert chunks[-1].choices[0].finish_reason
    assert chunks[-1].usage is None
    assert chunks[-1].decoding["spec"]["strategy"] == "sample"


def test_best_of_n_over_the_wire(openai: OpenAI) -> None:
    decoding = {"strategy": "best_of_n", "n": 4, "reward": "brevity"}
    answer = openai.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=12, seed=1, extra_body={"decoding": decoding}
    )
    told = answer.decoding
    assert told["spec"] == {**decoding, "export": None}
    assert len(told["candidates"]) == 4
    best = max(told["candidates"], key=lambda candidate: candidate["reward"])
    (chosen,) = told["chosen"]
    assert told["candidates"][chosen]["reward"] == best["reward"]
    assert told["candidates"][chosen]["text"] == answer.choices[0].message.content
    assert sum(told["model_tokens"].values()) >= sum(c["tokens"] for c in told["candidates"]) - 4
    assert told["seed"] == 1
    assert told["stopped_by"] == "finished"


def test_search_streams_its_answer_at_the_end(openai: OpenAI) -> None:
    decoding = {"strategy": "best_of_n", "n": 4, "reward": "brevity"}
    ask = {
        "model": "tiny",
        "messages": ASK,
        "max_tokens": 12,
        "seed": 1,
        "extra_body": {"decoding": decoding},
    }
    whole = openai.chat.completions.create(**ask)
    chunks = list(openai.chat.completions.create(**ask, stream=True))
    text = "".join(c.choices[0].delta.content or "" for c in chunks)
    assert text == whole.choices[0].message.content
    assert chunks[-1].decoding["chosen"] == whole.decoding["chosen"]


def test_chat_logprobs_spell_the_text(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="tiny",
        messages=ASK,
        max_tokens=30,
        seed=5,
        logprobs=True,
        top_logprobs=3,
        stop=["no such text"],
        extra_body={"skip_special_tokens": False},
    )
    entries = answer.choices[0].logprobs.content
    spelled = bytes(byte for entry in entries for byte in entry.bytes)
    assert spelled.decode("utf-8", "replace") == answer.choices[0].message.content
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob >= entry.logprob - 1e-5


def test_completion_logprobs_align_with_the_text(openai: OpenAI) -> None:
    answer = openai.completions.create(model="tiny", prompt="ab", max_tokens=20, seed=2, logprobs=2, temperature=0)
    (choice,) = answer.choices
    told = choice.logprobs
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(told.text_offset)
    for token, offset in zip(told.tokens, told.text_offset, strict=True):
        if "\ufffd" not in token and not token.startswith("<|"):
            assert choice.text[offset : offset + len(token)] == token


def test_completions_take_four_kinds_of_prompt(openai: OpenAI) -> None:
    ask = {"model": "tiny", "max_tokens": 5, "temperature": 0}
    one = openai.completions.create(prompt="ab", **ask).choices[0].text
    ids = openai.post("/../tokenize", body={"prompt": "ab"}, cast_to=dict[str, object])["tokens"]
    assert openai.completions.create(prompt=ids, **ask).choices[0].text == one
    several = openai.completions.create(prompt=["cd", "ab"], n=2, **ask)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in several.choices[2:]] == [one, one]
    assert len(several.decoding) == 2
    assert openai.completions.create(prompt=[ids, ids], **ask).choices[1].text == one


def test_completion_stream_of_two_prompts_equals_the_whole(openai: OpenAI) -> None:
    # The client's type wants a finish_reason in every chunk; OpenAI's own servers send null, as we do.
    ask = {"model": "tiny", "prompt": ["ab", "cd"], "n": 2, "max_tokens": 9, "seed": 4, "echo": True}
    whole = openai.completions.create(**ask)
    texts = dict.fromkeys(range(4), "")
    with OpenAI(base_url=openai.base_url, api_key="none") as lenient:
        for chunk in lenient.completions.create(**ask, stream=True):
            texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert texts[0].startswith("ab")
    assert texts[3].startswith("cd")


def test_stop_string_ends_the_answer(openai: OpenAI) -> None:
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 30, "seed": 3}
    text = openai.chat.completions.create(**ask).choices[0].message.content
    stop = text[4:6]
    stopped = openai.chat.completions.create(**ask, stop=[stop, "never seen"]).choices[0]
    assert stopped.message.content == text[: text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.stop_reason == stop


def test_max_completion_tokens_wins(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=9, max_completion_tokens=3, extra_body={"ignore_eos": True}
    )
    assert answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_max_tokens_zero_is_an_empty_answer(openai: OpenAI, stream: bool) -> None:
    answer = openai.chat.completions.create(model="tiny", messages=ASK, max_tokens=0, stream=stream)
    if stream:
        chunks = list(answer)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""
        assert chunks[-1].choices[0].finish_reason == "length"
    else:
        assert answer.choices[0].message.content == ""
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage.completion_tokens == 0


def test_echo_with_max_tokens_zero_returns_the_prompt(openai: OpenAI) -> None:
    answer = openai.completions.create(model="tiny", prompt="abc", max_tokens=0, echo=True)
    assert answer.choices[0].text == "abc"


class Verdict(BaseModel):
    """What the client is to parse answers as."""

    kind: Literal["good", "bad"]
    marks: list[Literal[1, 2, 3]] = Field(max_length=3)


def test_an_answer_is_parsed_as_a_class(openai: OpenAI) -> None:
    ask = {"model": "tiny", "messages": ASK, "max_tokens": 200, "seed": 2, "n": 3, "response_format": Verdict}
    parsed = openai.chat.completions.parse(**ask)
    for choice in parsed.choices:
        assert choice.finish_reason == "stop"
        assert choice.message.parsed == Verdict.model_validate_json(choice.message.content)
    with openai.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion()
    assert [c.message.parsed for c in streamed.choices] == [c.message.parsed for c in parsed.choices]


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_is_a_json_object(openai: OpenAI, stream: bool) -> None:
    bias = {str(byte): 20.0 for byte in b'"}'}  # or the object may go on for ever
    answer = openai.chat.completions.create(
        model="tiny", messages=ASK, max_tokens=200, seed=2, response_format={"type": "json_object"}, logit_bias=bias,
        stream=stream,
    )  # fmt: skip
    if stream:
        text = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        assert answer.choices[0].finish_reason == "stop"
        text = answer.choices[0].message.content
    assert isinstance(json.loads(text), dict)


def test_a_search_keeps_to_the_schema(openai: OpenAI) -> None:
    answer = openai.chat.completions.parse(
        model="tiny", messages=ASK, max_tokens=200, seed=2, response_format=Verdict,
        extra_body={"decoding": {"strategy": "best_of_n", "n": 4, "reward": "brevity"}},
    )  # fmt: skip
    assert answer.choices[0].message.parsed is not None
    for candidate in answer.decoding["candidates"]:
        Verdict.model_validate_json(candidate["text"])


def test_a_schema_that_cannot_be_followed_is_refused(openai: OpenAI) -> None:
    schema = {"name": "x", "schema": {"type": "object", "properties": {"a": {"type": 3}}}}
    with pytest.raises(BadRequestError) as refused:
        openai.chat.completions.create(
            model="tiny", messages=ASK, response_format={"type": "json_schema", "json_schema": schema}
        )
    assert refused.value.param.startswith("response_format")


def test_every_field_of_the_interface_is_taken(openai: OpenAI) -> None:
    shared = {
        "temperature": 0.7, "top_p": 0.9, "n": 2, "stop": ["a b c", "d", "e", "f"], "max_tokens": 3, "seed": 5,
        "logit_bias": {"65": -1}, "presence_penalty": 0.1, "frequency_penalty": 0.1, "user": "me",
    }  # fmt: skip
    extra = {
        "top_k": 40, "min_p": 0.01, "repetition_penalty": 1.1, "stop_token_ids": [7], "ignore_eos": True,
        "include_stop_str_in_output": True, "min_tokens": 1, "skip_special_tokens": False, "return_token_ids": True,
        "cache_salt": "x",
        "priority": -1, "metadata": {"a": "b"},
    }  # fmt: skip
    chat = openai.chat.completions.create(
        model="tiny", messages=ASK, **shared, max_completion_tokens=2, logprobs=True, top_logprobs=2, store=False,
        tools=[], tool_choice="none", response_format={"type": "text"}, extra_body={
            **extra, "add_generation_prompt": True, "continue_final_message": False, "chat_template_kwargs": {},
        },
    )  # fmt: skip
    assert len(chat.choices) == 2
    assert chat.choices[0].message.refusal is chat.choices[0].logprobs.refusal is None
    assert chat.choices[0].message.tool_calls is None
    assert "stop_reason" in chat.choices[0].model_extra
    assert len(chat.choices[0].token_ids) == 2
    assert len(chat.prompt_token_ids) == chat.usage.prompt_tokens
    text = openai.completions.create(
        model="tiny", prompt="ab", **shared, logprobs=2, echo=False, best_of=1,
        extra_body={**extra, "add_special_tokens": False},
    )  # fmt: skip
    assert [len(choice.token_ids) for choice in text.choices] == [3, 3]


@pytest.mark.parametrize("priority", [2**40, 1.5, "high"])
def test_a_priority_is_a_number(openai: OpenAI, priority: object) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.chat.completions.create(model="tiny", messages=ASK, extra_body={"priority": priority})
    assert refused.value.param == "priority"


def test_models(openai: OpenAI) -> None:
    (card,) = openai.models.list().data
    assert card.id == "tiny"
    assert openai.models.retrieve("tiny").max_model_len == 512
    with pytest.raises(NotFoundError) as refused:
        openai.models.retrieve("gpt-4")
    assert refused.value.code == "model_not_found"


def test_answers_can_be_sent_back(openai: OpenAI) -> None:
    first = openai.chat.completions.create(model="tiny", messages=ASK, max_tokens=4)
    again = [*ASK, first.choices[0].message, {"role": "user", "content": [{"type": "text", "text": "more"}]}]
    assert openai.chat.completions.create(model="tiny", messages=again, max_tokens=4).choices


def test_errors_are_the_clients_exceptions(openai: OpenAI) -> None:
    with pytest.raises(BadRequestError) as refused:
        openai.chat.completions.create(model="tiny", messages=ASK, extra_body={"decoding": {"strategy": "best_of_m"}})
    assert refused.value.param == "decoding.strategy"
    assert "best_of_n" in refused.value.message
    with pytest.raises(BadRequestError) as refused:
        openai.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 600}])
    assert refused.value.code == "context_length_exceeded"


def _sampling(**fields: object) -> object:
    from trimtab.engine.sampling import SamplingParams

    return SamplingParams(**fields)
