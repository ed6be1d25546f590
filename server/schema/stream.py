"""Chunks of streamed answers, as the OpenAPI document tells of them; server/chunks.py writes them."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from trimtab.engine.results import FinishReason
from trimtab.server.schema.responses import ChatFinishReason, CompletionUsage, ErrorBody


class Piece(BaseModel):
    """What a chunk adds to one choice; the last one has a finish reason and no text."""

    model_config = ConfigDict(extra="forbid")

    index: int
    logprobs: dict[str, Any] | None
    stop_reason: str | int | None = None
    token_ids: list[int] | None = None
    trace: list[dict[str, Any]] | None = None
    """a record for each token of the chunk, where `include_trace` asks for it"""


class ChatDelta(BaseModel):
    """New text of a message; the first one has the role."""

    model_config = ConfigDict(extra="forbid")

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatPiece(Piece):
    """Of a chat completion."""

    delta: ChatDelta
    finish_reason: ChatFinishReason | None


class TextPiece(Piece):
    """Of a text completion."""

    text: str
    finish_reason: FinishReason | None
    prompt_token_ids: list[int] | None = None


class ProgressReport(BaseModel):
    """How far a search is, where `include_progress` asks for it."""

    phase: str
    candidates: int
    finished: int
    best_reward: float | None
    model_tokens: int
    milliseconds: float
    prompt: int | None = None
    """its index, where there are several"""


class _Chunk(BaseModel):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: CompletionUsage | None = None
    """on the last chunk, where `include_usage` asks for it"""
    decoding: dict[str, Any] | list[dict[str, Any]] | None = None
    """on the last chunk"""
    progress: ProgressReport | None = None


class ChatChunk(_Chunk):
    """One event of a streamed chat completion."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatPiece]


class TextChunk(_Chunk):
    """One event of a streamed text completion."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[TextPiece]


class StreamError(ErrorBody):
    """What went wrong after the stream had begun; nothing but `[DONE]` follows."""
