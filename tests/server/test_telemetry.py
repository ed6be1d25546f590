"""Spans of requests, prompts and phases: who is whose child, when, and what they hold."""

import importlib.util
import json
from typing import Any

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import ProxyTracerProvider, SpanKind, StatusCode

from trimtab.engine.errors import GuideError
from trimtab.llm import LLM
from trimtab.server import telemetry
from trimtab.server.settings import ServerSettings

PATH = "/v1/chat/completions"
PROMPT = "PLANTED-PROMPT"
ASK = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 8, "ignore_eos": True}
BEST_OF_4 = {"strategy": "best_of_n", "n": 4, "reward": "brevity"}
TRACE = "0af7651916cd43dd8448eb211c80319c"
ON = ServerSettings(telemetry=True)


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """The process's one provider of traces, which may be set once, writes here."""
    exporter, provider = InMemorySpanExporter(), trace.get_tracer_provider()
    if isinstance(provider, ProxyTracerProvider):
        provider = TracerProvider(shutdown_on_exit=False)
        trace.set_tracer_provider(provider)
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> InMemorySpanExporter:
    exporter.clear()
    return exporter


def children(spans: tuple[ReadableSpan, ...], parent: ReadableSpan) -> list[ReadableSpan]:
    own = parent.get_span_context()
    assert own is not None
    found = [each for each in spans if each.parent is not None and each.parent.span_id == own.span_id]
    return sorted(found, key=lambda each: each.start_time or 0)


def only(spans: tuple[ReadableSpan, ...], kind: SpanKind) -> ReadableSpan:
    (found,) = [each for each in spans if each.kind is kind]
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_phases_lie_in_their_prompt_and_prompts_in_their_request(
    llm: LLM, start: Any, wait_until: Any, spans: InMemorySpanExporter, stream: bool
) -> None:
    running = start(llm, ON)
    body = {**ASK, "decoding": BEST_OF_4, "stream": stream, "temperature": 0.5}
    headers = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01", "authorization": "Bearer PLANTED"}
    assert httpx2.post(running.url + PATH, json=body, headers=headers, timeout=30).status_code == 200
    wait_until(lambda: any(each.kind is SpanKind.SERVER for each in spans.get_finished_spans()))
    done = spans.get_finished_spans()
    request = only(done, SpanKind.SERVER)
    assert request.name == f"POST {PATH}"
    assert request.parent is not None
    assert (f"{request.parent.trace_id:032x}", f"{request.parent.span_id:016x}") == (TRACE, "b7ad6b7169203331")
    (prompt,) = children(done, request)
    assert prompt.name == "chat tiny"
    phases = children(done, prompt)
    assert {"prefill", "decode", "guide"} <= {each.name for each in phases}
    assert {each.name for each in phases} <= {"queue", "prefill", "decode", "guide", "select"}
    for parent in (request, prompt):
        for child in children(done, parent):
            assert parent.start_time is not None and parent.end_time is not None  # noqa: PT018
            assert child.start_time is not None and child.end_time is not None  # noqa: PT018
            assert parent.start_time <= child.start_time <= child.end_time <= parent.end_time, child.name
    assert len(done) == 2 + len(phases)
    told = dict(prompt.attributes or {})
    assert told.pop("trimtab.model_tokens") >= 32
    assert told.pop("gen_ai.usage.input_tokens") > len(PROMPT)
    assert told.pop("trimtab.cached_tokens") >= 0
    assert told == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "trimtab",
        "gen_ai.request.model": "tiny",
        "gen_ai.response.model": "tiny",
        "gen_ai.request.choice.count": 1,
        "gen_ai.request.max_tokens": 8,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 1.0,
        "gen_ai.usage.output_tokens": 8,
        "gen_ai.response.finish_reasons": ("length",),
        "trimtab.strategy": "best_of_n",
        "trimtab.candidates": 4,
        "trimtab.preemptions": 0,
        "trimtab.stopped_by": "finished",
    }
    assert "PLANTED" not in json.dumps([json.loads(each.to_json()) for each in done])


def test_every_prompt_has_a_span(llm: LLM, start: Any, wait_until: Any, spans: InMemorySpanExporter) -> None:
    running = start(llm, ON)
    body = {"model": "tiny", "prompt": ["a", "b", "c"], "max_tokens": 2}
    httpx2.post(running.url + "/v1/completions", json=body, timeout=30)
    wait_until(lambda: any(each.kind is SpanKind.SERVER for each in spans.get_finished_spans()))
    done = spans.get_finished_spans()
    request = only(done, SpanKind.SERVER)
    assert [each.name for each in children(done, request)] == ["text_completion tiny"] * 3
    assert request.parent is None


@pytest.mark.parametrize("gone", [False, True])
def test_a_prompt_that_fails_or_is_left_ends_its_span(
    fake: Any, start: Any, wait_until: Any, spans: InMemorySpanExporter, gone: bool
) -> None:
    running = start(fake, ON)
    with httpx2.stream("POST", running.url + PATH, json={**ASK, "model": "fake", "stream": True}) as response:
        wait_until(lambda: len(fake.submitted) == 1)
        if not gone:
            fake.fail(GuideError("kind", "score is nan"))
            response.read()
    wait_until(lambda: any(each.kind is SpanKind.SERVER for each in spans.get_finished_spans()))
    prompt = only(spans.get_finished_spans(), SpanKind.INTERNAL)
    assert prompt.status.status_code is StatusCode.ERROR
    assert prompt.attributes is not None
    assert prompt.attributes["error.type"] == ("cancelled" if gone else "GuideError")


def test_nothing_is_recorded_of_probes_nor_while_it_is_off(llm: LLM, start: Any, spans: InMemorySpanExporter) -> None:
    off, on = start(llm), start(llm, ON)
    assert httpx2.post(off.url + PATH, json=ASK, timeout=30).status_code == 200
    for path in ("/health", "/ready", "/metrics", "/", "/static/main.js"):
        assert httpx2.get(on.url + path).status_code == 200
    off.stop()
    on.stop()
    assert spans.get_finished_spans() == ()


def test_spans_that_could_go_nowhere_are_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "TRACES_ENDPOINT"):
        monkeypatch.delenv(f"OTEL_EXPORTER_OTLP_{name}", raising=False)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setattr(trace, "get_tracer_provider", ProxyTracerProvider)
    found: dict[str, object] = {}
    monkeypatch.setattr(importlib.util, "find_spec", found.get)
    with pytest.raises(telemetry.TelemetryUnavailable, match=r"pip install 'trimtab\[telemetry\]'"):
        telemetry.check()
    found |= dict.fromkeys(("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"), object())
    with pytest.raises(telemetry.TelemetryUnavailable, match="set OTEL_EXPORTER_OTLP_ENDPOINT"):
        telemetry.check()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    telemetry.check()
