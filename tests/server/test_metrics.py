"""Metrics: what each event counts, under which labels, and what a scrape of several engines reads."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from measured import answered, busy, exposed, measured
from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.parser import text_string_to_metric_families
from wire import metrics as scraped

from trimtab.decoders.registry import strategies
from trimtab.engine.results import Delta, EngineStats, Failure
from trimtab.engine.tally import ROWS, Tally
from trimtab.server.metrics import REFUSALS, UNKNOWN, Metrics

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample, None where there is none."""
    return metrics.registry.get_sample_value(f"trimtab:{name}", labels)


@pytest.fixture
def metrics() -> Metrics:
    engines = {"base": busy(), "other": busy(2)}
    return Metrics(lambda: engines)


def test_every_engine_is_read_at_each_scrape() -> None:
    engines = {"a": EngineStats(running=1)}
    metrics = Metrics(lambda: engines)
    assert value(metrics, "num_requests_running", model="a") == 1
    engines["a"].running = 3
    engines["b"] = EngineStats(running=5)
    assert value(metrics, "num_requests_running", model="a") == 3
    assert value(metrics, "num_requests_running", model="b") == 5
    del engines["a"]
    assert value(metrics, "num_requests_running", model="a") is None


def test_gauges_and_counters_are_the_engines_own(metrics: Metrics) -> None:
    told = {
        "engine_up": 1,
        "num_requests_running": 2,
        "num_requests_waiting": 1,
        "rows": 5,
        "kv_pages": 100,
        "kv_pages_used": 25,
        "kv_pages_cached": 10,
        "prefix_pages_pinned": 3,
        "kv_cache_usage_perc": 0.25,
        "prefix_cache_queries_total": 90,
        "prefix_cache_hits_total": 30,
        "prompt_tokens_total": 80,
        "generation_tokens_total": 70,
        "kv_forks_total": 4,
        "num_preemptions_total": 1,
    }
    assert {name: value(metrics, name, model="base") for name in told} == told
    assert value(metrics, "model_tokens_total", model="other", guide="base") == 300
    assert value(metrics, "guide_errors_total", model="base", guide="taste") == 1
    assert value(metrics, "guide_circuit_open", model="base", guide="taste") == 0
    assert value(metrics, "reward_batch_size_sum", model="other", guide="taste") == 6


def test_calls_to_other_servers(metrics: Metrics) -> None:
    told = {"remote_up": 1, "remote_calls_in_flight": 3, "remote_calls_waiting": 4, "remote_retries_total": 1}
    told |= {"remote_hedges_total": 1, "remote_call_seconds_count": 4}
    assert {name: value(metrics, name, model="other", remote="base") for name in told} == told
    for outcome, count in (("ok", 4), ("failed", 1), ("cancelled", 3)):
        assert value(metrics, "remote_calls_total", model="other", remote="base", outcome=outcome) == count
    assert value(metrics, "remote_failures_total", model="base", remote="base", kind="connect") == 2
    stats = busy()
    stats.remotes["base"].lost = True
    assert value(Metrics(lambda: {"base": stats}), "remote_up", model="base", remote="base") == 0


def test_an_engine_that_stopped_and_a_circuit_that_opened_are_told() -> None:
    stats = busy()
    metrics = Metrics(lambda: {"base": stats})
    stats.stopped = True
    stats.guide_circuit["taste"] = 1
    assert value(metrics, "engine_up", model="base") == 0
    assert value(metrics, "guide_circuit_open", model="base", guide="taste") == 1


def test_tallies_are_the_histograms_that_prometheus_makes() -> None:
    seen = (0, 1, 1.5, 2, 64, 256, 300, 1e6)
    registry, stats = CollectorRegistry(), EngineStats()
    theirs = Histogram("trimtab:rows_per_step", "x", ["model"], buckets=ROWS, registry=registry)
    for number in seen:
        stats.rows_per_step.add(number)
        theirs.labels("base").observe(number)
    ours = Metrics(lambda: {"base": stats}).registry

    def samples(found: CollectorRegistry) -> Mapping[str, float]:
        (family,) = (f for f in found.collect() if f.name == "trimtab:rows_per_step")
        return {s.name + s.labels.get("le", ""): s.value for s in family.samples if not s.name.endswith("_created")}

    assert samples(ours) == samples(registry)
    assert samples(ours)["trimtab:rows_per_step_count"] == len(seen)


