"""An application on a local Ray cluster of two nodes, as its clients and its operators see it."""

import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import psutil
import pytest

from trimtab.cluster.settings import ClusterSettings

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'trimtab[ray]'")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # pydantic's, of Ray's own models
    from ray import serve
    from ray.cluster_utils import Cluster

    from trimtab.cluster.app import build

NAME = "trimtab"
STORE = 80_000_000
"""bytes of a node's object store, about the least that Ray takes"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def cluster(**head: Any) -> Iterator[Cluster]:
    """A cluster with its head alone, and a driver connected to it; everything is stopped at the end."""
    others = children()
    made = Cluster(
        initialize_head=True, head_node_args={"object_store_memory": STORE, "include_dashboard": False, **head}
    )
    try:
        ray.init(address=made.address, logging_level="error", log_to_driver=False)
        yield made
    finally:
        started = [each for each in children() if each not in others]
        serve.shutdown()
        ray.shutdown()
        made.shutdown()
        gone(started)


def children() -> list[psutil.Process]:
    """What this process has started, all the way down."""
    return psutil.Process().children(recursive=True)


def gone(processes: list[psutil.Process]) -> None:
    """Check that processes have ended."""
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive, [each.name() for each in alive]


class Running:
    """The application behind its HTTP port."""

    def __init__(self, settings: ClusterSettings) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        self.deploy(settings)
        self.client = httpx2.Client(base_url=self.url, timeout=60)

    def deploy(self, settings: ClusterSettings) -> None:
        """Start it, or replace what runs by it, and wait until all of it is there."""
        serve.run(build(settings), name=NAME, route_prefix="/")

    def metric(self, name: str) -> dict[str, float]:
        """A metric by replica, summed over its other labels."""
        told: dict[str, float] = {}
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(f"trimtab:{name}{{"):
                replica = line.partition('instance="')[2].partition('"')[0]
                told[replica] = told.get(replica, 0.0) + float(line.rpartition(" ")[2])
        return told

    def running(self) -> dict[str, float]:
        """Requests that each replica works on."""
        return self.metric("num_requests_running")

    def close(self) -> None:
        self.client.close()


def names(deployment: str) -> list[str]:
    """The actors of a deployment's replicas; each ends with the replica's id."""
    listed = ray.util.list_named_actors(all_namespaces=True)
    return [each["name"] for each in listed if each["name"].startswith(f"SERVE_REPLICA::{NAME}#{deployment}#")]


def kill(deployment: str, replica: str = "") -> None:
    """End the process of a replica at once; of any where none is named."""
    name = next(each for each in names(deployment) if each.endswith(replica))
    ray.kill(ray.get_actor(name, namespace="serve"))


def processes(deployment: str) -> list[psutil.Process]:
    """Of a deployment's replicas."""
    title = f"ray::ServeReplica:{NAME}:{deployment}"
    return [each for each in children() if any(part.startswith(title) for part in each.cmdline())]


def eventually(condition: Callable[[], bool], seconds: float = 40.0) -> None:
    """Poll until the condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition never came true"
        time.sleep(0.2)
