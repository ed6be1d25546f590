"""What a caller may use: requests and rows at the same time, requests and model tokens per minute."""

import pytest

from trimtab.server.callers import Caller
from trimtab.server.errors import ApiError
from trimtab.server.policy import Limits, Policy
from trimtab.server.quotas import Quotas


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quotas(clock: Clock) -> Quotas:
    return Quotas(lambda caller, tokens: None, clock)


def caller(name: str = "ann", **limits: int) -> Caller:
    return Caller(name, "p", Policy(limits=Limits(**limits)))


def refused(quotas: Quotas, who: Caller) -> ApiError:
    with pytest.raises(ApiError) as error:
        quotas.enter(who, 1)
    assert error.value.status_code == 429
    assert error.value.code == "rate_limit_exceeded"
    return error.value


def test_requests_at_the_same_time(quotas: Quotas) -> None:
    ann = caller(concurrent=2)
    first, _ = quotas.enter(ann, 1), quotas.enter(ann, 1)
    refused(quotas, ann)
    quotas.enter(caller("ben", concurrent=2), 1)
    first.end(5)
    quotas.enter(ann, 1)


def test_a_request_of_several_prompts_holds_its_place_until_the_last_has_ended(quotas: Quotas) -> None:
    ann = caller(concurrent=1)
    lease = quotas.enter(ann, 2)
    lease.end(1)
    refused(quotas, ann)
    lease.end(1)
    quotas.enter(ann, 1)


def test_a_request_that_never_began_gives_its_place_back(quotas: Quotas) -> None:
    ann = caller(concurrent=1)
    quotas.enter(ann, 3).abandon()
    quotas.enter(ann, 1)


def test_rows_at_the_same_time(quotas: Quotas) -> None:
    ann = caller(rows=8)
    first = quotas.enter(ann, 1)
    first.occupy(6)
    second = quotas.enter(ann, 1)
    with pytest.raises(ApiError) as busy:
        second.occupy(3)
    assert busy.value.status_code == 429
    second.abandon()
    first.end(0)
    quotas.enter(ann, 1).occupy(8)


def test_more_rows_than_there_can_ever_be_are_a_matter_of_policy(quotas: Quotas) -> None:
    with pytest.raises(ApiError, match="may have 4") as error:
        quotas.enter(caller(rows=4), 1).occupy(5)
    assert (error.value.status_code, error.value.code) == (403, "policy_violation")


def test_requests_per_minute(quotas: Quotas, clock: Clock) -> None:
    ann = caller(requests_per_minute=3)
    for _ in range(3):
        quotas.enter(ann, 1).end(0)
    assert refused(quotas, ann).headers == {"retry-after": "20"}
    clock.now += 20
    quotas.enter(ann, 1)
    refused(quotas, ann)
    clock.now += 1e6  # what was not used is not saved for longer than a minute
    for _ in range(3):
        quotas.enter(ann, 1)
    refused(quotas, ann)


def test_model_tokens_per_minute_are_paid_for_afterwards(quotas: Quotas, clock: Clock) -> None:
    ann = caller(model_tokens_per_minute=600)
    quotas.enter(ann, 1).end(599)
    quotas.enter(ann, 1).end(621)  # one token was left, so it could begin; 620 are owed
    assert refused(quotas, ann).headers == {"retry-after": "63"}
    clock.now += 62
    refused(quotas, ann)
    clock.now += 1
    quotas.enter(ann, 1)


def test_a_lowered_limit_holds_at_once(quotas: Quotas, clock: Clock) -> None:
    quotas.enter(caller(requests_per_minute=1000), 1)
    quotas.enter(caller(requests_per_minute=2), 1)
    quotas.enter(caller(requests_per_minute=2), 1)
    refused(quotas, caller(requests_per_minute=2))


def test_without_a_policy_nothing_is_limited(quotas: Quotas) -> None:
    for _ in range(1000):
        quotas.enter(Caller(), 1).occupy(1000)


def test_every_charge_is_told() -> None:
    told: list[tuple[str, int]] = []
    quotas = Quotas(lambda name, tokens: told.append((name, tokens)))
    lease = quotas.enter(Caller("ann"), 2)
    lease.occupy(3)
    assert quotas.describe()["ann"].model_dump() == {"requests": 1, "rows": 3, "model_tokens": 0}
    lease.end(7)
    lease.end(8)
    assert told == [("ann", 7), ("ann", 8)]
    assert quotas.describe()["ann"].model_dump() == {"requests": 0, "rows": 0, "model_tokens": 15}


def test_what_costs_no_model_tokens_is_counted_too(quotas: Quotas) -> None:
    ann = caller(concurrent=1, requests_per_minute=2)
    with quotas.held(ann):
        refused(quotas, ann)
    with quotas.held(ann):
        pass
    refused(quotas, ann)
