"""Who answers a call: the replica that has its prefix cached, unless it has too much to do."""

import random
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica
from trimtab.cluster.prefix import ranked
from trimtab.cluster.protocol import Route, route


class PrefixRouter(RequestRouter):
    """Rendezvous hashing of a call's key over the replicas, with bounded loads.

    Each key prefers the replicas in an order of its own. A call goes to the first of them that has less than `bound`
    requests more than the least busy one, so that a hot prefix spreads to as many replicas as it takes, and no load
    piles up beside idle ones (after Mirrokni, Thorup, Zadimoghaddam: Consistent Hashing with Bounded Loads, 2018).
    A call without a key goes to the least busy.
    """

    bound = 4

    def initialize_state(self, bound: int = 4) -> None:  # type: ignore[override]
        """Take the `request_router_kwargs` of the deployment."""
        self.bound = bound

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Groups of replicas: the chosen one alone, then those that Serve may ask where it finds that one gone."""
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
        unmet = [each for each in by_id if each not in wanted["met"]]
        open_ = [each for each in unmet if each not in wanted["shunned"]] or unmet or list(by_id)
        if not open_:
            return []
        busy = {each: self._busy(by_id[each]) for each in open_}
        if wanted["key"]:
            order = ranked(wanted["key"], open_)
        else:
            order = sorted(open_, key=lambda each: (busy[each], random.random()))
        most = min(busy.values()) + self.bound
        first, *rest = [each for each in order if busy[each] < most]
        return [[first], rest, [each for each in order if busy[each] >= most]]

    def _busy(self, replica: RunningReplica) -> int:
        """Requests that a replica has, as far as this router knows; 0 for one that nobody has asked yet."""
        return self.replica_queue_len_cache.get(replica.replica_id) or 0
