"""Where the labels of a plot go: near their points, off the points, lines and one another.

Each label tries places around its point at several distances. The first round takes crowded points first; later rounds
move each label to its best place given all others, until none moves. Same input, same places.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin

DISTANCES = (5.5, 8.5, 13.0, 19.0, 27.0, 37.0, 50.0, 66.0)
# The better reading positions first: beside the point, then above, below, across.
ANGLES = (0, 180, 30, -30, 150, -150, 60, -60, 120, -120, 90, -90)
ROUNDS = 12
GAP = 1.5

# What it costs a label to lie so, in printer's points of distance from its own point (twice over).
ON_LABEL, ON_POINT, ON_LINE, NEARER_TO_OTHER = 60.0, 25.0, 2.0, 7.0
LEADER_ON_LABEL, LEADER_ON_POINT, LEADERS_CROSS = 40.0, 12.0, 20.0


@dataclass(frozen=True)
class Box:
    """A rectangle; printer's points, upward and to the right."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: "Box") -> float:
        """The smaller side of what both cover; 0 if they are apart."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, min(wide, high))

    def grown(self, by: float) -> "Box":
        return Box(self.left - by, self.bottom - by, self.right + by, self.top + by)

    def holds(self, other: "Box") -> bool:
        return (
            self.left <= other.left
            and self.right >= other.right
            and self.bottom <= other.bottom
            and self.top >= other.top
        )

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of the box nearest to (x, y)."""
        return min(max(x, self.left), self.right), min(max(y, self.bottom), self.top)

    def distance(self, x: float, y: float) -> float:
        to = self.nearest(x, y)
        return hypot(to[0] - x, to[1] - y)


@dataclass(frozen=True)
class Line:
    """A straight piece of something drawn, from one end to the other."""

    x0: float
    y0: float
    x1: float
    y1: float

    def inside(self, box: Box) -> float:
        """Its length within the box."""
        start, end = 0.0, 1.0
        dx, dy = self.x1 - self.x0, self.y1 - self.y0
        for move, low, high in (
            (dx, box.left - self.x0, box.right - self.x0),
            (dy, box.bottom - self.y0, box.top - self.y0),
        ):
            if move == 0:
                if low > 0 or high < 0:
                    return 0.0
                continue
            first, last = sorted((low / move, high / move))
            start, end = max(start, first), min(end, last)
        return max(0.0, end - start) * hypot(dx, dy)

    def crosses(self, other: "Line") -> bool:
        """Whether the two meet elsewhere than at an end."""
        return self._parts(other) and other._parts(self)

    def _parts(self, other: "Line") -> bool:
        """Whether the other's ends lie on two sides of this line, drawn on without end."""
        sides = [
            (self.x1 - self.x0) * (y - self.y0) - (self.y1 - self.y0) * (x - self.x0)
            for x, y in ((other.x0, other.y0), (other.x1, other.y1))
        ]
        return sides[0] * sides[1] < 0


@dataclass(frozen=True)
class _Place:
    box: Box
    leader: Line
    cost: float
    """but for other labels"""


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    *,
    radius: float,
    lines: Sequence[Line],
    frame: Box,
) -> list[Box]:
    """A box for each label. `sizes` are widths and heights, `radius` that of the marks at the points; labels stay in
    `frame` and avoid `lines`."""
    marks = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    places = [_places(i, points, size, marks, lines, frame) for i, size in enumerate(sizes)]
    crowd = [sum(1 / (1 + hypot(x - u, y - v)) for u, v in points) for x, y in points]
    order = sorted(range(len(points)), key=lambda i: -crowd[i])
    chosen: dict[int, _Place] = {}
    for _ in range(ROUNDS):
        moved = False
        for i in order:
            others = [other for j, other in chosen.items() if j != i]
            best = min(places[i], key=lambda each: each.cost + _clash(each, others))
            if best != chosen.get(i):
                chosen[i] = best
                moved = True
        if not moved:
            break
    return [chosen[i].box for i in range(len(points))]


def _clash(candidate: _Place, others: Sequence[_Place]) -> float:
    box = candidate.box.grown(GAP)
    return sum(
        ON_LABEL * box.overlap(other.box)
        + (LEADERS_CROSS if candidate.leader.crosses(other.leader) else 0.0)
        + (LEADER_ON_LABEL if candidate.leader.inside(other.box) or other.leader.inside(candidate.box) else 0.0)
        for other in others
    )


def _places(
    i: int,
    points: Sequence[tuple[float, float]],
    size: tuple[float, float],
    marks: Sequence[Box],
    lines: Sequence[Line],
    frame: Box,
) -> list[_Place]:
    """Where the label of point `i` may go. One that no place in the frame takes may leave it."""
    (x, y), (wide, high) = points[i], size
    found: list[_Place] = []
    outside: list[_Place] = []
    for near, distance in enumerate(DISTANCES):
        for rank, angle in enumerate(ANGLES):
            across, up = cos(angle * pi / 180), sin(angle * pi / 180)
            # The box's centre lies so that its nearest edge is about `distance` away in this direction.
            middle = x + across * (distance + wide / 2), y + up * (distance + high / 2)
            box = Box(middle[0] - wide / 2, middle[1] - high / 2, middle[0] + wide / 2, middle[1] + high / 2)
            to = box.nearest(x, y)
            leader = Line(x, y, *to)
            length = box.distance(x, y)
            cost = 0.5 * length + 0.25 * rank + (2.0 if near > 1 else 0.0)
            cost += sum(ON_POINT * box.grown(GAP).overlap(mark) for mark in marks)
            cost += sum(ON_LINE * min(12.0, line.inside(box)) for line in lines)
            cost += sum(NEARER_TO_OTHER for j, other in enumerate(points) if j != i and box.distance(*other) < length)
            cost += sum(LEADER_ON_POINT for j, mark in enumerate(marks) if j != i and leader.inside(mark))
            (found if frame.holds(box) else outside).append(_Place(box, leader, cost))
    return found or outside


def spread(wanted: Sequence[float], step: float, low: float, high: float) -> list[float]:
    """Heights near the wanted ones and at least `step` apart, between `low` and `high` as far as there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[tuple[float, list[int]]] = []  # middle, members upward
    for i in order:
        middle, members = wanted[i], [i]
        while groups and groups[-1][0] + step * (len(groups[-1][1]) + len(members)) / 2 > middle:
            before, earlier = groups.pop()
            middle = (before * len(earlier) + middle * len(members)) / (len(earlier) + len(members))
            members = earlier + members
        half = step * (len(members) - 1) / 2
        middle = max(low + half, min(high - half, middle))
        groups.append((middle, members))
    placed = dict.fromkeys(order, 0.0)
    for middle, members in groups:
        for k, i in enumerate(members):
            placed[i] = middle + step * (k - (len(members) - 1) / 2)
    return [placed[i] for i in range(len(wanted))]
