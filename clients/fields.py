"""The fields of a request as typed keywords; one that does not exist is refused before anything is sent."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, TypedDict

from trimtab.clients.decoding import Auto, Strategy

Message = Mapping[str, Any]
"""`role` and `content`, as in {"role": "user", "content": "Hi"}"""
Decoding = Strategy | Auto | Mapping[str, Any]
"""how to decode: an object of `trimtab.clients.decoding`, or the same as it goes over the wire"""


class Fields(TypedDict, total=False):
    """What chat and text completions share; None is as good as left out."""

    decoding: Decoding | None
    n: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[str, float] | None
    seed: int | None
    max_tokens: int | None
    min_tokens: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    include_stop_str_in_output: bool | None
    ignore_eos: bool | None
    skip_special_tokens: bool | None
    return_token_ids: bool | None
    cache_salt: str | None
    priority: int | None
    user: str | None
    metadata: Mapping[str, str] | None
    request_id: str | None
    """goes into the header `x-request-id`; the server draws one if there is none"""


class ChatFields(Fields, total=False):
    """What a conversation may be asked with."""

    max_completion_tokens: int | None
    logprobs: bool | None
    top_logprobs: int | None
    response_format: Mapping[str, Any] | None
    tools: Sequence[Mapping[str, Any]] | None
    tool_choice: Literal["none", "auto", "required"] | Mapping[str, Any] | None
    parallel_tool_calls: bool | None
    add_generation_prompt: bool | None
    continue_final_message: bool | None
    chat_template_kwargs: Mapping[str, Any] | None
    safety_identifier: str | None
    prompt_cache_key: str | None


class CompletionFields(Fields, total=False):
    """What texts may be continued with."""

    logprobs: int | None
    echo: bool | None
    add_special_tokens: bool | None
    return_tokens_as_token_ids: bool | None
    random_stream: int | None


def body_of(fields: Mapping[str, Any], known: type[TypedDict]) -> tuple[dict[str, Any], str | None]:  # type: ignore[valid-type]
    """The fields as they are sent, and the request id; raises TypeError for one that does not exist."""
    names = known.__annotations__
    for name in fields:
        if name not in names:
            near = get_close_matches(name, names, 1)
            raise TypeError(f"unknown field {name!r}" + (f"; do you mean {near[0]!r}?" if near else ""))
    sent = {name: value for name, value in fields.items() if value is not None}
    request_id = sent.pop("request_id", None)
    if isinstance(decoding := sent.get("decoding"), Strategy | Auto):
        sent["decoding"] = decoding.to_dict()
    return sent, request_id
