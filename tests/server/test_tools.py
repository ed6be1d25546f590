"""Function calls: how templates are told of functions, and how answers are taken apart, whole and in pieces."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from openai import BadRequestError, OpenAI
from toy import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from trimtab.engine.grammar import Grammars
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import Vocabulary
from trimtab.llm import LLM
from trimtab.server.schema.chat import ChatRequest
from trimtab.server.settings import ServerSettings
from trimtab.server.tools import HERMES, LLAMA, Call, Calling, Form, Piece, Splitter, form_of

NAMES = frozenset({"weather", "time"})
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "what it is like outside",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Bern", "Zürich"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
TIME = {"type": "function", "function": {"name": "time"}}
ASK = [{"role": "user", "content": "Hi"}]

TURNS = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}"
    '{% for call in message.tool_calls or [] %}OPEN{"name": "{{ call.function.name }}", '
    '"KEY": {{ call.function.arguments | tojson }}}CLOSE{% endfor %}'
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOOLS = "{% if tools %}<|system|>{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|end|>{% endif %}"
HERMES_TEMPLATE = TOOLS + TURNS.replace("OPEN", "<tool_call>\n").replace("CLOSE", "\n</tool_call>").replace(
    "KEY", "arguments"
)
LLAMA_TEMPLATE = TOOLS + TURNS.replace("OPEN", "").replace("CLOSE", "").replace("KEY", "parameters")


def pieces(form: Form, *texts: str, one: bool = False) -> list[Piece]:
    """What a splitter makes of an answer that comes in `texts`, with neighbouring texts joined."""
    splitter = Splitter(form, NAMES, one=one)
    found: list[Piece] = []
    for piece in [*(piece for text in texts for piece in splitter.push(text)), *splitter.flush()]:
        if isinstance(piece, str) and found and isinstance(found[-1], str):
            found[-1] += piece
        else:
            found.append(piece)
    assert splitter.calls == sum(isinstance(piece, Call) for piece in found)
    return found


def call(name: str = "time", arguments: str = "{}") -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello", ["Hello"]),
        ("", []),
        ("  \n", ["  \n"]),
        (call(), [Call("time", "{}")]),
        ("Let me see.\n" + call(), ["Let me see.", Call("time", "{}")]),
        (
            call() + "\n" + call("weather", '{"city": "Z\\u00fcrich"}'),
            [Call("time", "{}"), Call("weather", '{"city": "Zürich"}')],
        ),
        (call() + " and so\n", [Call("time", "{}"), "and so\n"]),
        (call("weather", '{"city": "</tool_call>"}'), [Call("weather", '{"city": "</tool_call>"}')]),
        (call().removesuffix("</tool_call>"), [Call("time", "{}")]),
        (call()[:-20], [call()[:-20]]),
        ("a <tool_cal", ["a <tool_cal"]),
        (call("launch"), [call("launch")]),
        (call(arguments="[]"), [call(arguments="[]")]),
        (call(arguments='{"a": NaN}'), [call(arguments='{"a": NaN}')]),
        (call(arguments='{"a": 1e999}'), [call(arguments='{"a": 1e999}')]),
        (call(arguments='{"a": "\\ud800"}'), [call(arguments='{"a": "\\ud800"}')]),
        (call(arguments="[" * 9999), [call(arguments="[" * 9999)]),
        ("<tool_call>no</tool_call>\n" + call(), ["<tool_call>no</tool_call>", Call("time", "{}")]),
        (
            '<tool_call>{"name": "time", "extra": 1}</tool_call>',
            ['<tool_call>{"name": "time", "extra": 1}</tool_call>'],
        ),
        ('{"name": "time", "arguments": {}}', ['{"name": "time", "arguments": {}}']),
    ],
)
def test_hermes(text: str, expected: list[Piece]) -> None:
    assert pieces(HERMES, text) == expected
    assert pieces(HERMES, *text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello {", ["Hello {"]),
        ("  ", ["  "]),
        ('{"name": "time", "parameters": {}}', [Call("time", "{}")]),
        ('\n{"name": "weather", "parameters": {"days": 3}}\n', [Call("weather", '{"days": 3}')]),
        ('{"name": "time"}; {"name": "time", "parameters": {"a": 1}}', [Call("time", "{}"), Call("time", '{"a": 1}')]),
        ('{"name": "time", "arguments": {}}', ['{"name": "time", "arguments": {}}']),
        ('{"name": "time", "parameters": {}} because', ['{"name": "time", "parameters": {}} because']),
        ('{"answer": 42}', ['{"answer": 42}']),
        ('{"name": "time", "par', ['{"name": "time", "par']),
    ],
)
def test_llama(text: str, expected: list[Piece]) -> None:
    assert pieces(LLAMA, text) == expected
    assert pieces(LLAMA, *text) == expected


def test_one_call_is_the_first() -> None:
    assert pieces(HERMES, "a" + call() + call("weather") + "b", one=True) == ["a", Call("time", "{}"), "b"]


PARTS = st.sampled_from(
    [
        "<tool_call>", "</tool_call>", "<tool", "_call>", "</", '{"name": "time", "arguments": {}}', "{", "}", '"',
        '{"name": "weather", "parameters": {"a": "', '"}}', " ", "\n", ";", "ok", "é", "\\", call(), call("weather"),
    ]
)  # fmt: skip


@given(st.lists(PARTS, max_size=12), st.data(), st.sampled_from([HERMES, LLAMA]), st.booleans())
def test_any_cut_gives_the_same(parts: list[str], data: st.DataObject, form: Form, one: bool) -> None:
    text = "".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert pieces(form, *chunks, one=one) == pieces(form, text, one=one)


@given(st.text(st.sampled_from("<>/tol_cal{} \n"), max_size=40))
def test_text_without_calls_comes_back_unchanged(text: str) -> None:
    assert "".join(piece for piece in pieces(HERMES, *text) if isinstance(piece, str)) == text


def test_text_is_held_back_no_longer_than_it_must() -> None:
    splitter = Splitter(HERMES, NAMES, one=False)
    assert splitter.push("so <") == ["so"]
    assert splitter.push("b> <tool_") == [" <b>"]
    assert splitter.push("call>") == []
    assert splitter.push(call().removeprefix("<tool_call>")) == [Call("time", "{}")]


@pytest.mark.parametrize(
    ("template", "form"),
    [
        (HERMES_TEMPLATE, HERMES),
        (LLAMA_TEMPLATE, LLAMA),
        (r'{{- "<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>" }}', HERMES),
        (r"""{{- 'Respond in the format {"name": function name, "parameters": dictionary of arguments}.' }}""", LLAMA),
        ("<tool_call><function=NAME><parameter=P>", None),
        ("[TOOL_CALLS]", None),
    ],
)
def test_the_form_is_the_one_that_the_template_teaches(template: str, form: Form | None) -> None:
    assert form_of(template) == form


def tools_vocabulary(template: str = HERMES_TEMPLATE) -> Vocabulary:
    """The marks of Hermes are special tokens here, which are no text unless they are asked for."""
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["<|end|>", "<tool_call>", "</tool_call>"], special_tokens=True)
    tokenizer.eos_token = "<|end|>"
    tokenizer.chat_template = template
    return Vocabulary(tokenizer)


def test_a_template_is_told_of_tools_and_of_earlier_calls() -> None:
    vocabulary = tools_vocabulary()
    arguments = {"city": "Bern"}
    made = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    ids = vocabulary.chat(
        [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "", "tool_calls": [made]},
            {"role": "tool", "content": "sun", "tool_call_id": "c1"},
        ],
        tools=[TIME],
    )
    assert vocabulary.decode(ids, skip_special_tokens=False) == (
        '<|system|>{"type": "function", "function": {"name": "time"}}<|end|><|user|>Hi<|end|><|assistant|><tool_call>\n'
        '{"name": "weather", "arguments": {"city": "Bern"}}\n</tool_call><|end|><|tool|>sun<|end|><|assistant|>'
    )


def test_whether_a_template_reads_tools() -> None:
    assert tools_vocabulary().tool_template == HERMES_TEMPLATE
    assert tools_vocabulary(TURNS).tool_template is None
    assert tools_vocabulary("{{ tools }}{% if %}").tool_template is None
    marked = "{% for m in messages %}{% generation %}{{ tools }}{% endgeneration %}{% break %}{% endfor %}"
    assert tools_vocabulary(marked).tool_template == marked
    assert tools_vocabulary("{% set tools = 1 %}{{ tools }}").tool_template is None
    assert tools_vocabulary().with_template(TURNS).tool_template is None


@pytest.fixture
def teller(start: Callable[..., Any], fake: Any) -> Iterator[tuple[Any, httpx2.Client]]:
    """A server whose engine says what the test tells it to, with a template that knows tools."""
    fake.vocabulary = tools_vocabulary()
    with httpx2.Client(base_url=start(fake).url, timeout=30) as client:
        yield fake, client


def say(teller: tuple[Any, httpx2.Client], wait_until: Callable[..., None], *texts: str, **changes: object) -> Any:
    """The response to a request with tools when the engine answers `texts`."""
    fake, client = teller
    body = {"model": "fake", "messages": ASK, "tools": [WEATHER, TIME], "n": len(texts), **changes}
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(client.post, "/v1/chat/completions", json=body)
        wait_until(lambda: fake.submitted)
        for choice, text in enumerate(texts):
            for at in range(0, len(text), 5):
                fake.say(text[at : at + 5], choice)
        fake.end(*texts)
        response = answer.result()
    assert response.status_code == 200, response.text
    return response


def test_calls_are_told_apart_from_text(teller: Any, wait_until: Any) -> None:
    choices = say(teller, wait_until, "Well.\n" + call("weather", '{"city": "Bern"}') + call(), "No.").json()["choices"]
    first, second = choices
    assert first["finish_reason"] == "tool_calls"
    assert first["message"]["content"] == "Well."
    assert [each["function"] for each in first["message"]["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": "Bern"}'},
        {"name": "time", "arguments": "{}"},
    ]
    assert len({each["id"] for each in first["message"]["tool_calls"]}) == 2
    assert second["finish_reason"] == "stop"
    assert second["message"] == {"role": "assistant", "content": "No.", "refusal": None}


def test_an_answer_of_calls_alone_has_no_content(teller: Any, wait_until: Any) -> None:
    (choice,) = say(teller, wait_until, call() + call("weather"), parallel_tool_calls=False).json()["choices"]
    assert choice["message"]["content"] is None
    assert [each["function"]["name"] for each in choice["message"]["tool_calls"]] == ["time"]


def test_a_stream_says_the_same(teller: Any, wait_until: Any) -> None:
    text = "Well.\n" + call("weather", '{"city": "Bern"}') + "\n" + call()
    response = say(teller, wait_until, text, "No.", stream=True, stream_options={"include_usage": True})
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n") if line.startswith("data: {")]
    mine = [c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["index"] == 0]
    assert "".join(c["delta"].get("content") or "" for c in mine) == "Well."
    deltas = [c["delta"]["tool_calls"][0] for c in mine if "tool_calls" in c["delta"]]
    assert [each["index"] for each in deltas] == [0, 0, 1, 1]
    assert [each["function"] for each in deltas] == [
        {"name": "weather", "arguments": ""},
        {"arguments": '{"city": "Bern"}'},
        {"name": "time", "arguments": ""},
        {"arguments": "{}"},
    ]
    assert all(("id" in each) == (number % 2 == 0) for number, each in enumerate(deltas))
    assert [c["finish_reason"] for c in mine if c["finish_reason"]] == ["tool_calls"]
    other = [c["choices"][0] for c in chunks if c["choices"] and c["choices"][0]["index"] == 1]
    assert "".join(c["delta"].get("content") or "" for c in other) == "No."
    assert other[-1]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 2


def test_what_the_engine_is_told(teller: Any, wait_until: Any) -> None:
    say(teller, wait_until, "x")
    fake, _ = teller
    request = fake.submitted[0][0].request
    marks = {fake.vocabulary.tokens[mark] for mark in ("<tool_call>", "</tool_call>")}
    assert request.shown_tokens == marks
    assert [tool["function"]["name"] for tool in request.tools] == ["weather", "time"]
    assert "strict" not in request.tools[0]["function"]
    assert request.tools[1]["function"]["parameters"] == {"type": "object", "properties": {}}


def test_no_tools_are_shown_to_a_model_that_may_not_call(teller: Any, wait_until: Any) -> None:
    (choice,) = say(teller, wait_until, call(), tool_choice="none").json()["choices"]
    assert teller[0].submitted[0][0].request.tools == ()
    assert choice["message"]["content"] == call()


FUNCTION = {"type": "function", "function": {"name": "time"}}
DEEP = '{"a":' + "[" * 600 + "]" * 600 + "}"


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"tool_choice": "required", "tools": []}, "tool_choice", "needs tools"),
        ({"tool_choice": {"type": "function", "function": {"name": "tim"}}}, "tool_choice", "time"),
        ({"tool_choice": "always"}, "tool_choice", ""),
        ({"tools": [TIME, TIME]}, "tools", "'time'"),
        ({"tools": [TIME] * 129}, "tools", "128"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].custom", "unknown"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "pattern"),
        (
            {"tools": [{"type": "function", "function": {"name": "a", "code": "x"}}]},
            "tools[0].function.code",
            "unknown",
        ),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{**FUNCTION, "id": "1"}]}]}, None, ""),
        (
            {"messages": [{"role": "assistant", "tool_calls": [{**FUNCTION, "id": "1"}]}]},
            "messages[0].tool_calls[0].function.arguments",
            "required",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [{**FUNCTION, "id": "1", "function": {"name": "time", "arguments": DEEP}}],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
            "JSON text of an object",
        ),
    ],
)
def test_refused(teller: Any, changes: dict[str, Any], param: str | None, words: str) -> None:
    body = {"model": "fake", "messages": ASK, "tools": [TIME], **changes}
    response = teller[1].post("/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert response.status_code == 400, response.text
    assert words in error["message"]
    assert param is None or error["param"].startswith(param), error


@pytest.mark.parametrize("template", [TURNS, TOOLS + "[TOOL_CALLS]" + TURNS.split("{% for call")[0] + "{% endfor %}"])
def test_a_model_that_knows_no_tools_is_a_400_that_says_so(start: Callable[..., Any], fake: Any, template: str) -> None:
    fake.vocabulary = tools_vocabulary(template)
    body = {"model": "fake", "messages": ASK, "tools": [TIME]}
    response = httpx2.post(start(fake).url + "/v1/chat/completions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "tools", "unsupported_parameter")
    assert "chat template" in error["message"]


@pytest.fixture(scope="module")
def tools_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model under a template that knows tools."""
    folder = tmp_path_factory.mktemp("models") / "tools"
    tokenizer = tools_vocabulary().tokenizer
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["hermes", "llama"])
def caller(
    request: pytest.FixtureRequest, tools_folder: Path, tmp_path_factory: pytest.TempPathFactory, start_shared: Any
) -> Iterator[OpenAI]:
    """OpenAI's strict client of a real engine under either form."""
    template = tmp_path_factory.mktemp("templates") / "template.jinja"
    template.write_text(HERMES_TEMPLATE if request.param == "hermes" else LLAMA_TEMPLATE)
    settings = EngineSettings(
        model=str(tools_folder), chat_template=str(template), dtype="float32", device="cpu", threads=1, pool_tokens=8192
    )
    with (
        LLM(settings=settings) as llm,
        OpenAI(
            base_url=start_shared(llm, ServerSettings()).url + "/v1",
            api_key="none",
            max_retries=0,
            timeout=30,
            _strict_response_validation=True,
        ) as client,
    ):
        yield client


