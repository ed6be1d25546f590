"""What is asked in the words of each kind of server, and its answers read back: the one table of dialects.

Log-probabilities are meant to be those of the base at temperature 1, before penalties, bias and filters. trimtab gives
these, vLLM under `--logprobs-mode raw_logprobs` (its default), SGLang and llama.cpp by default; the probe compares two
temperatures. That a server's numbers are of the model that it names cannot be checked.

Random numbers: trimtab draws each token by seed, stream and position in the text, as a local base does. Others restart
their generator in each call, so a seed is made of the request's, of where the continuation begins and of its stream:
otherwise each segment of a text would be drawn with the numbers of the segment before.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from trimtab.engine.remote import llamacpp, openai, sglang
from trimtab.engine.remote.wire import Ask, Capabilities, Reply, Token
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.vocabulary import Vocabulary


class Deltas(Protocol):
    """A streamed answer that is put together; both methods raise RemoteError or RemoteUnavailable."""

    def take(self, chunk: Mapping[str, Any]) -> list[tuple[int, Token]]:
        """The new tokens of a chunk, each with the number of its continuation."""

    def reply(self) -> Reply:
        """The whole answer, once the stream has ended."""


class _Dialect(Protocol):
    """A module that speaks to one kind of server."""

    PATH: str

    def body(self, ask: Ask, capabilities: Capabilities) -> dict[str, Any]: ...
    def reply(self, ask: Ask, capabilities: Capabilities, answer: Any, vocabulary: Vocabulary) -> Reply: ...
    def deltas(self, ask: Ask, capabilities: Capabilities, vocabulary: Vocabulary) -> Deltas | None: ...
    def refused(self, capabilities: Capabilities) -> frozenset[str]: ...


_DIALECTS: Mapping[str, _Dialect] = {
    "trimtab": openai,
    "vllm": openai,
    "other": openai,
    "sglang": sglang,
    "llama.cpp": llamacpp,
}
_DEFAULTS = SamplingParams()
_FIELDS = (
    "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
    "min_tokens", "stop_token_ids", "ignore_eos", "skip_special_tokens",
)  # fmt: skip


def path(capabilities: Capabilities) -> str:
    """Where this kind of server takes completions."""
    return _dialect(capabilities).PATH


def body(ask: Ask, capabilities: Capabilities) -> dict[str, Any]:
    """The body of the call, not streamed."""
    return _dialect(capabilities).body(ask, capabilities)


def streamed(body: Mapping[str, Any], capabilities: Capabilities) -> dict[str, Any]:
    """The same for an answer in pieces, of which the last tells what was cached."""
    told = {"stream_options": {"include_usage": True}} if _dialect(capabilities) is openai else {}
    return {**body, "stream": True, **told}


def reply(ask: Ask, capabilities: Capabilities, answer: Any, vocabulary: Vocabulary) -> Reply:
    """What the answer says; RemoteError names the field that is wrong.

    Of a server that returns no token ids the text is tokenised again by the local vocabulary: the ids spell the same
    text, but need not be those that were drawn, so that their number may exceed `max_tokens`, nothing is known of
    single tokens, characters that were cut in the middle come as replacement characters, and special tokens are lost.
    """
    return _dialect(capabilities).reply(ask, capabilities, answer, vocabulary)


def deltas(ask: Ask, capabilities: Capabilities, vocabulary: Vocabulary) -> Deltas | None:
    """A reader of the streamed answer; None where this server's streams do not tell all token ids."""
    return _dialect(capabilities).deltas(ask, capabilities, vocabulary)


def refused(sampling: SamplingParams, capabilities: Capabilities) -> str | None:
    """The first field that the request sets and that this kind of server does not know, or means otherwise."""
    unknown = _dialect(capabilities).refused(capabilities)
    set_ = (name for name in _FIELDS if getattr(sampling, name) != getattr(_DEFAULTS, name))
    return next((name for name in set_ if name in unknown), None)


def _dialect(capabilities: Capabilities) -> _Dialect:
    return _DIALECTS[capabilities.kind]
