"""Prometheus metrics under vLLM's names with the prefix `trimtab:`; one registry per app."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from trimtab.engine.results import Delta, Event, Failure, Result
from trimtab.server.engine_metrics import EngineCollector, Engines
from trimtab.server.library_metrics import LibraryCollector
from trimtab.server.version import installed_version

if TYPE_CHECKING:
    from trimtab.decoders.library import Norms

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
WHOLE_REQUEST = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300)
CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1)
CANDIDATE_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)

UNKNOWN = "unknown"
"""the label of what no model or no route stands for, so that clients cannot make up labels"""

Refusal = Literal["queue_full", "rate_limit", "policy", "circuit_open", "draining", "remote"]
"""why a request that could succeed at another time, or with another key, was refused"""

REFUSALS: Mapping[str, Refusal] = {
    "overloaded": "queue_full",
    "rate_limit_exceeded": "rate_limit",
    "policy_violation": "policy",
    "guide_unavailable": "circuit_open",
    "draining": "draining",
    "remote_unavailable": "remote",
}
"""by the code of the error body"""


class Metrics:
    """Histograms observed per request, counters of the HTTP layer, and the engines' own numbers."""

    def __init__(self, engines: Engines, norms: "Norms | None" = None) -> None:
        """`engines` gives the numbers of every served model; it is asked at each scrape and for each request.

        `norms` are those that the models share, if there are any.
        """
        self.registry = CollectorRegistry()
        self._engines = engines
        self.registry.register(EngineCollector(engines, installed_version()))
        if norms is not None:
            self.registry.register(LibraryCollector(norms))
        ProcessCollector(registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"trimtab:{name}", text, ["model", "strategy"], buckets=buckets, registry=self.registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"trimtab:{name}", text, labels, registry=self.registry)

        self.first_token = histogram("time_to_first_token_seconds", "From arrival to the first text", FIRST_TOKEN)
        self.between_tokens = histogram("inter_token_latency_seconds", "Between two texts of a choice", BETWEEN_TOKENS)
        self.whole = histogram("e2e_request_latency_seconds", "From arrival to the result", WHOLE_REQUEST)
        self.queue = histogram("request_queue_time_seconds", "From arrival to admission", FIRST_TOKEN)
        self.candidates = histogram("candidates_per_request", "Answers that a request considered", CANDIDATES)
        self.candidate_tokens = histogram("candidate_tokens", "Tokens of all candidates of a request", CANDIDATE_TOKENS)
        self.interventions = histogram("intervention_rate", "Share of an answer's tokens that steering changed", SHARES)
        self.success = counter("request_success", "Choices delivered", "model", "strategy", "finished_reason")
        self.stopped = counter(
            "request_stopped",
            "Results by what ended the search: finished, abstained, or a part of the budget",
            *("model", "strategy", "by"),
        )
        self.failed = counter(
            "request_failure", "Requests without a result: error or cancelled", "model", "strategy", "reason"
        )
        self._responses = counter("http_responses", "HTTP responses by route and status", "route", "status")
        self._refused = counter(
            "request_refused",
            "Requests refused: queue_full, rate_limit, policy, circuit_open, draining or remote",
            *("model", "reason"),
        )
        self._auto = counter("auto_choices", "Requests by the setting that strategy auto chose", "model", "setting")
        self._spent = counter("caller_model_tokens", "Tokens that all models processed for a caller", "caller")
        self._reloads = counter("config_reloads", "Reloads of the configuration: ok or failed", "outcome")
        for outcome in ("ok", "failed"):
            self._reloads.labels(outcome)
        self._reload_ok = Gauge(
            "trimtab:config_last_reload_successful",
            "1 unless the newest reload was refused and the old configuration is still in force",
            registry=self.registry,
        )
        self._reload_ok.set(1)

    def start(self, model: str, strategy: str) -> "RequestTimer":
        """Begin to time one prompt for a base model, by a strategy of the registry."""
        labels = (self._served(model), strategy)
        return RequestTimer(self, labels, self.between_tokens.labels(*labels), time.perf_counter())

    def response(self, route: str | None, status: int) -> None:
        """Count one HTTP response; `route` is the template of its path (`/v1/models/{id}`), None for no route."""
        self._responses.labels(route or UNKNOWN, str(status)).inc()

    def refused(self, model: str | None, reason: Refusal) -> None:
        """Count one request that was refused; `model` is None where it was refused before its model was known."""
        self._refused.labels(self._served(model), reason).inc()

    def ended(self, route: str | None, status: int, model: str | None, code: str | None) -> None:
        """Count the response to one request, and its refusal if the `code` of its error body says so."""
        self.response(route, status)
        reason = REFUSALS.get(code or "")
        if reason is not None:
            self.refused(model, reason)

    def chose(self, model: str, setting: str) -> None:
        """Count one request that `auto` has answered by a setting of its profile."""
        self._auto.labels(self._served(model), setting).inc()

    def spent(self, caller: str, tokens: int) -> None:
        """Add what a configured caller's request cost: tokens that all models processed for it."""
        self._spent.labels(caller).inc(tokens)

    def reloaded(self, ok: bool) -> None:
        """Count one reload of the configuration."""
        self._reloads.labels("ok" if ok else "failed").inc()
        self._reload_ok.set(ok)

    def render(self) -> bytes:
        """Everything in the text format of Prometheus."""
        return generate_latest(self.registry)

    def _served(self, model: str | None) -> str:
        return model if model is not None and model in self._engines() else UNKNOWN


@dataclass(slots=True)
class RequestTimer:
    """The clock of one prompt; its methods belong to the event loop's thread."""

    metrics: Metrics
    labels: tuple[str, str]
    """model and strategy"""
    between: Histogram
    started: float
    last: dict[int, float] = field(default_factory=dict)
    """per choice: when its last text came"""

    def observe(self, event: Event, now: float) -> None:
        """Account for one event; `now` is a reading of time.perf_counter."""
        if isinstance(event, Delta):
            if event.text or event.token_ids:  # an echo alone is nobody's first text
                self._told(event.choice, now)
        elif isinstance(event, Result):
            self._finish(event, now)
        elif isinstance(event, Failure):
            self.metrics.failed.labels(*self.labels, "error").inc()

    def cancelled(self) -> None:
        """The client gave up, or another prompt of its request failed."""
        self.metrics.failed.labels(*self.labels, "cancelled").inc()

    def _told(self, choice: int, now: float) -> None:
        before = self.last.get(choice)
        if before is not None:
            self.between.observe(now - before)
        elif not self.last:
            self.metrics.first_token.labels(*self.labels).observe(now - self.started)
        self.last[choice] = now

    def _finish(self, result: Result, now: float) -> None:
        metrics, labels = self.metrics, self.labels
        metrics.stopped.labels(*labels, result.stopped_by).inc()
        metrics.whole.labels(*labels).observe(now - self.started)
        metrics.queue.labels(*labels).observe(result.usage.milliseconds.get("queue", 0.0) / 1000)
        metrics.candidates.labels(*labels).observe(len(result.candidates))
        metrics.candidate_tokens.labels(*labels).observe(sum(c.tokens for c in result.candidates))
        for choice in result.choices:
            metrics.success.labels(*labels, choice.finish_reason).inc()
            if choice.steering is not None and choice.steering.intervention_rate is not None:
                metrics.interventions.labels(*labels).observe(choice.steering.intervention_rate)
