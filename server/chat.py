"""POST /v1/chat/completions."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from trimtab.engine.results import Choice, Result
from trimtab.llm import GenerationRequest
from trimtab.server import report
from trimtab.server.body import JsonRoute
from trimtab.server.bridge import Exchange
from trimtab.server.chunks import ChatChunks
from trimtab.server.logprobs import chat_logprobs
from trimtab.server.schema.chat import ChatRequest
from trimtab.server.schema.responses import AssistantMessage, ChatChoice, ChatCompletion
from trimtab.server.service import Service
from trimtab.server.stream import EventStream


def routes(service: Service) -> APIRouter:
    """The chat endpoint."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/chat/completions", response_model=ChatCompletion)
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; with `stream: true` as server-sent events."""
        service.check_model(body.model)
        body.check_stream()
        prepared = await service.prepare([_generation(service, body)])
        exchange = service.bridge.submit(prepared, body.choices)
        head = service.head("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion")
        if body.stream:
            return _stream(service, body, exchange, head)
        with service.bridge.watched(exchange, request.receive):
            (result,) = await exchange.complete()
        answer = _whole(service, body, exchange, result, head)
        return Response(answer.model_dump_json(), media_type="application/json")

    return router


def _generation(service: Service, body: ChatRequest) -> GenerationRequest:
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = service.limit(body.choices, 1, body.token_limit, field)
    return GenerationRequest(
        messages=tuple(message.to_message() for message in body.messages),
        sampling=body.sampling(max_tokens, body.logprob_count()),
        n=body.choices,
        decoding=body.decoding,
        progress=body.include_progress,
        cache_salt=body.cache_salt or "",
        chat_template_kwargs=body.chat_template_kwargs or {},
        add_generation_prompt=body.generation_prompt,
        continue_final_message=bool(body.continue_final_message),
    )


def _stream(service: Service, body: ChatRequest, exchange: Exchange, head: dict[str, Any]) -> EventStream:
    chunks = ChatChunks(
        head,
        include_usage=body.include_usage,
        logprobs=bool(body.logprobs),
        token_ids=bool(body.return_token_ids),
        vocabulary=service.llm.vocabulary,
    )
    return EventStream(service, exchange, chunks, include_usage=body.include_usage)


def _whole(
    service: Service, body: ChatRequest, exchange: Exchange, result: Result, head: dict[str, Any]
) -> ChatCompletion:
    def choice(index: int, each: Choice) -> ChatChoice:
        logprobs = None if each.logprobs is None else chat_logprobs(each.logprobs, service.llm.vocabulary)
        return ChatChoice(
            index=index,
            message=AssistantMessage(content=each.text),
            logprobs=logprobs,
            finish_reason=each.finish_reason,
            stop_reason=each.stop_reason,
            token_ids=list(each.token_ids) if body.return_token_ids else None,
        )

    (prepared,) = exchange.prepared
    return ChatCompletion(
        **head,
        choices=[choice(index, each) for index, each in enumerate(result.choices)],
        usage=report.usage([result]),
        decoding=report.decoding(prepared, result, service.llm.vocabulary),
        prompt_token_ids=list(prepared.prompt_ids) if body.return_token_ids else None,
    )