FREE = [
    "hi",
    "",
    "a <tool",
    'so {"name": "time"}',
]
ONE = call("weather", '{"city": "Bern", "days": 3}')
TWO = ONE + "\n" + call()
BARE = '{"name": "weather", "parameters": {"city": "Bern", "days": 3}}'
STRICT = {"tools": [WEATHER, TIME]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "required": ["a"]}}}


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize(
    ("form", "changes", "taken", "refused"),
    [
        (HERMES, {"tool_choice": "required"}, [ONE, TWO], ["", "hi", "hi" + ONE, call("weather", "{}"), call("other")]),
        (HERMES, {"tool_choice": "required", "parallel_tool_calls": False}, [ONE], [TWO]),
        (HERMES, {}, [*FREE, ONE, "so " + TWO + " ok"], [call("weather", "{}"), "so " + call("other")]),
        (HERMES, {"parallel_tool_calls": False}, [*FREE, ONE, "so " + ONE + " ok"], [TWO]),
        (HERMES, {"response_format": FORMAT}, [ONE, TWO, '{"a": 1}'], ["hi", "{}", call("weather", "{}")]),
        (LLAMA, {"tool_choice": "required"}, [BARE, BARE + "; " + BARE], ["", "hi", "{}", BARE + "hi"]),
        (LLAMA, {}, [*FREE, BARE], ['{"name": "weather", "parameters": {}}', '{"a": 1}']),
        (LLAMA, {"response_format": FORMAT}, [BARE, '{"a": 1}'], ["hi", "{}"]),
    ],
)
def test_what_may_be_answered(
    form: Form, changes: dict[str, Any], taken: list[str], refused: list[str], special: bool
) -> None:
    body = ChatRequest.model_validate({"model": "x", "messages": ASK, **STRICT, **changes})
    template = HERMES_TEMPLATE if form is HERMES else LLAMA_TEMPLATE
    vocabulary = tools_vocabulary(template) if special else Vocabulary(byte_tokenizer()).with_template(template)
    calling = Calling.of(body, vocabulary)
    assert calling is not None
    grammar = calling.grammar(vocabulary)
    assert grammar is not None
    state = Grammars().start(grammar, vocabulary)
    for text in (*taken, *refused):
        ids = vocabulary.encode(text)
        fits = state.fitting(ids) == len(ids) and state.may_end(ids)
        assert fits == (text in taken), text


