"""Request of POST /v1/chat/completions."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.vocabulary import Message
from trimtab.server.schema.base import Wire
from trimtab.server.schema.sampling import SamplingFields

Role = Literal["system", "developer", "user", "assistant", "tool"]


class TextPart(Wire):
    """A part of a message; text is the only kind that the models served here read."""

    type: Literal["text"]
    text: str

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "image_url": (), "input_audio": (), "file": (), "refusal": (), "prompt_cache_breakpoint": (),
    }  # fmt: skip


def _branch(value: object) -> str:
    return "(text)" if isinstance(value, str) else "(parts)"


Content = Annotated[Annotated[str, Tag("(text)")] | Annotated[list[TextPart], Tag("(parts)")], Discriminator(_branch)]


class ChatMessage(Wire):
    """One turn of the conversation."""

    role: Role
    content: Content
    tool_call_id: str | None = None

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "name": (),
        "tool_calls": ([],),
        "function_call": (),
        "audio": (),
        "refusal": (),
        "annotations": ([],),
    }

    @property
    def text(self) -> str:
        """The content; parts are joined by newlines, as vLLM does."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content)

    def to_message(self) -> Message:
        """As chat templates take it; they know `developer` under its former name."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.text}


class ChatRequest(SamplingFields):
    """A conversation to be continued."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "response_format": ({"type": "text"},),
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
        "priority": (0,),
    }

    @classmethod
    def explain(cls, key: str) -> str:
        """Why `key` is refused and what to use instead."""
        if key == "response_format":
            return "'response_format' of another type than 'text' is not supported; leave it out"
        if key == "store":
            return "'store' must be false: nothing is stored"
        return super().explain(key)

    @property
    def token_limit(self) -> int | None:
        """max_completion_tokens, else max_tokens, else None."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

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
        if not 0 <= self.top_logprobs <= 20:
            message = f"top_logprobs must be between 0 and 20, not {self.top_logprobs}"
            raise InvalidRequest(message, param="top_logprobs", code="invalid_value")
        return self.top_logprobs
