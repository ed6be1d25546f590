"""Who answers a call: the replica that has its prefix cached, unless it has too much to do."""

from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from trimtab.cluster.prefix import ranked
from trimtab.cluster.protocol import Route, route


class PrefixRouter(RequestRouter):
    """Rendezvous hashing of a call's key over the replicas, with power of two choices where that is too much for one.

    Each key prefers the replicas in an order of its own. The first gets its calls while it has less than `bound` more
    to do than the least busy; of the next two, to which a hot prefix so spreads, the shorter queue gets the rest.
    """

    bound = 4

    def initialize_state(self, bound: int = 4) -> None:  # type: ignore[override]
        """Take the `request_router_kwargs` of the deployment."""
        self.bound = bound

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas, the best first; of a group the one with the shortest queue is asked."""
        wanted = route()
        if pending_request is not None and pending_request.args:
            wanted = pending_request.args[0]["route"]
            pending_request.routing_context.should_backoff = True
        by_id = {each.replica_id.unique_id: each for each in candidate_replicas}
        groups = self._groups(wanted, by_id)
        wanted["known"] = list(by_id)
        wanted["chosen"] = groups[0] if groups else []
        return [[by_id[each] for each in group] for group in groups]

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """Note who has taken the call."""
        pending_request.args[0]["route"]["accepted"] = [replica_id.unique_id]

    def _groups(self, wanted: Route, by_id: dict[str, RunningReplica]) -> list[list[str]]:
        if wanted["only"]:
            return [[wanted["only"]]] if wanted["only"] in by_id else []
        open_ = [each for each in by_id if each not in wanted["avoid"]] or list(by_id)
        if not wanted["key"]:
            return [open_]
        first, *others = ranked(wanted["key"], open_)
        spare = min((self._busy(by_id[each]) for each in others), default=0)
        if not others or self._busy(by_id[first]) - spare < self.bound:
            return [[first], others[:2], others[2:]]
        return [others[:2], [first, *others[2:]]]

    def _busy(self, replica: RunningReplica) -> int:
        """Requests that a replica has, as far as this router knows; 0 for one that nobody has asked yet."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0
