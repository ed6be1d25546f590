"""The network between ingress and replicas is cut: the second node lives in a namespace of its own."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from on_ray import Running, children, cluster, eventually, ray
from wire import CHAT, ask

from trimtab.cluster.settings import ClusterSettings, Scale

pytestmark = [pytest.mark.ray, pytest.mark.timeout(150)]

SPACE, NEAR, FAR = "trimtab-far", "10.231.7.1", "10.231.7.2"


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


@pytest.fixture
def namespace() -> Iterator[str]:
    """A network namespace behind a pair of virtual cards; the near end's name."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need iproute2 and root")
    try:
        ip("netns", "add", SPACE)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces are not permitted here: {error.stderr.decode().strip()}")
    try:
        ip("link", "add", "tt-near", "type", "veth", "peer", "name", "tt-far", "netns", SPACE)
        ip("addr", "add", f"{NEAR}/24", "dev", "tt-near")
        ip("link", "set", "tt-near", "up")
        for command in (
            ("addr", "add", f"{FAR}/24", "dev", "tt-far"),
            ("link", "set", "tt-far", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", NEAR),
        ):
            ip("-n", SPACE, *command)
        yield "tt-near"
    finally:
        ip("netns", "del", SPACE)


def test_a_partition_costs_no_request_and_heals(namespace: str, arguments: ClusterSettings, tmp_path: Path) -> None:
    """Requests that the cut-off replica had are answered by the other one; then it, or a new one, is there again."""
    with cluster(num_cpus=1, node_ip_address=NEAR, resources={"near": 1}) as made:
        far = subprocess.Popen(
            [
                *("ip", "netns", "exec", SPACE, sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
                *(f"--address={made.address}", f"--node-ip-address={FAR}", "--num-cpus=1"),
                "--object-store-memory=80000000",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            eventually(lambda: len([each for each in ray.nodes() if each["Alive"]]) == 2)
            ingress = Scale(cpus=0, resources={"near": 0.1})
            app = Running(arguments.model_copy(update={"guides": {}, "ingress": ingress}))
            assert {each["NodeManagerAddress"] for each in ray.nodes()} == {NEAR, FAR}
            assert len(app.metric("replica_up")) == 2
            ip("link", "set", namespace, "down")
            asked = [app.client.post(CHAT, json=ask(f"question {i}", max_tokens=4)) for i in range(8)]
            assert {each.status_code for each in asked} == {200}
            ip("link", "set", namespace, "up")
            eventually(lambda: list(app.metric("replica_up").values()) == [1.0, 1.0], 60)
            assert app.client.post(CHAT, json=ask(max_tokens=4)).status_code == 200
            app.close()
        finally:
            ip("link", "set", namespace, "up")
            mine = [each for each in children() if each.pid == far.pid]
            for each in [*mine[0].children(recursive=True), *mine] if mine else []:
                each.kill()
            far.wait(10)
