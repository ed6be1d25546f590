"""Responses that are not streamed, as OpenAI's clients parse them."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from trimtab.engine.guides.card import BaseIdentity, Kind
from trimtab.engine.results import FinishReason

ChatFinishReason = Literal["stop", "length", "tool_calls"]
VocabularyRelation = Literal["same", "translated", "text only"]


class ErrorDetail(BaseModel):
    """What went wrong, for people (`message`) and for programs."""

    message: str
    type: str
    param: str | None
    """the field of the request that is to blame, by its path"""
    code: str | None


class ErrorBody(BaseModel):
    """Every answer whose status is not 2xx."""

    error: ErrorDetail


class Status(BaseModel):
    """Response of /health and /ready."""

    status: Literal["ok", "ready"]


class Version(BaseModel):
    """Response of /version."""

    version: str


class ServedModel(BaseModel):
    """How a base model runs."""

    id: str
    source: str
    """as configured: demo, a folder's name, a hub id"""
    dtype: str
    device: str
    max_model_len: int


class MachineReport(BaseModel):
    """Response of /v1/machine."""

    version: str
    hardware: dict[str, str | int | bool | None]
    """processor, cores, threads, GPU, and the versions of Python, torch and transformers"""
    memory_mib: dict[str, float | None]
    """held now: `resident` by the process, `gpu` by its tensors"""
    models: list[ServedModel]


class StrategyList(BaseModel):
    """Response of /v1/strategies; schemas are those of the parameters, which stand beside `strategy` or `method`."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    """every strategy: `name`, `kind` (`search`, `steer`, `prompt` or `auto`), `summary`, `paper`, `cost`, `needs`,
    `schema`; of `auto` also `available`, whether the server has a profile"""
    rules: list[dict[str, Any]]
    """what `select` may name: `name`, `summary`, `schema`"""
    budget: dict[str, Any]
    """schema of `budget`"""
    rewards: list[str]
    """guides that score answers"""


class PromptTokensDetails(BaseModel):
    """Where the prompt's keys and values came from."""

    cached_tokens: int


class CompletionUsage(BaseModel):
    """Tokens read and delivered; what was spent beyond that stands in `decoding`."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class CalledFunction(BaseModel):
    """A function with its arguments, as the JSON text of an object."""

    name: str
    arguments: str


class MessageToolCall(BaseModel):
    """A call that the answer makes."""

    id: str
    type: Literal["function"] = "function"
    function: CalledFunction


class AssistantMessage(BaseModel):
    """The answer; `content` is null where it is nothing but calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[MessageToolCall] | None = Field(default=None, exclude_if=lambda calls: calls is None)


class ChatChoice(BaseModel):
    """One answer of a chat completion."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: ChatFinishReason
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
    parent: str | None = Field(exclude_if=lambda parent: parent is None)
    """of a preset: the model that it decodes"""
    description: str | None = Field(exclude_if=lambda text: text is None)


class ModelList(BaseModel):
    """Response of /v1/models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ContractFinding(BaseModel):
    """One point that a model was examined for when it was loaded."""

    name: str
    ok: bool
    finding: str
    fix: str = Field(exclude_if=lambda fix: not fix)
    """what to do; also told of what works and is seldom meant so"""


class GuideContract(BaseModel):
    """Whether the scores of a reward model, or the vectors of an embedding model, can be relied on."""

    ok: bool
    findings: list[ContractFinding]


class GuideOrigin(BaseModel):
    """Where a trained guide comes from, as its card says."""

    kind: Kind
    base: BaseIdentity
    """the base that it was trained on"""
    data: str
    licence: str
    policy: str | None
    """whose answers it was trained on; None: it saw none"""
    metrics: dict[str, float]
    """on the held-out part of its data"""


class GuideCard(BaseModel):
    """A model or program that requests may steer with, and what it can do."""

    name: str
    role: str
    model: str
    """hub id, or the last part of the path that it was loaded from; of a program its kind, of a guide that another
    server runs its name there"""
    vocabulary: VocabularyRelation | None = Field(exclude_if=lambda relation: relation is None)
    """how its tokens relate to the base's, for models that read text"""
    context_length: int | None = Field(exclude_if=lambda length: length is None)
    chat_template: bool | None = Field(exclude_if=lambda template: template is None)
    """whether it reads conversations in a form of its own"""
    scores_candidates: bool
    """it gives values to single tokens that could come next"""
    scores_answers: bool
    """it can be the reward of a search"""
    attributes: tuple[str, ...] | None = Field(exclude_if=lambda names: not names)
    """what a preference weighs, of an adapter with a block for each"""
    contract: GuideContract | None = Field(exclude_if=lambda contract: contract is None)
    """of rewards that are models, here or on another server, and of embedding models"""
    card: GuideOrigin | None = Field(exclude_if=lambda card: card is None)
    """of guides whose folder has a card.json"""


class GuideList(BaseModel):
    """Response of /v1/guides."""

    object: Literal["list"] = "list"
    data: list[GuideCard]
