"""The router's choice among replicas that are as busy as a test says."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from on_ray import serve  # noqa: F401  # Ray is there, or this is skipped
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
from ray.serve.request_router import PendingRequest, RunningReplica

from trimtab.cluster.prefix import ranked
from trimtab.cluster.protocol import Route, route
from trimtab.cluster.router import PrefixRouter

pytestmark = pytest.mark.ray

DEPLOYMENT = DeploymentID("engine", "trimtab")
NAMES = ["ada", "bob", "cid", "dan", "eve"]
REPLICAS = [cast(RunningReplica, SimpleNamespace(replica_id=ReplicaID(name, DEPLOYMENT))) for name in NAMES]


def choose(wanted: Route, replicas: list[RunningReplica] = REPLICAS, **busy: int) -> list[list[str]]:
    """Groups of names, for replicas with so many requests."""

    async def chosen() -> Any:
        router = PrefixRouter(DEPLOYMENT, DeploymentHandleSource.REPLICA, use_replica_queue_len_cache=True)
        router.initialize_state(bound=3)
        for name, count in busy.items():
            for _ in range(count):
                router.on_send_request(ReplicaID(name, DEPLOYMENT))
        pending = cast(PendingRequest, SimpleNamespace(args=[{"route": wanted}], routing_context=SimpleNamespace()))
        return await router.choose_replicas(replicas, pending)

    return [[each.replica_id.unique_id for each in group] for group in asyncio.run(chosen())]


@pytest.mark.parametrize("key", ["a", "b", "c", "d"])
def test_a_key_has_one_favourite_and_an_order_behind_it(key: str) -> None:
    order = ranked(key, NAMES)
    wanted = route(key)
    assert choose(wanted) == [order[:1], order[1:], []]
    assert wanted["known"] == NAMES
    assert (wanted["chosen"], wanted["accepted"]) == (order[:1], [])


def test_a_hot_prefix_spreads_in_its_order_to_whoever_has_room() -> None:
    first, second, third, *last = ranked("a", NAMES)
    assert choose(route("a"), **{first: 2})[0] == [first]
    assert choose(route("a"), **{first: 3}) == [[second], [third, *last], [first]]
    assert choose(route("a"), **{first: 3, second: 3, third: 2}) == [[third], last, [first, second]]
    assert choose(route("a"), **dict.fromkeys(NAMES, 3))[0] == [first], "all have as much to do"


def test_however_many_calls_one_prefix_has_no_replica_gets_far_more_than_another() -> None:
    busy = dict.fromkeys(NAMES, 0)
    for _ in range(40):
        ((chosen,), *_) = choose(route("a"), **busy)
        busy[chosen] += 1
    assert max(busy.values()) - min(busy.values()) <= 3
    assert busy[ranked("a", NAMES)[0]] == max(busy.values())


def test_a_replica_that_was_lost_is_passed_over_while_there_are_others() -> None:
    order = ranked("a", NAMES)
    assert choose(route("a", met=order[:1], shunned=order[1:2]))[0] == order[2:3]
    assert choose(route("a", met=NAMES))[0] == order[:1]
    assert {each for group in choose(route("", met=order[:2])) for each in group} == set(order[2:])


def test_a_call_prefers_a_replica_that_others_have_lost_to_one_that_it_has_lost_itself() -> None:
    order = ranked("a", NAMES)
    for key in ("a", ""):
        assert choose(route(key, met=order[1:], shunned=NAMES)) == [order[:1], [], []]
    assert choose(route("a", met=order[:1], shunned=NAMES))[0] == order[1:2]


def test_one_replica_alone_can_be_asked() -> None:
    assert choose(route("a", only="dan", met=["dan"])) == [["dan"]]
    assert choose(route("a", only="zoe")) == []


def test_without_a_key_the_least_busy_of_all_is_asked_and_known_to_be() -> None:
    wanted = route()
    chosen, rest, others = choose(wanted, ada=2, bob=2, cid=1, dan=2, eve=4)
    assert (chosen, set(rest), others) == (["cid"], {"ada", "bob", "dan"}, ["eve"])
    assert wanted["chosen"] == chosen
    assert len({choose(route())[0][0] for _ in range(40)}) > 1, "equals take turns"


def test_no_replicas_and_one_are_no_special_case() -> None:
    assert choose(route("a"), []) == choose(route(), []) == []
    assert choose(route("a"), REPLICAS[:1]) == [["ada"], [], []]
