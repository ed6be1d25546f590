"""What the settings of a deployment become in Serve's words."""

import pytest
from pydantic import ValidationError

from trimtab.cluster.settings import Scale


def test_a_fixed_number_of_replicas() -> None:
    scale = Scale(replicas=3, cpus=2, gpus=0.5, resources={"big": 1})
    actor = {"num_cpus": 2, "num_gpus": 0.5, "resources": {"big": 1}}
    assert scale.options() == {"ray_actor_options": actor, "num_replicas": 3}


def test_a_number_that_follows_the_load() -> None:
    scale = Scale(replicas=1, most=4, target=8, upscale_delay=5, downscale_delay=300)
    told = scale.options()
    assert "num_replicas" not in told
    assert told["autoscaling_config"] == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 8,
        "upscale_delay_s": 5,
        "downscale_delay_s": 300,
    }


def test_serve_takes_the_numbers() -> None:
    config = pytest.importorskip("ray.serve.config").AutoscalingConfig
    given = Scale(replicas=0, most=2).options()["autoscaling_config"]
    taken = config(**given)
    assert {name: getattr(taken, name) for name in given} == given


@pytest.mark.parametrize("numbers", [{"replicas": 3, "most": 2}, {"replicas": 0}])
def test_numbers_that_make_no_sense_are_refused(numbers: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match="most"):
        Scale(**numbers)  # type: ignore[arg-type]  # mypy takes each number for each field
