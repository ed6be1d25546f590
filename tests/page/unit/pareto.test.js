import assert from "node:assert/strict";
import { test } from "node:test";

import { front } from "../../../server/static/model/pareto.js";
import { numbers } from "./seeded.js";

test("less time or more reward: what nothing beats, from left to right", () => {
  const [a, b, c, d, e] = [
    [3, 5],
    [1, 1],
    [2, 0],
    [4, 5],
    [5, 9],
  ].map(([x, y]) => ({ x, y }));
  assert.deepEqual(front([a, b, c, d, e]), [b, a, e]);
});

test("none, one and equal points", () => {
  assert.deepEqual(front([]), []);
  const twins = [
    { x: 1, y: 1, id: "first" },
    { x: 1, y: 1, id: "second" },
  ];
  assert.deepEqual(front(twins), [twins[0]]);
  assert.deepEqual(
    front([
      { x: 1, y: 1 },
      { x: 1, y: 2 },
    ]),
    [{ x: 1, y: 2 }],
  );
  assert.deepEqual(
    front([
      { x: 1, y: 2 },
      { x: 3, y: 2 },
    ]),
    [{ x: 1, y: 2 }],
  );
});

test("points that are no numbers are left out, and the input stays as it is", () => {
  const points = [
    { x: 2, y: NaN },
    { x: Infinity, y: 9 },
    { x: 3, y: 1 },
    { x: 1, y: null },
    { x: 2, y: 0 },
  ];
  const before = structuredClone(points);
  assert.deepEqual(front(/** @type {any} */ (points)), [points[4], points[2]]);
  assert.deepEqual(points, before);
});

test("a point is in the front exactly if no other beats it", () => {
  const draw = numbers(7);
  for (let round = 0; round < 200; round++) {
    const points = Array.from({ length: draw(30) }, (_, id) => ({ id, x: draw(12), y: draw(12) - 6 }));
    const beats = (a, b) => a.x <= b.x && a.y >= b.y && (a.x < b.x || a.y > b.y || a.id < b.id);
    const unbeaten = points.filter((point) => !points.some((other) => beats(other, point)));
    assert.deepEqual(
      front(points),
      unbeaten.sort((a, b) => a.x - b.x),
    );
  }
});
