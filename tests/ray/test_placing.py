"""The settings that replicas and guides run with."""

import pytest

from trimtab.cluster.placing import placed
from trimtab.server.settings import Settings


@pytest.mark.parametrize(
    ("own", "fraction", "share"),
    [(1.0, 0.5, 0.5), (1.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 2.0, 1.0), (0.25, 0.5, 0.25)],
)
def test_a_fraction_is_a_share_of_the_whole_gpu(own: float, fraction: float, share: float) -> None:
    given = Settings.model_validate({"engine": {"memory_fraction": 0.8, "gpu_share": own}}).model_dump(mode="json")
    engine = Settings.model_validate(placed(given, fraction)).engine
    assert (engine.gpu_share, engine.memory_fraction) == (share, 0.8)
    assert given["engine"]["gpu_share"] == own, "what was given stays as it was"
