"""POST /v1/chat/completions."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from trimtab.engine.errors import InvalidRequest
from trimtab.engine.results import Choice, Result
from trimtab.requests import GenerationRequest
from trimtab.server import report
from trimtab.server.bridge import Exchange
from trimtab.server.callers import GuardedRoute
from trimtab.server.chunks import ChatChunks, Extras
from trimtab.server.logprobs import chat_logprobs
from trimtab.server.offload import build, weight
from trimtab.server.openapi import refusals
from trimtab.server.schema.chat import ChatRequest
from trimtab.server.schema.responses import AssistantMessage, ChatChoice, ChatCompletion, MessageToolCall
from trimtab.server.service import Call, Service
from trimtab.server.stream import EventStream
from trimtab.server.tools import Calling, finish_reason


def routes(service: Service) -> APIRouter:
    """The chat endpoint."""
    router = APIRouter(route_class=GuardedRoute)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=refusals(403, 404))
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        """Answer a conversation; with `stream: true` as server-sent events."""
        call = service.call(request, "chat", body.model, body.given)
        body.check_stream()
        calling = Calling.of(body, call.llm.vocabulary)
        try:
            generation = _generation(service, call, body, calling)
            exchange = await service.begin(call, [generation], trace=body.include_trace)
        except InvalidRequest as error:
            if calling is None or (told := calling.blamed(error)) is None:
                raise
            raise told from error
        head = service.head("chatcmpl", "chat.completion.chunk" if body.stream else "chat.completion", call.target.id)
        if body.stream:
            return _stream(service, body, exchange, head, calling)
        with service.bridge.watched(exchange, request.receive):
            (result,) = await exchange.complete()
        answer = await build(
            weight(exchange.results), lambda: _whole(body, exchange, result, head, calling).model_dump_json()
        )
        return Response(answer, media_type="application/json")

    return router


def _generation(service: Service, call: Call, body: ChatRequest, calling: Calling | None) -> GenerationRequest:
    field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    max_tokens = service.limit(call, body.choices, 1, body.token_limit, field)
    return GenerationRequest(
        messages=tuple(message.to_message() for message in body.messages),
        sampling=body.sampling(max_tokens, body.logprob_count()),
        n=body.choices,
        decoding=body.decoding,
        progress=body.include_progress,
        cache_salt=body.cache_salt or "",
        priority=body.priority or 0,
        chat_template_kwargs=body.chat_template_kwargs or {},
        add_generation_prompt=body.generation_prompt,
        continue_final_message=bool(body.continue_final_message),
        grammar=body.grammar if calling is None else calling.grammar(call.llm.vocabulary),
        tools=() if calling is None else calling.described,
        shown_tokens=frozenset() if calling is None else calling.shown_tokens(call.llm.vocabulary),
    )


def _stream(
    service: Service, body: ChatRequest, exchange: Exchange, head: dict[str, Any], calling: Calling | None
) -> EventStream:
    extras = Extras(body.include_usage, bool(body.logprobs), bool(body.return_token_ids), body.include_trace)
    return EventStream(service, exchange, ChatChunks(head, extras, exchange.llm.vocabulary, calling=calling))


def _whole(
    body: ChatRequest, exchange: Exchange, result: Result, head: dict[str, Any], calling: Calling | None
) -> ChatCompletion:
    vocabulary = exchange.llm.vocabulary

    def choice(index: int, each: Choice) -> ChatChoice:
        logprobs = None if each.logprobs is None else chat_logprobs(each.logprobs, vocabulary)
        content, calls = (each.text, []) if calling is None else calling.split(each.text)
        told = [MessageToolCall.model_validate(call.told()) for call in calls]
        return ChatChoice(
            index=index,
            message=AssistantMessage(content=content, tool_calls=told or None),
            logprobs=logprobs,
            finish_reason=finish_reason(each, called=bool(calls)),
            stop_reason=each.stop_reason,
            token_ids=list(each.token_ids) if body.return_token_ids else None,
        )

    (prepared,) = exchange.prepared
    return ChatCompletion(
        **head,
        choices=[choice(index, each) for index, each in enumerate(result.choices)],
        usage=report.usage([result]),
        decoding=report.decoding(prepared, result, vocabulary, exchange.acting),
        prompt_token_ids=list(prepared.prompt_ids) if body.return_token_ids else None,
    )
