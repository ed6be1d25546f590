"""One application for the tests of a module: a tiny model on two nodes, with a guide as a deployment."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from folders import classifier_folder
from tiny import tiny_folder

from trimtab.cluster.settings import ClusterSettings, GuideScale, Patience, Scale

if TYPE_CHECKING:
    from on_ray import Running

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> ClusterSettings:
    """Two replicas, and the reward `taste`."""
    folder = tmp_path_factory.mktemp("models")
    base = tiny_folder(folder / "tiny")
    taste = classifier_folder(folder / "taste", seed=3)
    return arguments_for(base, taste)


def arguments_for(base: Path, taste: Path) -> ClusterSettings:
    engine = {
        "model": str(base),
        "dtype": "float32",
        "device": "cpu",
        "threads": 1,
        "pool_tokens": 8192,
        "guide_retry_after": 2.0,
        "guides": {
            "taste": {"role": "reward", "model": str(taste)},
            "short": {"role": "program", "kind": "length", "direction": "shorter"},
        },
    }
    return ClusterSettings(
        settings={"engine": engine, "server": {"playground": False}},
        engine=Scale(replicas=2),
        guides={"taste": GuideScale(cpus=0.5)},
        patience=Patience(beat=0.5, silence=2.0, shunned=5.0, no_replica=2.0, drain=10.0, health=2.0),
    )


@pytest.fixture(scope="module")
def app(arguments: ClusterSettings) -> "Iterator[Running]":
    from on_ray import Running, cluster

    with cluster(num_cpus=2) as made:
        made.add_node(num_cpus=2, object_store_memory=80_000_000)
        running = Running(arguments)
        yield running
        running.close()
