"""The Pareto front against its definition."""

from itertools import pairwise
from math import nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.bench.pareto import front

FEW = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
POINTS = st.lists(st.tuples(FEW, FEW), max_size=12)


def beats(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(POINTS)
def test_the_front_is_what_no_point_beats_by_rising_cost(points: list[tuple[float, float]]) -> None:
    unbeaten = [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]
    assert front(points) == sorted(unbeaten, key=lambda i: (points[i][0], i))


@given(st.lists(st.tuples(st.floats(allow_nan=False), st.floats(allow_nan=False)), max_size=30))
def test_along_the_front_more_cost_buys_more_value(points: list[tuple[float, float]]) -> None:
    found = [points[i] for i in front(points)]
    steps = list(pairwise(found))
    assert all(one == other or (one[0] < other[0] and one[1] < other[1]) for one, other in steps)
    assert bool(found) == bool(points)


def test_equal_points_stay_in_their_order() -> None:
    assert front([(2.0, 5.0), (1.0, 3.0), (2.0, 5.0), (1.0, 3.0), (3.0, 5.0), (2.0, 4.0)]) == [1, 3, 0, 2]


@pytest.mark.parametrize("point", [(nan, 1.0), (1.0, nan)])
def test_what_was_not_measured_is_refused(point: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="leave out"):
        front([(1.0, 1.0), point])
