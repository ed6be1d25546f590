"""What the application is made of: how many replicas, what each needs, and how patient the ingress is."""

from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Scale(_Section):
    """Replicas of one deployment, and what of a machine each of them takes."""

    replicas: int = Field(1, ge=0, description="replicas; the fewest where `most` is more")
    most: int | None = Field(None, ge=1, description="replicas at most; absent: always as many as `replicas`")
    target: float = Field(16.0, gt=0.0, description="requests, waiting ones too, that one replica should have")
    upscale_delay: float = Field(10.0, ge=0.0, description="seconds of more load before replicas are added")
    downscale_delay: float = Field(600.0, ge=0.0, description="seconds of less load before one is taken away")
    cpus: float = Field(1.0, ge=0.0)
    gpus: float = Field(0.0, ge=0.0, description="below 1: so many of them share a GPU")
    resources: dict[str, float] = Field(default_factory=dict, description="labels of nodes that it must run on")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.most is not None and self.most < self.replicas:
            raise ValueError(f"most is {self.most}, less than replicas, {self.replicas}: raise it, or leave it out")
        if self.most is None and self.replicas == 0:
            raise ValueError("replicas is 0 and most is absent, so that none would ever start: set most")
        return self

    def options(self) -> dict[str, Any]:
        """As the options of a deployment."""
        told: dict[str, Any] = {
            "ray_actor_options": {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": self.resources}
        }
        if self.most is None:
            return told | {"num_replicas": self.replicas}
        scaling = {
            "min_replicas": self.replicas,
            "max_replicas": self.most,
            "target_ongoing_requests": self.target,
            "upscale_delay_s": self.upscale_delay,
            "downscale_delay_s": self.downscale_delay,
        }
        return told | {"autoscaling_config": scaling}


class GuideScale(Scale):
    """A deployment of one guide."""

    batch: int = Field(32, ge=1, description="calls that are answered together at most")
    wait: float = Field(0.005, ge=0.0, description="seconds that a call waits for others to be answered with")


class Routing(_Section):
    """Which replica gets a request."""

    prefix: int = Field(512, ge=1, description="characters of a prompt's beginning that decide")
    bound: int = Field(
        4, ge=1, description="requests that the replica they decide for may have more than the least busy one"
    )


class Patience(_Section):
    """Seconds after which something is given up."""

    beat: float = Field(2.0, gt=0.0, description="between two signs of life of a replica that computes")
    silence: float = Field(10.0, gt=0.0, description="without one, after which a replica counts as lost")
    shunned: float = Field(30.0, gt=0.0, description="that a lost replica is given nothing while there are others")
    no_replica: float = Field(20.0, gt=0.0, description="that a request waits where there is no replica at all")
    start: float = Field(600.0, gt=0.0, description="that a replica waits for its guides when it starts")
    guide: float = Field(60.0, gt=0.0, description="that a guide may take for one call")
    drain: float = Field(60.0, gt=0.0, description="that running requests get when a replica is taken away")
    health: float = Field(10.0, gt=0.0, description="between two looks whether a replica is well")

    @model_validator(mode="after")
    def _beats_fit(self) -> Self:
        if self.silence < 2 * self.beat:
            raise ValueError(f"silence is {self.silence:g}, less than two beats of {self.beat:g}: raise it")
        return self


class ClusterSettings(_Section):
    """The arguments of the application: `serve run trimtab.cluster.app:build config=trimtab.yaml`."""

    config: Path | None = Field(None, description="settings of the server, as for trimtab serve; read at deployment")
    settings: dict[str, Any] = Field(default_factory=dict, description="settings that win over the file's")
    engine: Scale = Scale()
    ingress: Scale = Scale(cpus=0.0)
    guides: dict[str, GuideScale] = Field(default_factory=dict, description="rewards that run as deployments, by name")
    routing: Routing = Routing()
    patience: Patience = Patience()
