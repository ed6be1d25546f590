"""Responses that are not streamed, as OpenAI's clients parse them."""

from typing import Any, Literal

from pydantic import BaseModel, Field

FinishReason = Literal["stop", "length"]
VocabularyRelation = Literal["same", "translated", "text only"]


class PromptTokensDetails(BaseModel):
    """Where the prompt's keys and values came from."""

    cached_tokens: int


class CompletionUsage(BaseModel):
    """Tokens read and delivered; what was spent beyond that stands in `decoding`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One answer of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    token_ids: list[int] | None = Field(exclude_if=lambda ids: ids is None)


class TextChoice(BaseModel):
    """One answer of a text completion."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    token_ids: list[int] | None = Field(exclude_if=lambda ids: ids is None)
    prompt_token_ids: list[int] | None = Field(exclude_if=lambda ids: ids is None)


class ChatCompletion(BaseModel):
    """Response of /v1/chat/completions; `decoding` says what the strategy did and what it cost."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage
    system_fingerprint: str
    decoding: dict[str, Any]
    prompt_token_ids: list[int] | None = Field(exclude_if=lambda ids: ids is None)


class Completion(BaseModel):
    """Response of /v1/completions; `decoding` is a list when several prompts were sent."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: CompletionUsage
    system_fingerprint: str
    decoding: dict[str, Any] | list[dict[str, Any]]


class ModelCard(BaseModel):
    """A model that requests may name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "trimtab"
    max_model_len: int


class ModelList(BaseModel):
    """Response of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class GuideCard(BaseModel):
    """A model or program that requests may steer with, and what it can do."""

    name: str
    role: str
    model: str
    """hub id, or the last part of the path that it was loaded from; of a program its kind"""
    vocabulary: VocabularyRelation | None = Field(exclude_if=lambda relation: relation is None)
    """how its tokens relate to the base's, for models that read text"""
    context_length: int | None = Field(exclude_if=lambda length: length is None)
    chat_template: bool | None = Field(exclude_if=lambda template: template is None)
    """whether it reads conversations in a form of its own"""
    scores_candidates: bool
    """it gives values to single tokens that could come next"""
    scores_answers: bool
    """it can be the reward of a search"""


class GuideList(BaseModel):
    """Response of /v1/guides."""

    object: Literal["list"] = "list"
    data: list[GuideCard]
