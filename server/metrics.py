"""Prometheus metrics under vLLM's names with the prefix `trimtab:`; one registry per app."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from trimtab.engine.results import Delta, EngineStats, Event, Failure, Result

FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BETWEEN_TOKENS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1, 2.5)
WHOLE_REQUEST = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300)
CANDIDATES = (1, 2, 4, 8, 16, 32, 64, 128)
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1)
CANDIDATE_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)

_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("num_requests_running", "Requests that hold rows", lambda s: s.running),
    ("num_requests_waiting", "Requests that wait for rows or pages", lambda s: s.waiting),
    ("rows", "Sequences that decode now", lambda s: s.rows),
    ("kv_pages", "Pages of the pool", lambda s: s.pages_total),
    ("kv_pages_used", "Pages that a live sequence refers to", lambda s: s.pages_used),
    ("kv_pages_cached", "Pages kept for later prompts", lambda s: s.pages_cached),
    ("kv_cache_usage_perc", "Used part of the pool, 0 to 1", lambda s: s.pages_used / max(1, s.pages_total)),
)
_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("prefix_cache_queries", "Prompt tokens looked up in the prefix cache", lambda s: s.prefix_queries),
    ("prefix_cache_hits", "Prompt tokens found in the prefix cache", lambda s: s.prefix_hits),
    ("prompt_tokens", "Prompt tokens prefilled", lambda s: s.prompt_tokens),
    ("generation_tokens", "Tokens generated", lambda s: s.generation_tokens),
    ("steps", "Decode steps", lambda s: s.steps),
    ("step_rows", "Rows of all decode steps; over steps: rows per step", lambda s: s.decode_rows),
    ("kv_forks", "Sequences forked", lambda s: s.forks),
    ("num_preemptions", "Sequences preempted", lambda s: s.preemptions),
)
_PER_GUIDE: tuple[tuple[str, str, Callable[[EngineStats], dict[str, int] | dict[str, float]]], ...] = (
    ("reward_batches", "Batches scored", lambda s: s.score_batches),
    ("reward_items", "Answers scored", lambda s: s.score_items),
    ("reward_latency_seconds", "Seconds spent scoring", lambda s: s.score_seconds),
    ("guide_errors", "Failures of a guide", lambda s: s.guide_errors),
    ("model_tokens", "Tokens processed by each model, the base included", lambda s: s.model_tokens),
)


class EngineCollector(Collector):
    """Reads the engine's counters when they are asked for, so that counting costs the engine nothing here."""

    def __init__(self, stats: EngineStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Every counter and gauge of the engine."""
        for name, text, read in _GAUGES:
            yield GaugeMetricFamily(f"trimtab:{name}", text, value=read(self._stats))
        for name, text, read in _COUNTERS:
            yield CounterMetricFamily(f"trimtab:{name}", text, value=read(self._stats))
        for name, text, per_guide in _PER_GUIDE:
            family = CounterMetricFamily(f"trimtab:{name}", text, labels=["guide"])
            for guide, value in dict(per_guide(self._stats)).items():
                family.add_metric([guide], value)
            yield family


class Metrics:
    """Histograms observed per request, and the engine's own numbers."""

    def __init__(self, stats: EngineStats) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(EngineCollector(stats))

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"trimtab:{name}", text, ["strategy"], buckets=buckets, registry=self.registry)

        self.first_token = histogram("time_to_first_token_seconds", "Until the first text", FIRST_TOKEN)
        self.between_tokens = histogram("inter_token_latency_seconds", "Between texts", BETWEEN_TOKENS)
        self.whole = histogram("e2e_request_latency_seconds", "Until the result", WHOLE_REQUEST)
        self.queue = histogram("request_queue_time_seconds", "Until admission", FIRST_TOKEN)
        self.candidates = histogram("candidates_per_request", "Answers considered", CANDIDATES)
        self.candidate_tokens = histogram("candidate_tokens", "Tokens of all candidates", CANDIDATE_TOKENS)
        self.interventions = histogram("intervention_rate", "Share of an answer's tokens that steering changed", SHARES)
        self.success = Counter(
            "trimtab:request_success",
            "Choices delivered",
            ["finished_reason", "strategy"],
            registry=self.registry,
        )
        self.stopped = Counter(
            "trimtab:request_stopped",
            "Results by what ended the search: finished, abstained, or a part of the budget",
            ["by", "strategy"],
            registry=self.registry,
        )
        self.failed = Counter(
            "trimtab:request_failure",
            "Requests without a result",
            ["reason", "strategy"],
            registry=self.registry,
        )

    def start(self, strategy: str) -> "RequestTimer":
        """Begin to time one prompt."""
        between = self.between_tokens.labels(strategy)
        return RequestTimer(self, strategy, between, time.perf_counter())

    def render(self) -> bytes:
        """Everything in the text format of Prometheus."""
        return generate_latest(self.registry)


@dataclass(slots=True)
class RequestTimer:
    """The clock of one prompt; its methods belong to the event loop's thread."""

    metrics: Metrics
    strategy: str
    between: Histogram
    started: float
    last: dict[int, float] = field(default_factory=dict)
    """per choice: when its last text came"""

    def observe(self, event: Event, now: float) -> None:
        """Account for one event; `now` is a reading of time.perf_counter."""
        if isinstance(event, Delta):
            before = self.last.get(event.choice)
            if before is not None:
                self.between.observe(now - before)
            elif not self.last:
                self.metrics.first_token.labels(self.strategy).observe(now - self.started)
            self.last[event.choice] = now
        elif isinstance(event, Result):
            self._finish(event, now)
        elif isinstance(event, Failure):
            self.metrics.failed.labels("error", self.strategy).inc()

    def cancelled(self) -> None:
        """The client gave up, or another prompt of its request failed."""
        self.metrics.failed.labels("cancelled", self.strategy).inc()

    def _finish(self, result: Result, now: float) -> None:
        metrics, strategy = self.metrics, self.strategy
        metrics.stopped.labels(result.stopped_by, strategy).inc()
        metrics.whole.labels(strategy).observe(now - self.started)
        metrics.queue.labels(strategy).observe(result.usage.milliseconds.get("queue", 0.0) / 1000)
        metrics.candidates.labels(strategy).observe(len(result.candidates))
        metrics.candidate_tokens.labels(strategy).observe(sum(c.tokens for c in result.candidates))
        for choice in result.choices:
            metrics.success.labels(choice.finish_reason, strategy).inc()
            if choice.steering is not None and choice.steering.intervention_rate is not None:
                metrics.interventions.labels(strategy).observe(choice.steering.intervention_rate)
