"""Rates and batches."""

import pytest

from trimtab.training.schedule import Schedule


def test_rate_rises_and_falls() -> None:
    schedule = Schedule(lr=1.0, warmup=0.4)
    rates = [schedule.rate(step, 5) for step in range(5)]
    assert rates == pytest.approx([0.5, 1.0, 0.75, 0.5, 0.25])
    assert Schedule(lr=2.0, warmup=0.0).rate(0, 5) == 2.0
    assert Schedule(lr=2.0, warmup=1.0).rate(4, 5) == pytest.approx(2.0)


def test_batches_hold_every_example_once() -> None:
    lengths = [index % 7 for index in range(50)]
    batches = Schedule(batch=4).batches(lengths, 0)
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    assert max(map(len, batches)) == 4


def test_batches_hold_like_lengths() -> None:
    lengths = [1, 9] * 16
    for batch in Schedule(batch=4).batches(lengths, 0):
        assert len({lengths[index] for index in batch}) == 1


def test_order_follows_seed_and_epoch() -> None:
    lengths = list(range(40))
    first = Schedule(batch=4).batches(lengths, 0)
    assert Schedule(batch=4).batches(lengths, 0) == first
    assert Schedule(batch=4).batches(lengths, 1) != first
    assert Schedule(batch=4, seed=1).batches(lengths, 0) != first
