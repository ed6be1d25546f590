"""Request of POST /v1/completions."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import field_validator

from trimtab.engine.errors import InvalidRequest
from trimtab.server.schema.sampling import SamplingFields

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for text completions"""


class CompletionRequest(SamplingFields):
    """One or several texts to be continued, as strings or as token ids."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "best_of": (1,), "suffix": (), "priority": (0,),
    }  # fmt: skip

    @classmethod
    def explain(cls, key: str) -> str:
        """Why `key` is refused and what to use instead."""
        if key == "best_of":
            return "'best_of' is not supported; use the decoding strategy best_of_n, which takes a reward"
        return super().explain(key)

    @field_validator("prompt", mode="wrap")
    @classmethod
    def _one_of_four(cls, value: Any, handler: Any) -> Any:
        if isinstance(value, str):
            return value
        if isinstance(value, list) and value:
            if all(isinstance(item, str) for item in value) or _token_ids(value):
                return value
            if all(isinstance(item, list) and item and _token_ids(item) for item in value):
                return value
        raise ValueError("prompt must be a string, token ids, or a list of one of these, and not empty")

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)

    @property
    def token_limit(self) -> int:
        """max_tokens, or OpenAI's 16."""
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens

    def check_echo(self) -> None:
        """Raise InvalidRequest for log-probabilities of the prompt, which the engine does not compute."""
        if self.echo and self.logprobs is not None:
            message = "echo together with logprobs is not supported; leave one of them out"
            raise InvalidRequest(message, param="echo", code="unsupported_parameter")


def _token_ids(items: list[Any]) -> bool:
    return all(type(item) is int and item >= 0 for item in items)
