"""The sampling fields that chat and text completions share."""

from typing import Any

from pydantic import Field, ValidationError

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.sampling import MAX_COUNT, SamplingParams
from trimtab.server.errors import param_name
from trimtab.server.schema.base import Wire


class StreamOptions(Wire):
    """Options of a streamed answer."""

    include_usage: bool | None = None
    include_progress: bool | None = None
    include_trace: bool | None = None


class SamplingFields(Wire):
    """Fields under OpenAI's and vLLM's names; null means the default, ranges are those of SamplingParams."""

    model: str
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    cache_salt: str | None = None
    priority: int | None = Field(default=None, ge=-MAX_COUNT, le=MAX_COUNT)
    decoding: dict[str, Any] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None

    @property
    def choices(self) -> int:
        """Answers asked for per prompt."""
        return 1 if self.n is None else self.n

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def include_progress(self) -> bool:
        """Whether a stream tells how far a search is."""
        return self.stream_options is not None and bool(self.stream_options.include_progress)

    @property
    def include_trace(self) -> bool:
        """Whether each chunk of a stream carries the trace of its tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_trace)

    def check_stream(self) -> None:
        """Raise InvalidRequest for stream_options without stream."""
        if self.stream_options is not None and not self.stream:
            raise InvalidRequest("stream_options needs stream: true", param="stream_options")

    def sampling(self, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The engine's parameters; raises InvalidRequest naming the field that is out of range."""
        values = {name: getattr(self, name) for name in _SAME_NAME}
        values |= {"max_tokens": max_tokens, "logprobs": logprobs, "stop": _stop(self.stop)}
        values["top_k"] = 0 if self.top_k == -1 else self.top_k  # vLLM writes "all" as -1
        values["logit_bias"] = _token_ids(self.logit_bias)
        try:
            return SamplingParams(**{name: value for name, value in values.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            name = param_name(first["loc"]) or ""
            raise InvalidRequest(
                f"{name}: {first['msg'].lower()}, not {first['input']!r}", param=name, code="invalid_value"
            ) from None


_SAME_NAME = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
    "min_tokens", "stop_token_ids", "include_stop_str_in_output", "ignore_eos", "skip_special_tokens",
)  # fmt: skip
_DIGITS = 18  # of the longest token id that is read: Python refuses to convert thousands


def _stop(stop: str | list[str] | None) -> list[str] | None:
    strings = [stop] if isinstance(stop, str) else stop
    if strings is not None and "" in strings:
        raise InvalidRequest("stop: an empty string would stop every answer at once", param="stop")
    return strings


def _token_ids(bias: dict[str, float] | None) -> dict[int, float] | None:
    if bias is None:
        return None
    for key in bias:
        if not (key.isascii() and key.isdigit() and len(key) <= _DIGITS):
            message = f"logit_bias: keys are token ids written as strings, not {key[:99]!r}"
            raise InvalidRequest(message, param="logit_bias", code="invalid_value")
    return {int(key): value for key, value in bias.items()}
