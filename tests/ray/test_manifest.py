"""What is shipped for a cluster: the manifest of KubeRay, checked as far as it goes without Kubernetes."""

import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from on_ray import ray
from ray.serve.schema import ServeDeploySchema

from trimtab.cluster.app import build
from trimtab.cluster.placing import server_settings
from trimtab.cluster.settings import ClusterSettings

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


@pytest.fixture
def spec() -> dict[str, Any]:
    manifest = yaml.safe_load((DEPLOY / "ray/rayservice.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    return cast(dict[str, Any], manifest["spec"])


@pytest.fixture
def application(spec: dict[str, Any]) -> Any:
    config = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"]))
    (only,) = config.applications
    return only


def arguments(application: Any) -> ClusterSettings:
    """Of the manifest, with the file that the ConfigMap is made of in the place where it is mounted."""
    return ClusterSettings.model_validate(application.args | {"config": DEPLOY / "trimtab.yaml"})


def pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = spec["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_application_of_the_manifest_is_built(application: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module, _, name = application.import_path.partition(":")
    assert getattr(import_module(module), name) is build
    assert application.args["config"] == "/etc/trimtab/trimtab.yaml"
    monkeypatch.setenv("APP_KEY", "a key")
    given = arguments(application)
    server_settings(given)
    assert build(given) is not None


def test_a_guide_that_the_configuration_has_not_is_named(application: Any) -> None:
    given = arguments(application)
    wrong = given.model_copy(update={"guides": {"positivty": given.guides["positivity"]}})
    with pytest.raises(Exception, match=r"guides\.positivty"):
        server_settings(wrong)
    with pytest.raises(Exception, match="role program"):
        server_settings(given.model_copy(update={"guides": {"brevity": given.guides["positivity"]}}))


def test_versions_and_images_agree(spec: dict[str, Any]) -> None:
    assert spec["rayClusterConfig"]["rayVersion"] == ray.__version__
    assert f"ray=={ray.__version__}\n" in (ROOT / "constraints.txt").read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    images = {container["image"] for pod in pods(spec) for container in pod["containers"]}
    assert images == {f"trimtab-ray:{version}"}
    assert f"FROM trimtab:{version}\n" in (DEPLOY / "ray/Dockerfile").read_text()


def test_pods_have_what_the_application_needs(spec: dict[str, Any], application: Any) -> None:
    given = arguments(application)
    for pod in pods(spec):
        assert pod["terminationGracePeriodSeconds"] > given.patience.drain
        assert pod["securityContext"]["runAsNonRoot"] is True
        (container,) = pod["containers"]
        mounts = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
        assert {"/etc/trimtab", "/cache", "/dev/shm"} == mounts.keys()
        assert set(mounts.values()) == {each["name"] for each in pod["volumes"]}
        assert [each["name"] for each in container["env"]] == ["APP_KEY"]
    port = yaml.safe_load(spec["serveConfigV2"])["http_options"]["port"]
    assert all({"name": "serve", "containerPort": port} in pod["containers"][0]["ports"] for pod in pods(spec))
    group = spec["rayClusterConfig"]["workerGroupSpecs"][0]
    worker = group["template"]["spec"]["containers"][0]
    assert group["maxReplicas"] >= (given.engine.most or 0) // 2
    assert float(worker["resources"]["requests"]["cpu"]) >= given.engine.cpus


def test_the_manual_names_what_is_there() -> None:
    text = (ROOT / "docs/ray.md").read_text()
    for section in ("routing", "patience"):
        fields = ClusterSettings.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
        told = set(re.findall(rf"`{section}\.(\w+)`", text))
        assert told
        assert told <= set(fields)
    for argument in ClusterSettings.model_fields:
        assert f"`{argument}`" in text or f"`{argument}." in text
