"""What deploy/ ships: rules, dashboard, compose and Kubernetes files, checked against the server that they are for."""

import json
import re
import runpy
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from measured import exposed, measured
from prometheus_client.parser import text_string_to_metric_families

from trimtab.engine.errors import TrimtabError
from trimtab.server.settings import Settings, load_settings

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
METRICS = exposed(measured())

# Exposed, and told by neither the dashboard nor an alert.
UNSEEN = {
    "process_virtual_memory_bytes": "address space, which says nothing of memory in use",
    "process_max_fds": "a limit of the system that does not change",
}
TARGET_LABELS = {"job", "instance", "le"}

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def promtool(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY, input=text, capture_output=True, text=True, timeout=60, check=False
    )


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def rules() -> Iterator[dict[str, Any]]:
    for group in read("rules.yml")["groups"]:
        yield from group["rules"]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def panels() -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], json.loads((DEPLOY / "grafana/dashboard.json").read_text())["panels"])


def targets() -> dict[str, tuple[str, str]]:
    """PromQL and legend of every line of the dashboard, with a range for each variable."""
    found = {}
    for panel in panels():
        for target in panel.get("targets", ()):
            expr = target["expr"]
            for name, value in (("model", ".*"), ("strategy", ".*"), ("__rate_interval", "5m"), ("__range", "5m")):
                expr = expr.replace(f"${name}", value)
            assert "$" not in expr
            found[f"{panel['title']}: {target['legendFormat']}"] = (expr, target["legendFormat"])
    return found


def family(series: str) -> str:
    """The name that a series is exposed under; the histogram of a bucket, sum or count."""
    base = re.sub("_(bucket|sum|count)$", "", series)
    return base if METRICS.get(base, ("",))[0] == "histogram" else series


def selectors(expr: str) -> Iterator[tuple[str, set[str]]]:
    """The exposed metrics that PromQL names, each with the labels that it matches."""
    for name, braces in re.findall(r"(?<![\w:])((?:trimtab:|process_)\w+)(\{[^}]*\})?", expr):
        yield family(name), set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", braces))


EXPRS = {**{name: expr for name, (expr, _) in targets().items()}, **{
    rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()
}}  # fmt: skip


@pytest.mark.parametrize("name", EXPRS)
def test_expressions_name_metrics_and_labels_that_exist(name: str) -> None:
    expr = EXPRS[name]
    known = set(TARGET_LABELS)
    for metric, matched in selectors(expr):
        assert metric in METRICS
        assert matched <= {*METRICS[metric][1], *TARGET_LABELS}
        known |= set(METRICS[metric][1])
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for record in re.findall(r"job_instance\w*:\w+:\w+", expr):
        assert record in recorded
    for grouped in re.findall(r"by \(([^)]*)\)", expr):
        assert set(grouped.split(", ")) <= known


def test_every_metric_is_seen_somewhere() -> None:
    seen = {metric for expr in EXPRS.values() for metric, _ in selectors(expr)}
    assert METRICS.keys() - seen == UNSEEN.keys()


@needs_promtool
def test_promtool_finds_nothing_wrong() -> None:
    for arguments in (("check", "config", "prometheus.yml"), ("check", "rules", "rules.yml")):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_every_alert_fires_where_it_should_and_nowhere_else() -> None:
    done = promtool("test", "rules", "rules.test.yml")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_reads_what_the_server_exposes() -> None:
    done = promtool("check", "metrics", text=measured().render().decode())
    left = [line for line in done.stderr.splitlines() if not line.endswith("metric names should not contain ':'")]
    assert left == []  # the colon is vLLM's, and wanted


@needs_promtool
def test_every_line_of_the_dashboard_draws_something(tmp_path: Path) -> None:
    """Prometheus evaluates each on what the server exposes, growing: a line that finds no series draws nothing."""
    series = []
    for exposed_family in text_string_to_metric_families(measured().render().decode()):
        for name, labels, value, *_ in exposed_family.samples:
            text = ",".join(f"{key}={json.dumps(each)}" for key, each in {**labels, "job": "trimtab"}.items())
            series.append({"series": f"{name}{{{text}}}", "values": f"{value}+1x20"})
    drawn = [
        {"expr": f"count({expr}) > bool 0", "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": 1}]}
        for expr, _ in targets().values()
    ]
    tests = [{"interval": "1m", "input_series": series, "promql_expr_test": drawn}]
    (tmp_path / "drawn.yml").write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": tests}))
    done = promtool("test", "rules", str(tmp_path / "drawn.yml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", targets())
def test_legends_show_labels_that_the_line_keeps(name: str) -> None:
    expr, legend = targets()[name]
    kept = re.findall(r"by \(([^)]*)\)", expr)
    (metric, _), *_ = selectors(expr)
    labels = set.intersection(*(set(each.split(", ")) for each in kept)) if kept else {*METRICS[metric][1], "instance"}
    assert set(re.findall(r"\{\{(\w+)\}\}", legend)) <= labels - {"le"}


def test_the_dashboard_is_what_its_script_writes() -> None:
    script = runpy.run_path(str(DEPLOY / "grafana/dashboard.py"))
    assert (DEPLOY / "grafana/dashboard.json").read_text() == script["render"](), "run deploy/grafana/dashboard.py"


def test_panels_fit_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in panels()}) == len(panels())
    assert len({panel["title"] for panel in panels()}) == len(panels())


