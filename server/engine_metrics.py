"""The engines' own numbers as Prometheus families, read when they are asked for."""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from trimtab.engine.remote.stats import RemoteStats
from trimtab.engine.results import EngineStats
from trimtab.engine.tally import Tally

Engines = Callable[[], Mapping[str, EngineStats]]
"""the numbers of every served model by its name, as they are now"""

_Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily
_Number = float | Tally

_PER_MODEL: tuple[tuple[type[_Family], str, str, Callable[[EngineStats], _Number]], ...] = (
    (
        GaugeMetricFamily,
        "engine_up",
        "0 once the engine has stopped after repeated errors",
        lambda s: not s.stopped,
    ),
    (GaugeMetricFamily, "num_requests_running", "Requests that hold rows", lambda s: s.running),
    (GaugeMetricFamily, "num_requests_waiting", "Requests that wait for rows or pages", lambda s: s.waiting),
    (GaugeMetricFamily, "rows", "Sequences that decode now", lambda s: s.rows),
    (GaugeMetricFamily, "kv_pages", "Pages of the pool", lambda s: s.pages_total),
    (GaugeMetricFamily, "kv_pages_used", "Pages that a live sequence refers to", lambda s: s.pages_used),
    (GaugeMetricFamily, "kv_pages_cached", "Pages kept for later prompts", lambda s: s.pages_cached),
    (
        GaugeMetricFamily,
        "prefix_pages_pinned",
        "Pages of constant prefixes, given up after all others",
        lambda s: s.pages_pinned,
    ),
    (
        GaugeMetricFamily,
        "kv_cache_usage_perc",
        "Used part of the pool, 0 to 1",
        lambda s: s.pages_used / max(1, s.pages_total),
    ),
    (
        CounterMetricFamily,
        "prefix_cache_queries",
        "Prompt tokens looked up in the prefix cache",
        lambda s: s.prefix_queries,
    ),
    (CounterMetricFamily, "prefix_cache_hits", "Prompt tokens found in the prefix cache", lambda s: s.prefix_hits),
    (CounterMetricFamily, "prompt_tokens", "Prompt tokens prefilled", lambda s: s.prompt_tokens),
    (CounterMetricFamily, "generation_tokens", "Tokens generated", lambda s: s.generation_tokens),
    (CounterMetricFamily, "kv_forks", "Sequences forked", lambda s: s.forks),
    (CounterMetricFamily, "num_preemptions", "Sequences preempted", lambda s: s.preemptions),
    (HistogramMetricFamily, "rows_per_step", "Sequences of one decode step", lambda s: s.rows_per_step),
    (
        HistogramMetricFamily,
        "strategies_per_step",
        "Strategies whose requests share a decode step",
        lambda s: s.strategies_per_step,
    ),
)
_PER_GUIDE: tuple[tuple[type[_Family], str, str, Callable[[EngineStats], Mapping[str, _Number]]], ...] = (
    (
        GaugeMetricFamily,
        "guide_circuit_open",
        "1 while requests that need the guide are refused",
        lambda s: s.guide_circuit,
    ),
    (CounterMetricFamily, "guide_errors", "Failures of a guide", lambda s: s.guide_errors),
    (
        CounterMetricFamily,
        "model_tokens",
        "Tokens processed by each model, the base included",
        lambda s: s.model_tokens,
    ),
    (HistogramMetricFamily, "reward_batch_size", "Answers scored in one batch", lambda s: s.reward_batch_size),
    (HistogramMetricFamily, "reward_latency_seconds", "Seconds to score one batch", lambda s: s.reward_latency),
)
_PER_REMOTE: tuple[tuple[type[_Family], str, str, Callable[[RemoteStats], _Number]], ...] = (
    (GaugeMetricFamily, "remote_up", "0 while another server cannot be reached", lambda s: not s.lost),
    (GaugeMetricFamily, "remote_calls_in_flight", "Calls to another server under way", lambda s: s.in_flight),
    (GaugeMetricFamily, "remote_calls_waiting", "Calls that wait for one of its connections", lambda s: s.waiting),
    (CounterMetricFamily, "remote_retries", "Calls sent again after a failure", lambda s: s.retries),
    (CounterMetricFamily, "remote_hedges", "Calls sent twice because the answer was late", lambda s: s.hedges),
    (HistogramMetricFamily, "remote_call_seconds", "Seconds of a call that succeeded", lambda s: s.seconds),
)


class EngineCollector(Collector):
    """Reads the engines' numbers when they are asked for, so that counting costs the engines nothing here."""

    def __init__(self, engines: Engines, version: str) -> None:
        self._engines = engines
        self._version = version

    def collect(self) -> Iterator[Metric]:
        """Every number of every engine, labelled with its model."""
        engines = dict(self._engines())
        info = InfoMetricFamily("trimtab:server", "The version, and the models that are served", labels=["model"])
        for model in engines:
            info.add_metric([model], {"version": self._version})
        yield info
        for kind, name, text, read in _PER_MODEL:
            family = kind(f"trimtab:{name}", text, labels=["model"])
            for model, stats in engines.items():
                add(family, [model], read(stats))
            yield family
        for kind, name, text, per_guide in _PER_GUIDE:
            family = kind(f"trimtab:{name}", text, labels=["model", "guide"])
            for model, stats in engines.items():
                for guide, number in dict(per_guide(stats)).items():
                    add(family, [model, guide], number)
            yield family
        yield from _remotes({(model, name): s for model, e in engines.items() for name, s in dict(e.remotes).items()})


def _remotes(remotes: Mapping[tuple[str, str], RemoteStats]) -> Iterator[Metric]:
    """Every number of the calls to other servers, by model and by what the server runs for it."""
    for kind, name, text, read in _PER_REMOTE:
        family = kind(f"trimtab:{name}", text, labels=["model", "remote"])
        for where, stats in remotes.items():
            add(family, [*where], read(stats))
        yield family
    calls = CounterMetricFamily(
        "trimtab:remote_calls",
        "Calls to another server: ok, failed or cancelled",
        labels=["model", "remote", "outcome"],
    )
    failures = CounterMetricFamily(
        "trimtab:remote_failures", "Attempts at calls that failed, by how", labels=["model", "remote", "kind"]
    )
    for where, stats in remotes.items():
        attempts = dict(stats.failures)
        succeeded, failed = sum(stats.seconds.counts), max(0, sum(attempts.values()) - stats.retries)
        ended = {"ok": succeeded, "failed": failed, "cancelled": max(0, stats.calls - succeeded - failed)}
        for outcome, count in ended.items():
            calls.add_metric([*where, outcome], count)
        for how, count in attempts.items():
            failures.add_metric([*where, how], count)
    yield calls
    yield failures


def add(family: _Family, labels: list[str], number: _Number) -> None:
    """A number, or a tally as cumulative buckets; its counts are copied, since the engine's thread may count on."""
    if isinstance(family, HistogramMetricFamily):
        assert isinstance(number, Tally)
        bounds = [*map(floatToGoString, number.bounds), "+Inf"]
        family.add_metric(labels, list(zip(bounds, accumulate(list(number.counts)), strict=True)), number.sum)
    else:
        assert not isinstance(number, Tally)
        family.add_metric(labels, number)
