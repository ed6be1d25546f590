"""The application as Serve wants it: `serve run trimtab.cluster.app:build config=trimtab.yaml`."""

from typing import TYPE_CHECKING, Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from trimtab.cluster.guide import Guide
from trimtab.cluster.ingress import Ingress
from trimtab.cluster.placing import deployment_of, guide_digest, server_settings
from trimtab.cluster.replica import Replica
from trimtab.cluster.router import PrefixRouter
from trimtab.cluster.settings import ClusterSettings, Scale

if TYPE_CHECKING:
    from ray.serve import Application

MOST_ONGOING = 4096
"""requests that Serve hands to one replica at most; the engine's own queue refuses earlier, and says why"""


def build(args: ClusterSettings) -> "Application":
    """Ingress, replicas, and one deployment for each guide that is to have one; raises InvalidSettings."""
    settings = server_settings(args)
    plain = settings.model_dump(mode="json")
    digests = {name: guide_digest(settings, name) for name in args.guides}
    guides = [
        _deployment(Guide, args, scale, deployment_of(name)).bind(
            plain, name, digests[name], scale.gpus, scale.batch, scale.wait
        )
        for name, scale in args.guides.items()
    ]
    patience = args.patience.model_dump()
    replica = _deployment(Replica, args, args.engine, "engine").bind(
        plain, digests, patience, args.engine.gpus, *guides
    )
    ingress = _deployment(serve.ingress()(Ingress), args, args.ingress, "ingress")
    bound: Application = ingress.bind(
        replica,
        patience,
        args.routing.prefix,
        settings.server.max_body_bytes,
        settings.server.body_timeout,
        shared=settings.server.library is not None,
    )
    return bound


def _deployment(kind: Any, args: ClusterSettings, scale: Scale, name: str) -> Any:
    patience = args.patience
    options = scale.options()
    if kind in (Replica, Guide):
        options["request_router_config"] = RequestRouterConfig(
            request_router_class=PrefixRouter,  # type: ignore[arg-type]  # its types say mappings for every field
            request_router_kwargs={"bound": args.routing.bound},
        )
    return serve.deployment(
        kind,
        name=name,
        max_ongoing_requests=MOST_ONGOING,
        health_check_period_s=patience.health,
        health_check_timeout_s=3 * patience.health,
        graceful_shutdown_timeout_s=patience.drain,
        graceful_shutdown_wait_loop_s=min(1.0, patience.drain),
        **options,
    )
