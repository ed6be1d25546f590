"""Request of POST /v1/chat/completions."""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.grammar import Grammar
from trimtab.engine.sampling import MAX_LOGPROBS
from trimtab.engine.vocabulary import Message
from trimtab.server.nearest import hint
from trimtab.server.schema.base import Wire
from trimtab.server.schema.response_format import ResponseFormat
from trimtab.server.schema.sampling import SamplingFields
from trimtab.server.schema.tools import Tool, ToolCall, ToolChoice

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_TOOLS = 128
"""what one request may list: each entry takes time of the event loop before anything else is known of it"""

Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(Wire):
    """A part of a message; text is the only kind that the models served here read."""

    type: Literal["text"]
    text: str

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "image_url": (), "input_audio": (), "file": (), "refusal": (), "prompt_cache_breakpoint": (),
    }  # fmt: skip


def _branch(value: object) -> str:
    return "(null)" if value is None else "(text)" if isinstance(value, str) else "(parts)"


Content = Annotated[
    Annotated[str, Tag("(text)")]
    | Annotated[list[TextPart], Field(max_length=MAX_PARTS), Tag("(parts)")]
    | Annotated[None, Tag("(null)")],
    Discriminator(_branch),
]


_SAID: JsonDict = {
    "required": ["content"],
    "properties": {"content": {"type": ["string", "array"]}, "tool_calls": {"type": ["array", "null"], "maxItems": 0}},
}
_CALLED: JsonDict = {
    "required": ["tool_calls"],
    "properties": {"role": {"const": "assistant"}, "tool_calls": {"type": "array", "minItems": 1}},
}


class ChatMessage(Wire):
    """One turn of the conversation. Only an assistant that called functions may have said nothing (`content` null)."""

    role: Role
    content: Content = None
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_call_id: str | None = None

    model_config = ConfigDict(json_schema_extra={"anyOf": [_SAID, _CALLED]})

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "name": (),
        "function_call": (),
        "audio": (),
        "refusal": (),
        "annotations": ([],),
    }

    @model_validator(mode="after")
    def _calls_are_the_assistants(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            message = "only messages of the assistant have tool_calls"
            raise PydanticCustomError("tool_calls", "{message}", {"message": message, "param": "tool_calls"})
        if self.content is None and not self.tool_calls:
            message = "content: text or text parts are required; only an assistant that called tools may leave it out"
            kind = "content" if "content" in self.model_fields_set else "missing"
            raise PydanticCustomError(kind, "{message}", {"message": message, "param": "content"})
        return self

    @property
    def text(self) -> str:
        """The content; parts are joined by newlines, as vLLM does."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content or ())

    def to_message(self) -> Message:
        """As chat templates take it; they know `developer` under its former name."""
        message = Message(role="system" if self.role == "developer" else self.role, content=self.text)
        if self.tool_calls:
            message["tool_calls"] = [call.to_message() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message


class ChatRequest(SamplingFields):
    """A conversation to be continued."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    response_format: ResponseFormat | None = None
    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "moderation": (),
        "reasoning_effort": (),
        "verbosity": ("medium",),
        "web_search_options": (),
        "prompt_cache_options": (),
        "prompt_cache_retention": (),
        "service_tier": ("auto", "default"),
        "store": (False,),
    }

    @classmethod
    def explain(cls, key: str) -> str:
        """Why `key` is refused and what to use instead."""
        if key == "store":
            return "'store' must be false: nothing is stored"
        return super().explain(key)

    @property
    def token_limit(self) -> int | None:
        """max_completion_tokens, else max_tokens, else None."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def grammar(self) -> Grammar | None:
        """What `response_format` wants the text of an answer to be; raises InvalidRequest."""
        return None if self.response_format is None else self.response_format.grammar()

    @property
    def offered(self) -> tuple[Tool, ...]:
        """The functions that the model may call; under a named choice that one alone. Raises InvalidRequest."""
        tools, choice = tuple(self.tools or ()), self.tool_choice
        names = [tool.function.name for tool in tools]
        if doubled := next((name for name, times in Counter(names).items() if times > 1), None):
            raise InvalidRequest(f"tools has two functions {doubled!r}: name each once", param="tools")
        if not tools and choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice needs tools to choose from", param="tool_choice")
        if choice == "none":
            return ()
        if isinstance(choice, ToolChoice):
            if choice.function.name not in names:
                raise InvalidRequest(
                    f"tool_choice names {choice.function.name!r}; {hint(choice.function.name, names)}",
                    param="tool_choice",
                )
            return tuple(tool for tool in tools if tool.function.name == choice.function.name)
        return tools

    @property
    def must_call(self) -> bool:
        """Whether the answer has to be a call."""
        return self.tool_choice == "required" or isinstance(self.tool_choice, ToolChoice)

    @property
    def one_call(self) -> bool:
        """Whether there may be one call at most."""
        return self.parallel_tool_calls is False or isinstance(self.tool_choice, ToolChoice)

    @property
    def generation_prompt(self) -> bool:
        """Whether the template opens an answer; by default unless the last message is to be continued."""
        if self.add_generation_prompt is None:
            return not self.continue_final_message
        if self.add_generation_prompt and self.continue_final_message:
            message = "continue_final_message and add_generation_prompt exclude each other"
            raise InvalidRequest(message, param="continue_final_message")
        return self.add_generation_prompt

    def logprob_count(self) -> int | None:
        """Alternatives per token, None without logprobs; raises InvalidRequest."""
        if self.top_logprobs is None:
            return 0 if self.logprobs else None
        if not self.logprobs:
            raise InvalidRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        if not 0 <= self.top_logprobs <= MAX_LOGPROBS:
            message = f"top_logprobs must be between 0 and {MAX_LOGPROBS}, not {self.top_logprobs}"
            raise InvalidRequest(message, param="top_logprobs", code="invalid_value")
        return self.top_logprobs