def test_the_dashboards_variables_are_those_it_uses() -> None:
    text = (DEPLOY / "grafana/dashboard.json").read_text()
    variables = {each["name"]: each for each in json.loads(text)["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    assert used == variables.keys() == {"datasource", "model", "strategy"}
    for name in ("model", "strategy"):
        metric, label = re.findall(r"label_values\((trimtab:\w+).*, (\w+)\)", variables[name]["definition"])[0]
        assert label in METRICS[metric][1]


def test_each_alert_has_a_runbook_and_both_kinds_of_test() -> None:
    cases = [case for test in read("rules.test.yml")["tests"] for case in test["alert_rule_test"]]
    headings = re.findall(r"^### (Trimtab\w+)$", (ROOT / "docs/operations.md").read_text(), re.M)
    assert headings == list(alerts())
    for name, rule in alerts().items():
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{name.lower()}"
        assert rule["labels"]["severity"] in {"warning", "critical"}
        mine = [bool(case.get("exp_alerts")) for case in cases if case["alertname"] == name]
        assert set(mine) == {True, False}, name


def test_series_of_the_rules_tests_could_come_from_the_server() -> None:
    for test in read("rules.test.yml")["tests"]:
        for each in test["input_series"]:
            for metric, labels in selectors(each["series"]):
                assert labels - TARGET_LABELS == set(METRICS[metric][1]), each["series"]


def in_the_image(path: Path) -> bool:
    """Whether .dockerignore lets a path of the repository into the image; the last pattern that fits decides."""
    lets = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and any(fnmatch(str(each), pattern) for each in (path, *path.parents)):
            lets = line.startswith("!")
    return lets


def test_the_image_has_what_the_package_links_to() -> None:
    links = [path for path in (ROOT / "src/trimtab").iterdir() if path.is_symlink()]
    assert links
    for link in links:
        for path in link.resolve().rglob("*.py"):
            assert in_the_image(path.relative_to(ROOT)), f"src/trimtab/{link.name} has no {path.name} in the image"
    assert not in_the_image(Path("benchmarks/replicas.py"))
    assert not in_the_image(Path("tests/test_deploy.py"))


@pytest.fixture
def compose() -> dict[str, Any]:
    return cast(dict[str, Any], read("compose.yaml"))


@pytest.fixture
def kubernetes() -> dict[str, Any]:
    """The objects by kind."""
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


@pytest.fixture
def pod(kubernetes: dict[str, Any]) -> dict[str, Any]:
    return cast(dict[str, Any], kubernetes["Deployment"]["spec"]["template"]["spec"])


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod["containers"]
    return cast(dict[str, Any], only)


@pytest.fixture
def settings() -> Settings:
    return load_settings(DEPLOY / "trimtab.yaml")


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_the_example_configuration_loads_and_a_mistake_in_it_does_not(settings: Settings, tmp_path: Path) -> None:
    assert settings.presets
    assert settings.keys
    text = (DEPLOY / "trimtab.yaml").read_text()
    (tmp_path / "wrong.yaml").write_text(text.replace("max_rows", "max_row"))
    with pytest.raises(TrimtabError, match="max_row"):
        load_settings(tmp_path / "wrong.yaml")


def test_images_are_pinned(compose: dict[str, Any], container: dict[str, Any]) -> None:
    images = [container["image"], *(service["image"] for service in compose["services"].values())]
    for image in images:
        assert re.fullmatch(r".*:v?\d+\.\d+\.\d+", image)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert images[0] == compose["services"]["server"]["image"] == f"trimtab:{version}"


def test_ports_agree(
    settings: Settings, compose: dict[str, Any], kubernetes: dict[str, Any], container: dict[str, Any]
) -> None:
    port = settings.server.port
    assert f"EXPOSE {port}\n" in (ROOT / "Dockerfile").read_text()
    server = compose["services"]["server"]
    assert server["environment"]["TRIMTAB_SERVER__PORT"] == str(port)
    assert server["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"127.0.0.1:{port}/health" in server["healthcheck"]["test"][-1]
    (job,) = read("prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{port}"]}]
    assert container["ports"] == [{"name": "http", "containerPort": port}]
    assert {"name": "TRIMTAB_SERVER__PORT", "value": str(port)} in container["env"]
    (service_port,) = kubernetes["Service"]["spec"]["ports"]
    assert (service_port["port"], service_port["targetPort"]) == (port, "http")
    annotations = kubernetes["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(port)


def test_the_variables_configure_what_they_mean_to(
    compose: dict[str, Any], container: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one that the server reads, or one that the configuration names; a bare TRIMTAB_PORT is neither."""
    names = [each["name"] for each in container["env"]]
    assert set(names) == compose["services"]["server"]["environment"].keys()
    named = {key.env for key in load_settings(DEPLOY / "trimtab.yaml").keys.values()}
    for name in names:
        assert name in named or re.fullmatch(r"TRIMTAB_[A-Z]+__\w+", name)
    monkeypatch.setenv("TRIMTAB_SERVER__PORT", "8123")
    monkeypatch.setenv("TRIMTAB_PORT", "tcp://10.0.0.1:8000")
    assert load_settings(DEPLOY / "trimtab.yaml").server.port == 8123


def test_compose_waits_restarts_and_shows_nothing_outside(compose: dict[str, Any], settings: Settings) -> None:
    for name, service in compose["services"].items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert service["cap_drop"] == ["ALL"], name
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert (DEPLOY / source).is_file() if source.startswith(".") else source in compose["volumes"], volume
    server = compose["services"]["server"]
    assert seconds(server["stop_grace_period"]) > settings.server.shutdown_timeout
    assert server["read_only"] is True
    assert "cache:/cache" in server["volumes"]
    assert (DEPLOY / server["build"]["context"] / "Dockerfile").is_file()
    provider, source = read("grafana/provider.yaml")["providers"][0], read("grafana/datasource.yaml")["datasources"][0]
    assert any(f"{provider['options']['path']}/" in each for each in compose["services"]["grafana"]["volumes"])
    assert source["url"] == "http://prometheus:9090"


def test_probes_ask_for_what_they_decide(container: dict[str, Any]) -> None:
    paths = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
    assert {kind: each["path"] for kind, each in paths.items()} == {
        "startup": "/health",
        "liveness": "/health",
        "readiness": "/ready",
    }
    assert all(each["port"] == "http" for each in paths.values())
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600


def test_a_pod_has_the_time_to_drain(pod: dict[str, Any], container: dict[str, Any], settings: Settings) -> None:
    command, pause = container["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert pod["terminationGracePeriodSeconds"] > float(pause) + settings.server.shutdown_timeout
    readiness = container["readinessProbe"]
    assert float(pause) >= readiness["periodSeconds"] * readiness["failureThreshold"]


def test_a_pod_may_do_nothing_that_it_need_not(pod: dict[str, Any], container: dict[str, Any]) -> None:
    user = int(re.findall(r"useradd --uid (\d+)", (ROOT / "Dockerfile").read_text())[0])
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == user
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    assert mounts.keys() == {"/cache", "/tmp", "/etc/trimtab"}
    assert set(mounts.values()) == {each["name"] for each in pod["volumes"]}
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}
    caches = set(re.findall(r"\b(\w+)=/cache", (ROOT / "Dockerfile").read_text()))
    assert caches == {"HF_HOME", "XDG_CACHE_HOME", "TRITON_CACHE_DIR"}


def test_the_objects_of_kubernetes_find_each_other(kubernetes: dict[str, Any], pod: dict[str, Any]) -> None:
    labels = kubernetes["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert kubernetes["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert kubernetes["Service"]["spec"]["selector"] == labels
    assert kubernetes["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    sources = {each["name"]: each for each in pod["volumes"]}
    assert sources["config"]["configMap"]["name"] == kubernetes["ConfigMap"]["metadata"]["name"]
    assert (
        sources["cache"]["persistentVolumeClaim"]["claimName"]
        == kubernetes["PersistentVolumeClaim"]["metadata"]["name"]
    )
    assert kubernetes["ConfigMap"]["data"]["trimtab.yaml"] == (DEPLOY / "trimtab.yaml").read_text()
