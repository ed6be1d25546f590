"""Write dashboard.json, Grafana's view of trimtab: `python deploy/grafana/dashboard.py`.

A panel is one entry of ROWS; what Grafana wants around it is added below.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MODEL = '{model=~"$model"}'
STRATEGY = '{model=~"$model", strategy=~"$strategy"}'
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS, HEIGHT = 24, 8


@dataclass(frozen=True)
class Panel:
    """One panel; `lines` are PromQL by legend."""

    title: str
    lines: dict[str, str]
    unit: str = "short"
    about: str = ""
    kind: str = "timeseries"
    width: int = 8


def rate(metric: str, by: str, where: str = "") -> str:
    """How fast a counter grows per second, summed up to the labels `by`."""
    return f"sum by ({by}) (rate(trimtab:{metric}{where}[$__rate_interval]))"


def quantiles(metric: str, by: str, where: str) -> dict[str, str]:
    """The median and the slowest twentieth and hundredth of a histogram."""
    buckets = rate(f"{metric}_bucket", f"{by}, le", where)
    return {f"{{{{{by}}}}} p{q}": f"histogram_quantile(0.{q}, {buckets})" for q in (50, 95, 99)}


def mean(metric: str, by: str, where: str) -> dict[str, str]:
    """The mean of a histogram."""
    return {f"{{{{{by}}}}}": f"{rate(f'{metric}_sum', by, where)} / {rate(f'{metric}_count', by, where)}"}


ROWS: dict[str, tuple[Panel, ...]] = {
    "Requests": (
        Panel("Answers", {"{{strategy}}": rate("request_success_total", "strategy", STRATEGY)}, "reqps"),
        Panel("Finish reasons", {"{{finished_reason}}": rate("request_success_total", "finished_reason", STRATEGY)}),
        Panel("What ended a search", {"{{by}}": rate("request_stopped_total", "by", STRATEGY)}),
        Panel("Requests without a result", {"{{reason}}": rate("request_failure_total", "reason", STRATEGY)}, "reqps"),
        Panel("HTTP responses by status", {"{{status}}": rate("http_responses_total", "status")}, "reqps"),
        Panel("HTTP responses by route", {"{{route}}": rate("http_responses_total", "route")}, "reqps"),
        Panel(
            "Refused requests",
            {"{{reason}}": rate("request_refused_total", "reason", '{model=~"$model|unknown"}')},
            "reqps",
            "Rate limits and policies refuse before the model is known: these count for every model.",
        ),
        Panel(
            "Queue",
            {
                "{{model}} running": f"sum by (model) (trimtab:num_requests_running{MODEL})",
                "{{model}} waiting": f"sum by (model) (trimtab:num_requests_waiting{MODEL})",
            },
        ),
        Panel("Time in the queue", quantiles("request_queue_time_seconds", "model", STRATEGY), "s"),
    ),
    "Latency by strategy": (
        Panel("Time to first token", quantiles("time_to_first_token_seconds", "strategy", STRATEGY), "s"),
        Panel("Between tokens", quantiles("inter_token_latency_seconds", "strategy", STRATEGY), "s"),
        Panel("End to end", quantiles("e2e_request_latency_seconds", "strategy", STRATEGY), "s"),
    ),
    "Engine": (
        Panel("Engines", {"{{model}} {{instance}}": f"trimtab:engine_up{MODEL}"}, kind="stat", about="0: stopped"),
        Panel(
            "Served", {"{{model}} {{version}}": f"max by (model, version) (trimtab:server_info{MODEL})"}, kind="stat"
        ),
        Panel(
            "Tokens per second",
            {
                "{{model}} prompt": rate("prompt_tokens_total", "model", MODEL),
                "{{model}} generated": rate("generation_tokens_total", "model", MODEL),
            },
        ),
        Panel("Rows per step", quantiles("rows_per_step", "model", MODEL), about="Sequences in one forward"),
        Panel(
            "Strategies per step",
            quantiles("strategies_per_step", "model", MODEL),
            about="Above 1: requests of several strategies share a forward",
        ),
        Panel("Rows now", {"{{model}}": f"sum by (model) (trimtab:rows{MODEL})"}),
        Panel("KV cache in use", {"{{model}} {{instance}}": f"trimtab:kv_cache_usage_perc{MODEL}"}, "percentunit"),
        Panel(
            "KV pages",
            {
                "{{model}} used": f"sum by (model) (trimtab:kv_pages_used{MODEL})",
                "{{model}} cached": f"sum by (model) (trimtab:kv_pages_cached{MODEL})",
                "{{model}} pinned": f"sum by (model) (trimtab:prefix_pages_pinned{MODEL})",
                "{{model}} all": f"sum by (model) (trimtab:kv_pages{MODEL})",
            },
        ),
        Panel(
            "Prefix cache hit rate",
            {
                "{{model}}": f"{rate('prefix_cache_hits_total', 'model', MODEL)}"
                f" / {rate('prefix_cache_queries_total', 'model', MODEL)}"
            },
            "percentunit",
        ),
        Panel("Preemptions", {"{{model}}": rate("num_preemptions_total", "model", MODEL)}, "ops", width=12),
        Panel("Forks", {"{{model}}": rate("kv_forks_total", "model", MODEL)}, "ops", width=12),
    ),
    "Search and steering": (
        Panel("Candidates per request", mean("candidates_per_request", "strategy", STRATEGY)),
        Panel("Tokens of all candidates", mean("candidate_tokens", "strategy", STRATEGY)),
        Panel(
            "Intervention rate",
            mean("intervention_rate", "strategy", STRATEGY),
            "percentunit",
            "Share of an answer's tokens that steering changed",
        ),
        Panel("Settings that auto chose", {"{{setting}}": rate("auto_choices_total", "setting", MODEL)}, "reqps"),
    ),
    "Guides": (
        Panel("Latency of a batch", quantiles("reward_latency_seconds", "guide", MODEL), "s"),
        Panel("Answers per batch", mean("reward_batch_size", "guide", MODEL)),
        Panel("Tokens per second by model", {"{{guide}}": rate("model_tokens_total", "guide", MODEL)}),
        Panel("Errors", {"{{guide}}": rate("guide_errors_total", "guide", MODEL)}, "ops", width=12),
        Panel(
            "Open circuits",
            {"{{guide}} {{instance}}": f"trimtab:guide_circuit_open{MODEL}"},
            about="1: requests that need the guide get a 503",
            width=12,
        ),
    ),
    "Other servers": (
        Panel(
            "Reached",
            {"{{remote}} {{instance}}": f"trimtab:remote_up{MODEL}"},
            kind="stat",
            about="0: what runs there cannot be used",
        ),
        Panel("Calls", {"{{remote}} {{outcome}}": rate("remote_calls_total", "remote, outcome", MODEL)}, "ops"),
        Panel("Time of a call", quantiles("remote_call_seconds", "remote", MODEL), "s"),
        Panel(
            "Calls now",
            {
                "{{remote}} under way": f"sum by (remote) (trimtab:remote_calls_in_flight{MODEL})",
                "{{remote}} waiting": f"sum by (remote) (trimtab:remote_calls_waiting{MODEL})",
            },
            about="Those that wait find all `connections` taken",
        ),
        Panel("Failed attempts", {"{{remote}} {{kind}}": rate("remote_failures_total", "remote, kind", MODEL)}, "ops"),
        Panel(
            "Sent again",
            {
                "{{remote}} after a failure": rate("remote_retries_total", "remote", MODEL),
                "{{remote}} because it was late": rate("remote_hedges_total", "remote", MODEL),
            },
            "ops",
        ),
    ),
    "Norms": (
        Panel("Norms stored", {"{{instance}}": "trimtab:norms"}, kind="stat"),
        Panel("Norms found for queries", {"{{instance}}": rate("norms_retrieved_total", "instance")}, "ops"),
        Panel("Time to find norms", quantiles("norms_retrieval_seconds", "instance", ""), "s"),
    ),
    "Callers and process": (
        Panel("Model tokens per second by caller", {"{{caller}}": rate("caller_model_tokens_total", "caller")}),
        Panel("Memory", {"{{instance}}": 'process_resident_memory_bytes{job="trimtab"}'}, "bytes"),
        Panel("Cores in use", {"{{instance}}": 'rate(process_cpu_seconds_total{job="trimtab"}[$__rate_interval])'}),
        Panel("Open files", {"{{instance}}": 'process_open_fds{job="trimtab"}'}),
        Panel(
            "Running since",
            {"{{instance}}": 'process_start_time_seconds{job="trimtab"} * 1000'},
            "dateTimeFromNow",
            kind="stat",
        ),
        Panel("Reloads", {"{{outcome}}": "sum by (outcome) (increase(trimtab:config_reloads_total[$__range]))"}),
    ),
}


def panels() -> Iterator[dict[str, Any]]:
    """Every panel as Grafana has it, from left to right and from top to bottom."""
    top = number = 0
    for title, row in ROWS.items():
        number += 1
        grid = {"x": 0, "y": top, "w": COLUMNS, "h": 1}
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "gridPos": grid, "panels": []}
        top, left = top + 1, 0
        for panel in row:
            if left + panel.width > COLUMNS:
                top, left = top + HEIGHT, 0
            number += 1
            yield {
                "id": number,
                "type": panel.kind,
                "title": panel.title,
                "description": panel.about,
                "datasource": SOURCE,
                "gridPos": {"x": left, "y": top, "w": panel.width, "h": HEIGHT},
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "options": {"textMode": "value_and_name"} if panel.kind == "stat" else {"tooltip": {"mode": "multi"}},
                "targets": [
                    {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
                    for i, (legend, expr) in enumerate(panel.lines.items())
                ],
            }
            left += panel.width
        top += HEIGHT


def variable(name: str, query: str) -> dict[str, Any]:
    """A choice of several values of a label, all of them at first."""
    return {
        "name": name,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def dashboard() -> dict[str, Any]:
    """The whole dashboard."""
    return {
        "uid": "trimtab",
        "title": "trimtab",
        "tags": ["trimtab"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "timezone": "browser",
        "time": {"from": "now-1h", "to": "now"},
        "annotations": {"list": []},
        "links": [],
        "templating": {
            "list": [
                {"name": "datasource", "label": "data source", "type": "datasource", "query": "prometheus"},
                variable("model", "label_values(trimtab:num_requests_running, model)"),
                variable("strategy", 'label_values(trimtab:request_stopped_total{model=~"$model"}, strategy)'),
            ]
        },
        "panels": list(panels()),
    }


def render() -> str:
    """The file's text."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".json").write_text(render(), encoding="utf-8")
