"""OpenTelemetry: under FastAPI's span of a request, one span per prompt and below it one per phase of the engine.

Names of attributes follow the semantic conventions for generative AI where they have one. No attribute holds a text
of a prompt or an answer. Spans are made when a prompt has ended, so that tokens cost nothing.
"""

import importlib.util
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.trace import ProxyTracerProvider, Span, SpanKind, Status, StatusCode
from opentelemetry.util.types import AttributeValue
from starlette.types import Scope

from trimtab.engine.errors import TrimtabError
from trimtab.engine.results import Result
from trimtab.server.logs import FILES, PAGE, PROBES

if TYPE_CHECKING:
    from trimtab.requests import PreparedRequest

NANOSECONDS = 1_000_000_000

_tracer = trace.get_tracer("trimtab")
"""takes its provider when the first span is made"""


class TelemetryUnavailable(TrimtabError):
    """Traces are asked for and could go nowhere."""


def check() -> None:
    """Raise TelemetryUnavailable unless spans will be exported; name the service unless the operator did.

    Either OpenTelemetry was set up before (`opentelemetry-instrument trimtab serve`), or FastAPI does it from the
    OTEL_ variables, with the packages of the extra.
    """
    os.environ.setdefault("OTEL_SERVICE_NAME", "trimtab")
    if not isinstance(trace.get_tracer_provider(), ProxyTracerProvider):
        return
    if not _installed("opentelemetry.sdk.trace") or not _installed("opentelemetry.exporter.otlp.proto.http"):
        raise TelemetryUnavailable(
            "server.telemetry needs the OpenTelemetry SDK and its exporter: pip install 'trimtab[telemetry]'"
        )
    if not any(os.environ.get(f"OTEL_EXPORTER_OTLP_{name}") for name in ("ENDPOINT", "TRACES_ENDPOINT")):
        raise TelemetryUnavailable(
            "server.telemetry has nowhere to send its traces: set OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4318"
        )


def configuration(enabled: bool) -> TelemetryConfig:
    """What FastAPI records by itself: a span per request but of probes and the page; the rest is told elsewhere."""
    return {
        "tracing": enabled,
        "metrics": False,
        "logs": False,
        "operation_spans": False,
        "auto_configure": enabled and isinstance(trace.get_tracer_provider(), ProxyTracerProvider),
        "exclude": _is_untold,
    }


def begin(parent: Span | None, model: str, prepared: "PreparedRequest", acting: Mapping[str, Any]) -> Span | None:
    """Open the span of one prompt below that of its HTTP request; None where nobody records it."""
    if parent is None or not parent.is_recording():
        return None
    request = prepared.request
    operation = "chat" if request.messages is not None else "text_completion"
    attributes: dict[str, AttributeValue] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "trimtab",
        "gen_ai.request.model": model,
        "gen_ai.request.choice.count": request.n,
        "gen_ai.request.max_tokens": prepared.max_tokens,
        "gen_ai.request.temperature": request.sampling.temperature,
        "gen_ai.request.top_p": request.sampling.top_p,
        "trimtab.strategy": prepared.strategy,
    }
    if "preset" in acting:
        attributes["trimtab.preset"] = acting["preset"]
    if "policy" in acting:
        attributes["trimtab.policy"] = acting["policy"]["name"]
    context = trace.set_span_in_context(parent)
    return _tracer.start_span(f"{operation} {model}", context, SpanKind.INTERNAL, attributes)


def finish(span: Span, model: str, result: Result) -> None:
    """Close the span of a prompt with what it cost, and put its phases below it."""
    usage = result.usage
    span.set_attributes(
        {
            "gen_ai.response.model": model,
            "gen_ai.usage.input_tokens": usage.prompt_tokens,
            "gen_ai.usage.output_tokens": usage.completion_tokens,
            "gen_ai.response.finish_reasons": [choice.finish_reason for choice in result.choices],
            "trimtab.model_tokens": sum(usage.model_tokens.values()),
            "trimtab.cached_tokens": usage.cached_tokens,
            "trimtab.candidates": len(result.candidates),
            "trimtab.preemptions": usage.preemptions,
            "trimtab.stopped_by": result.stopped_by,
        }
    )
    now, ending = time.time_ns(), time.monotonic()
    context = trace.set_span_in_context(span)
    for phase in usage.phases:
        began, ended = (now - int((ending - moment) * NANOSECONDS) for moment in (phase.began, phase.ended))
        _tracer.start_span(phase.name, context, start_time=began).end(ended)
    span.end(now)


def fail(span: Span, error: str) -> None:
    """Close the span of a prompt that has no result; `error` is the name of a class, or `cancelled`."""
    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR))
    span.end()


def _is_untold(scope: Scope) -> bool:
    path: str = scope["path"]
    return path in {*PROBES, PAGE} or path.startswith(FILES.partition("{")[0])


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that it is in
        return False
