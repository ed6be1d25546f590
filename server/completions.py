"""POST /v1/completions."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from trimtab.engine.results import Choice, Result
from trimtab.requests import GenerationRequest
from trimtab.server import report
from trimtab.server.bridge import Exchange
from trimtab.server.callers import GuardedRoute
from trimtab.server.chunks import Extras, TextChunks
from trimtab.server.echo import Echo, joined
from trimtab.server.logprobs import TextLogprobs
from trimtab.server.offload import build, weight
from trimtab.server.openapi import refusals
from trimtab.server.schema.completions import CompletionRequest
from trimtab.server.schema.responses import Completion, TextChoice
from trimtab.server.service import Call, Service
from trimtab.server.stream import EventStream


def routes(service: Service) -> APIRouter:
    """The text completion endpoint."""
    router = APIRouter(route_class=GuardedRoute)

    @router.post("/v1/completions", response_model=Completion, responses=refusals(403, 404))
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue one or several texts; choices are numbered prompt by prompt."""
        call = service.call(request, "completions", body.model, body.given)
        body.check_stream()
        exchange = await service.begin(call, _generations(service, call, body), trace=body.include_trace)
        echoes = _echoes(exchange, body)
        head = service.head("cmpl", "text_completion", call.target.id)
        if body.stream:
            return _stream(service, body, exchange, head, echoes)
        with service.bridge.watched(exchange, request.receive):
            results = await exchange.complete()
        answer = await build(weight(results), lambda: _whole(body, exchange, results, head, echoes).model_dump_json())
        return Response(answer, media_type="application/json")

    return router


def _generations(service: Service, call: Call, body: CompletionRequest) -> list[GenerationRequest]:
    allowed = service.limit(call, body.choices, len(body.prompts), body.max_tokens, "max_tokens")
    sampling = body.sampling(body.token_limit(allowed), body.logprobs)
    return [
        GenerationRequest(
            prompt=prompt,
            sampling=sampling,
            n=body.choices,
            decoding=body.decoding,
            progress=body.include_progress,
            cache_salt=body.cache_salt or "",
            priority=body.priority or 0,
            add_special_tokens=body.add_special_tokens is not False,
            prompt_logprobs=body.prompt_logprobs,
            random_stream=body.random_stream or 0,
        )
        for prompt in body.prompts
    ]


def _echoes(exchange: Exchange, body: CompletionRequest) -> list[Echo | None]:
    """What precedes each choice; None without echo."""
    skip, as_ids = body.skip_special_tokens is not False, bool(body.return_tokens_as_token_ids)
    return [
        Echo.of(prompt, prepared.prompt_ids, exchange.llm.vocabulary, skip_special=skip, as_ids=as_ids)
        if body.echo
        else None
        for prompt, prepared in zip(body.prompts, exchange.prepared, strict=True)
        for _ in range(body.choices)
    ]


def _stream(
    service: Service, body: CompletionRequest, exchange: Exchange, head: dict[str, Any], echoes: Sequence[Echo | None]
) -> EventStream:
    chunks = TextChunks(
        head,
        Extras(body.include_usage, body.logprobs is not None, bool(body.return_token_ids), body.include_trace),
        exchange.llm.vocabulary,
        echoes=echoes,
        skip_special=body.skip_special_tokens is not False,
        as_ids=bool(body.return_tokens_as_token_ids),
    )
    return EventStream(service, exchange, chunks)


def _whole(
    body: CompletionRequest,
    exchange: Exchange,
    results: Sequence[Result],
    head: dict[str, Any],
    echoes: Sequence[Echo | None],
) -> Completion:
    vocabulary, skip = exchange.llm.vocabulary, body.skip_special_tokens is not False
    as_ids = bool(body.return_tokens_as_token_ids)

    def choice(index: int, each: Choice, result: Result, prompt_ids: Sequence[int]) -> TextChoice:
        echo, logprobs = echoes[index], None
        text = "" if echo is None else echo.text
        if each.logprobs is not None:
            aligned = TextLogprobs(vocabulary, len(text), skip_special=skip, as_ids=as_ids)
            logprobs = aligned.add(each.logprobs)
        if logprobs is not None and echo is not None and result.prompt_logprobs is not None:
            logprobs = joined(echo.logprobs(result.prompt_logprobs, vocabulary), logprobs)
        return TextChoice(
            index=index,
            text=text + each.text,
            logprobs=logprobs,
            finish_reason=each.finish_reason,
            stop_reason=each.stop_reason,
            token_ids=list(each.token_ids) if body.return_token_ids else None,
            prompt_token_ids=list(prompt_ids) if body.return_token_ids else None,
        )

    return Completion(
        **head,
        choices=[
            choice(part * body.choices + number, each, result, prepared.prompt_ids)
            for part, (prepared, result) in enumerate(zip(exchange.prepared, results, strict=True))
            for number, each in enumerate(result.choices)
        ],
        usage=report.usage(results),
        decoding=report.decodings(exchange, results),
    )