def test_calls_are_free_where_nothing_is_demanded() -> None:
    body = ChatRequest.model_validate({"model": "x", "messages": ASK, "tools": [TIME]})
    calling = Calling.of(body, tools_vocabulary())
    assert calling is not None
    assert calling.grammar(tools_vocabulary()) is None


def valid(made: Any) -> None:
    arguments = json.loads(made.function.arguments)
    assert made.id.startswith("call_")
    if made.function.name == "weather":
        assert arguments.keys() == {"city", "days"}
        assert arguments["city"] in ("Bern", "Zürich")
        assert 1 <= arguments["days"] <= 9
    else:
        assert (made.function.name, arguments) == ("time", {})


def ask(client: OpenAI, **changes: Any) -> dict[str, Any]:
    model = client.models.list().data[0].id
    return {
        "model": model, "messages": ASK, "tools": [WEATHER, TIME], "tool_choice": "required", "max_tokens": 400,
        "seed": 3, "parallel_tool_calls": False, **changes,
    }  # fmt: skip


def test_a_required_call_is_made_under_its_schema(caller: OpenAI) -> None:
    answer = caller.chat.completions.create(**ask(caller, n=6))
    made = [choice.message.tool_calls[0] for choice in answer.choices]
    assert {each.function.name for each in made} == {"weather", "time"}
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        assert len(choice.message.tool_calls) == 1
        valid(choice.message.tool_calls[0])


