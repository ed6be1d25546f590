"""The points that no other one beats."""

from collections.abc import Sequence
from math import inf, isnan


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the (cost, value) points of the Pareto front, by rising cost.

    A point is beaten by another that costs no more and is worth no less, and is better in one of the two; equal points
    do not beat each other, and stay in their order. ValueError for NaN.
    """
    if any(isnan(cost) or isnan(value) for cost, value in points):
        raise ValueError("a point of the front has a cost and a value: leave out what was not measured")
    kept: list[int] = []
    best_cost, best_value = inf, -inf
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        cost, value = points[index]
        if not kept or value > best_value or (cost, value) == (best_cost, best_value):
            kept.append(index)
            best_cost, best_value = cost, value
    return kept