def test_a_scrape_while_the_engine_counts_is_consistent() -> None:
    """Buckets never fall, and the count is that of the last bucket, whatever is added between two reads."""

    class Moving(list[int]):
        def __iter__(self) -> Any:
            for i in range(len(self)):
                yield self[i]
                self[0] += 1

    stats = EngineStats(reward_batch_size={"taste": Tally(ROWS)})
    tally = stats.reward_batch_size["taste"]
    tally.counts = Moving(tally.counts)
    metrics = Metrics(lambda: {"base": stats})
    (family,) = (f for f in metrics.registry.collect() if f.name == "trimtab:reward_batch_size")
    buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
    assert buckets == sorted(buckets)
    assert buckets[-1] == next(s.value for s in family.samples if s.name.endswith("_count"))


def test_what_the_events_of_a_request_count(metrics: Metrics) -> None:
    labels = {"model": "base", "strategy": "best_of_n"}
    timer = metrics.start("base", "best_of_n")
    for choice, second in ((0, 0.5), (1, 0.6), (0, 0.8), (1, 0.7)):
        timer.observe(Delta(choice, "a", (1,), None), timer.started + second)
    timer.observe(answered(), timer.started + 2)
    told = {
        "time_to_first_token_seconds": (1, 0.5),
        "inter_token_latency_seconds": (2, 0.4),
        "e2e_request_latency_seconds": (1, 2.0),
        "request_queue_time_seconds": (1, 0.02),
        "candidates_per_request": (1, 2),
        "candidate_tokens": (1, 5),
        "intervention_rate": (1, 0.5),
    }
    for name, (count, total) in told.items():
        assert value(metrics, f"{name}_count", **labels) == count, name
        assert value(metrics, f"{name}_sum", **labels) == pytest.approx(total, abs=1e-6), name
    assert value(metrics, "request_success_total", finished_reason="stop", **labels) == 1
    assert value(metrics, "request_stopped_total", by="finished", **labels) == 1
    assert value(metrics, "request_failure_total", reason="error", **labels) is None


def test_failures_and_cancellations(metrics: Metrics) -> None:
    labels = {"model": "other", "strategy": "sample"}
    metrics.start("other", "sample").observe(Failure(RuntimeError()), 0.0)
    metrics.start("other", "sample").cancelled()
    metrics.start("other", "sample").cancelled()
    assert value(metrics, "request_failure_total", reason="error", **labels) == 1
    assert value(metrics, "request_failure_total", reason="cancelled", **labels) == 2


