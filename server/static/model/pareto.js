// Which results are worth their time.

/**
 * The points that no other beats: least x, most y, sorted by x. Of equal points the first counts.
 * @template {{x: number, y: number}} Point
 * @param {Point[]} points
 * @returns {Point[]}
 */
export function front(points) {
  const known = points.filter(({ x, y }) => Number.isFinite(x) && Number.isFinite(y));
  known.sort((a, b) => a.x - b.x || b.y - a.y);
  let best = -Infinity;
  return known.filter(({ y }) => {
    const better = y > best;
    best = Math.max(best, y);
    return better;
  });
}
