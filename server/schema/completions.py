"""Request of POST /v1/completions."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator

from trimtab.engine.sampling import MAX_COUNT
from trimtab.server.schema.sampling import SamplingFields

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for text completions"""


class CompletionRequest(SamplingFields):
    """One or several texts to be continued, as strings or as token ids."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    random_stream: int | None = Field(default=None, ge=0, le=MAX_COUNT)

    unsupported: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "best_of": (1,), "suffix": (),
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

    def token_limit(self, allowed: int | None) -> int:
        """max_tokens, or OpenAI's 16, or less where the server allows less."""
        if self.max_tokens is not None:
            return self.max_tokens
        return DEFAULT_MAX_TOKENS if allowed is None else min(DEFAULT_MAX_TOKENS, allowed)

    @property
    def prompt_logprobs(self) -> int | None:
        """Alternatives for each token of a prompt that is echoed with log-probabilities."""
        return self.logprobs if self.echo else None


def _token_ids(items: list[Any]) -> bool:
    return all(type(item) is int and item >= 0 for item in items)
