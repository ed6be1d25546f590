"""POST /v1/completions."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from trimtab.engine.results import Choice, Result
from trimtab.llm import GenerationRequest
from trimtab.server import report
from trimtab.server.body import JsonRoute
from trimtab.server.bridge import Exchange
from trimtab.server.chunks import TextChunks
from trimtab.server.logprobs import TextLogprobs
from trimtab.server.schema.completions import CompletionRequest
from trimtab.server.schema.responses import Completion, TextChoice
from trimtab.server.service import Service
from trimtab.server.stream import EventStream


def routes(service: Service) -> APIRouter:
    """The text completion endpoint."""
    router = APIRouter(route_class=JsonRoute)

    @router.post("/v1/completions", response_model=Completion)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Continue one or several texts; choices are numbered prompt by prompt."""
        service.check_model(body.model)
        body.check_stream()
        body.check_echo()
        prepared = await service.prepare(_generations(service, body))
        echo = _echo(service, body)
        exchange = service.bridge.submit(prepared, body.choices)
        head = service.head("cmpl", "text_completion")
        if body.stream:
            return _stream(service, body, exchange, head, echo)
        with service.bridge.watched(exchange, request.receive):
            results = await exchange.complete()
        answer = _whole(service, body, exchange, results, head, echo)
        return Response(answer.model_dump_json(), media_type="application/json")

    return router


def _generations(service: Service, body: CompletionRequest) -> list[GenerationRequest]:
    max_tokens = service.limit(body.choices, len(body.prompts), body.token_limit, "max_tokens")
    sampling = body.sampling(max_tokens, body.logprobs)
    return [
        GenerationRequest(
            prompt=prompt,
            sampling=sampling,
            n=body.choices,
            decoding=body.decoding,
            progress=body.include_progress,
            cache_salt=body.cache_salt or "",
            add_special_tokens=body.add_special_tokens is not False,
        )
        for prompt in body.prompts
    ]


def _echo(service: Service, body: CompletionRequest) -> list[str]:
    """The text that precedes each choice, empty without echo."""
    if not body.echo:
        return [""] * (len(body.prompts) * body.choices)
    texts = [p if isinstance(p, str) else service.llm.vocabulary.decode(p) for p in body.prompts]
    return [text for text in texts for _ in range(body.choices)]


def _stream(
    service: Service, body: CompletionRequest, exchange: Exchange, head: dict[str, Any], echo: Sequence[str]
) -> EventStream:
    chunks = TextChunks(
        head,
        include_usage=body.include_usage,
        logprobs=body.logprobs is not None,
        token_ids=bool(body.return_token_ids),
        vocabulary=service.llm.vocabulary,
        echo=echo,
        skip_special=body.skip_special_tokens is not False,
    )
    return EventStream(service, exchange, chunks, include_usage=body.include_usage)


def _whole(
    service: Service,
    body: CompletionRequest,
    exchange: Exchange,
    results: Sequence[Result],
    head: dict[str, Any],
    echo: Sequence[str],
) -> Completion:
    def choice(index: int, each: Choice, prompt_ids: Sequence[int]) -> TextChoice:
        logprobs = None
        if each.logprobs is not None:
            logprobs = TextLogprobs(
                service.llm.vocabulary, len(echo[index]), skip_special=body.skip_special_tokens is not False
            ).add(each.logprobs)
        return TextChoice(
            index=index,
            text=echo[index] + each.text,
            logprobs=logprobs,
            finish_reason=each.finish_reason,
            stop_reason=each.stop_reason,
            token_ids=list(each.token_ids) if body.return_token_ids else None,
            prompt_token_ids=list(prompt_ids) if body.return_token_ids else None,
        )

    return Completion(
        **head,
        choices=[
            choice(part * body.choices + number, each, prepared.prompt_ids)
            for part, (prepared, result) in enumerate(zip(exchange.prepared, results, strict=True))
            for number, each in enumerate(result.choices)
        ],
        usage=report.usage(results),
        decoding=report.decodings(exchange.prepared, results, service.llm.vocabulary),
    )