def test_several_calls(caller: OpenAI) -> None:
    answer = caller.chat.completions.create(**ask(caller, n=6, parallel_tool_calls=True))
    assert max(len(choice.message.tool_calls) for choice in answer.choices) > 1
    for choice in answer.choices:
        for made in choice.message.tool_calls:
            valid(made)


def test_a_named_function_is_called(caller: OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "weather"}}
    for seed in range(3):
        answer = caller.chat.completions.create(**ask(caller, tool_choice=choice, seed=seed))
        (made,) = answer.choices[0].message.tool_calls
        assert made.function.name == "weather"
        valid(made)


def test_a_streamed_call_is_the_same(caller: OpenAI) -> None:
    asked = ask(caller, n=3, logprobs=True, top_logprobs=1)
    whole = caller.chat.completions.create(**asked)
    with caller.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        streamed = stream.get_final_completion()
    assert streamed.usage.completion_tokens == whole.usage.completion_tokens
    for mine, theirs in zip(streamed.choices, whole.choices, strict=True):
        assert mine.finish_reason == "tool_calls"
        assert not mine.message.content
        assert [each.function.arguments for each in mine.message.tool_calls] == [
            each.function.arguments for each in theirs.message.tool_calls
        ]
        assert [each.function.name for each in mine.message.tool_calls] == [
            each.function.name for each in theirs.message.tool_calls
        ]
        assert [each.token for each in mine.logprobs.content] == [each.token for each in theirs.logprobs.content]


def test_a_search_over_calls(caller: OpenAI) -> None:
    decoding = {"strategy": "best_of_n", "n": 6, "reward": "brevity"}
    answer = caller.chat.completions.create(**ask(caller), extra_body={"decoding": decoding})
    valid(answer.choices[0].message.tool_calls[0])
    assert all('"name": ' in candidate["text"] for candidate in answer.decoding["candidates"]), "rewards read raw text"


def test_a_conversation_goes_on_after_a_call(caller: OpenAI) -> None:
    answer = caller.chat.completions.create(**ask(caller))
    (made,) = answer.choices[0].message.tool_calls
    messages = [*ASK, answer.choices[0].message, {"role": "tool", "tool_call_id": made.id, "content": "sun"}]
    again = caller.chat.completions.create(**ask(caller, messages=messages))
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens
    valid(again.choices[0].message.tool_calls[0])


def test_a_schema_that_cannot_be_followed_names_tools(caller: OpenAI) -> None:
    bad = {
        "type": "function",
        "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {"type": 3}}}},
    }
    with pytest.raises(BadRequestError) as refused:
        caller.chat.completions.create(**ask(caller, tools=[bad]))
    assert refused.value.param == "tools"
