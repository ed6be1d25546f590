"""The metrics of several replicas as one text, and what the dashboard makes of them."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from measured import measured
from prometheus_client.parser import text_string_to_metric_families

from trimtab.cluster.scrape import merged

ROOT = Path(__file__).resolve().parents[2]
ONE = measured().render().decode()
BOTH = merged({"left": ONE, "right": ONE, "gone": None})
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (name, frozenset(labels.items())): value
        for family in text_string_to_metric_families(text)
        for name, labels, value, *_ in family.samples
    }


def test_every_sample_of_every_replica_is_there_once() -> None:
    single, both = samples(ONE), samples(BOTH)
    for replica in ("left", "right"):
        own = {("instance", replica)}
        assert {(name, labels - own): value for (name, labels), value in both.items() if own <= labels} == single | {
            ("trimtab:replica_up", frozenset()): 1.0
        }
    assert both["trimtab:replica_up", frozenset({("instance", "gone")})] == 0.0
    assert len(both) == 2 * len(single) + 3


def test_families_are_whole_and_told_once() -> None:
    heads = re.findall(r"^# TYPE (\S+)", BOTH, re.M)
    assert len(heads) == len(set(heads))
    seen: list[str] = []
    for line in BOTH.splitlines():
        family = line.split(" ", 3)[2] if line[0] == "#" else seen[-1]
        if not seen or seen[-1] != family:
            seen.append(family)
    assert len(seen) == len(set(seen))


def test_labels_with_spaces_and_braces_stay_whole() -> None:
    text = '# HELP a text\n# TYPE a gauge\na{b="c {d} e"} 1\n# HELP f g\n# TYPE f gauge\nf 2\n'
    assert 'a{instance="x",b="c {d} e"} 1\n' in merged({"x": text})
    assert 'f{instance="x"} 2\n' in merged({"x": text})


@needs_promtool
def test_prometheus_reads_it() -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input=BOTH, capture_output=True, text=True, timeout=60)
    left = [line for line in done.stderr.splitlines() if not line.endswith("metric names should not contain ':'")]
    assert left == []


@needs_promtool
def test_the_dashboard_sums_over_replicas(tmp_path: Path) -> None:
    """Each line of it draws as many series for two replicas as for one, but for those that name the instance."""
    panels = json.loads((ROOT / "deploy/grafana/dashboard.json").read_text())["panels"]
    lines = [
        target["expr"]
        for panel in panels
        for target in panel.get("targets", ())
        if "instance" not in target["legendFormat"]
    ]
    for name, value in (("model", ".*"), ("strategy", ".*"), ("__rate_interval", "5m"), ("__range", "5m")):
        lines = [line.replace(f"${name}", value) for line in lines]
    inputs = [
        {
            "series": f"{name}{{{','.join(f'{key}={json.dumps(value)}' for key, value in sorted(labels))}}}",
            "values": "1+1x20",
        }
        for name, labels in samples(BOTH)
    ]
    zero = [{"labels": "{}", "value": 0}]
    cases = [
        {"expr": f"count({line}) - count({_of_left(line)})", "eval_time": "10m", "exp_samples": zero} for line in lines
    ]
    (tmp_path / "sums.yml").write_text(
        yaml.safe_dump({"tests": [{"interval": "1m", "input_series": inputs, "promql_expr_test": cases}]})
    )
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "sums.yml")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _of_left(line: str) -> str:
    """PromQL for one of the two replicas alone."""
    return re.sub(
        r"((?:trimtab:|process_)\w+)(\{)?",
        lambda found: f'{found[1]}{{instance="left"{"," if found[2] else "}"}',
        line,
    )
