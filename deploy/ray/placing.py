"""Settings of the server as a replica or a guide runs with them."""

from collections.abc import Mapping
from typing import Any

from trimtab.cluster.protocol import digest
from trimtab.cluster.settings import ClusterSettings
from trimtab.server.settings import InvalidSettings, Settings, load_settings

SCHEME = "serve"
"""of addresses of guides that are deployments: serve://APPLICATION/DEPLOYMENT"""


def server_settings(given: ClusterSettings) -> Settings:
    """The settings of the server that the application's arguments name; raises InvalidSettings."""
    settings = load_settings(given.config, given.settings)
    guides = settings.engine.guides
    for name in given.guides:
        if name not in guides:
            listed = ", ".join(guides) or "none"
            raise InvalidSettings(f"guides.{name}: engine.guides has no such guide, but {listed}")
        if guides[name].role != "reward":
            raise InvalidSettings(
                f"guides.{name}: a guide of role {guides[name].role} works inside of the engine: only guides of role "
                "reward run as deployments"
            )
    return settings


def deployment_of(guide: str) -> str:
    """The name of the deployment of a guide."""
    return f"guide-{guide}"


def guide_digest(settings: Settings, guide: str) -> str:
    """What stands for all that a guide's scores depend on."""
    engine = settings.engine
    config = engine.guides[guide].model_dump(mode="json")
    return digest({"guide": config, "base": engine.model, "dtype": engine.dtype, "template": engine.chat_template})


def placed(settings: Mapping[str, Any], fraction: float) -> dict[str, Any]:
    """Settings for a share of a GPU: the engine plans with no more of the whole than that, whoever loads first."""
    engine = dict(settings["engine"])
    if 0.0 < fraction < 1.0:
        engine["gpu_share"] = min(engine["gpu_share"], fraction)
    return {**settings, "engine": engine}


def far_guides(settings: Mapping[str, Any], application: str, digests: Mapping[str, str]) -> dict[str, Any]:
    """Settings in which the guides of `digests` are asked over Serve."""
    engine = dict(settings["engine"])
    far = {
        name: {
            "role": "remote_reward",
            "url": f"{SCHEME}://{application}/{deployment_of(name)}?digest={expected}",
            "guide": name,
            "route": "score",
        }
        for name, expected in digests.items()
    }
    return {**settings, "engine": {**engine, "guides": {**engine["guides"], **far}}}