def test_tokens_look_up_no_labels(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    timer = metrics.start("base", "sample")
    timer.observe(Delta(0, "a", (1,), None), timer.started)

    def refuse(*_: Any) -> None:
        raise AssertionError("labels were looked up for a token")

    monkeypatch.setattr(Histogram, "labels", refuse)
    for second in range(100):
        timer.observe(Delta(0, "a", (1,), None), timer.started + second)
    assert timer.between._sum.get() == pytest.approx(99)


def test_clients_cannot_make_up_labels(metrics: Metrics) -> None:
    metrics.start("made up", "sample").cancelled()
    metrics.refused("made up", "policy")
    metrics.refused(None, "rate_limit")
    metrics.response(None, 404)
    assert "made up" not in metrics.render().decode()
    assert value(metrics, "request_failure_total", model=UNKNOWN, strategy="sample", reason="cancelled") == 1
    assert value(metrics, "request_refused_total", model=UNKNOWN, reason="policy") == 1
    assert value(metrics, "request_refused_total", model=UNKNOWN, reason="rate_limit") == 1
    assert value(metrics, "http_responses_total", route=UNKNOWN, status="404") == 1


def test_refusals_responses_callers_and_reloads(metrics: Metrics) -> None:
    metrics.refused("base", "queue_full")
    metrics.response("/v1/models/{model}", 200)
    metrics.response("/v1/models/{model}", 200)
    metrics.spent("app", 7)
    metrics.spent("app", 5)
    assert value(metrics, "request_refused_total", model="base", reason="queue_full") == 1
    assert value(metrics, "http_responses_total", route="/v1/models/{model}", status="200") == 2
    assert value(metrics, "caller_model_tokens_total", caller="app") == 12
    assert value(metrics, "config_last_reload_successful") == 1
    metrics.reloaded(ok=False)
    assert value(metrics, "config_last_reload_successful") == 0
    assert value(metrics, "config_reloads_total", outcome="failed") == 1
    metrics.reloaded(ok=True)
    assert value(metrics, "config_last_reload_successful") == 1
    assert value(metrics, "config_reloads_total", outcome="ok") == 1


@pytest.mark.parametrize(("code", "reason"), REFUSALS.items())
def test_the_code_of_an_error_tells_a_refusal(metrics: Metrics, code: str, reason: str) -> None:
    metrics.ended("/v1/completions", 503, "base", code)
    metrics.ended("/v1/completions", 503, "base", "engine_failed")
    metrics.ended("/v1/completions", 503, "base", None)
    assert value(metrics, "http_responses_total", route="/v1/completions", status="503") == 3
    (family,) = (f for f in metrics.registry.collect() if f.name == "trimtab:request_refused")
    told = [(s.labels, s.value) for s in family.samples if s.name.endswith("_total")]
    assert told == [({"model": "base", "reason": reason}, 1)]


def test_apps_do_not_share_a_registry() -> None:
    one, two = measured(), Metrics(dict)
    assert value(one, "caller_model_tokens_total", caller="app") == 7
    assert value(two, "caller_model_tokens_total", caller="app") is None
    assert two.registry.get_sample_value("process_resident_memory_bytes") > 1e6  # type: ignore[operator]


def test_the_text_is_what_prometheus_reads() -> None:
    text = measured().render().decode()
    families = list(text_string_to_metric_families(text))
    assert len(families) == len({family.name for family in families})
    assert all(family.samples and family.documentation and family.type != "unknown" for family in families)


def test_the_docs_list_what_is_exposed() -> None:
    table = "\n".join(
        f"| `{name}` | {kind} | {', '.join(f'`{label}`' for label in sorted(labels))} | {text.rstrip('.')} |"
        for name, (kind, labels, text) in exposed(measured()).items()
    )
    head = "| name | type | labels | meaning |\n|---|---|---|---|\n"
    assert OPERATIONS.read_text().partition(head)[2].partition("\n\n")[0] == table


def test_a_server_counts_its_answers_by_route(http: httpx2.Client, shared: Any) -> None:
    def seen() -> dict[str, float]:
        prefix = "trimtab:http_responses_total{"
        return {name: number for name, number in scraped(shared.url).items() if name.startswith(prefix)}

    before = seen()
    for path in ("/nowhere/1", "/nowhere/2", "/health"):
        http.get(path)
    after = seen()
    unrouted = f'trimtab:http_responses_total{{route="{UNKNOWN}",status="404"}}'
    assert after[unrouted] - before.get(unrouted, 0) == 2
    health = 'trimtab:http_responses_total{route="/health",status="200"}'
    assert after[health] - before.get(health, 0) == 1
    assert not any("nowhere" in name for name in after)


def test_labels_of_strategies_are_those_of_the_registry(http: httpx2.Client, shared: Any) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    assert http.post("/v1/chat/completions", json=chat | {"decoding": {"strategy": "nope"}}).status_code == 400
    assert http.post("/v1/chat/completions", json=chat | {"model": "nope"}).status_code == 404
    assert http.post("/v1/chat/completions", json=chat).status_code == 200
    families = text_string_to_metric_families(http.get("/metrics").text)
    labels = [(key, text) for family in families for s in family.samples for key, text in s.labels.items()]
    assert {text for key, text in labels if key == "strategy"} <= set(strategies())
    assert {text for key, text in labels if key == "model"} <= {"tiny", UNKNOWN}
