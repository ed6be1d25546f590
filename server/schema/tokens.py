"""Requests and responses of POST /tokenize and /detokenize, in vLLM's form."""

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from trimtab.engine.errors import InvalidRequest
from trimtab.server.schema.base import Wire, exactly_one
from trimtab.server.schema.chat import MAX_MESSAGES, ChatMessage


class TokenizeRequest(Wire):
    """A text, or a conversation to which the chat template is applied first."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(default=None, max_length=MAX_MESSAGES)
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False

    model_config = ConfigDict(
        json_schema_extra=exactly_one({"prompt": {"type": "string"}}, {"messages": {"type": "array"}})
    )

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class TokenizeResponse(BaseModel):
    """Token ids and their number."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class DetokenizeRequest(Wire):
    """Token ids to be turned into text."""

    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0)]]

    def check_ids(self, size: int) -> None:
        """Raise InvalidRequest for an id that the vocabulary of `size` tokens does not have."""
        for position, token in enumerate(self.tokens):
            if token >= size:
                message = f"tokens[{position}] must be below {size}, the size of the vocabulary, not {token}"
                raise InvalidRequest(message, param=f"tokens[{position}]", code="invalid_value")


class DetokenizeResponse(BaseModel):
    """The text of the tokens."""

    prompt: str
