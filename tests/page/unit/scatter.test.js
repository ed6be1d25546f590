import assert from "node:assert/strict";
import { test } from "node:test";
import { fixed, probability, signed } from "../../../server/static/model/figures.js";
import { scale } from "../../../server/static/model/scales.js";
import { linearTicks, logTicks, short } from "../../../server/static/model/ticks.js";

test("ticks are round, evenly spaced and enclose the values", () => {
  assert.deepEqual(linearTicks(0.12, 0.88), [0, 0.2, 0.4, 0.6, 0.8, 1]);
  assert.deepEqual(linearTicks(-3, 7), [-4, -2, 0, 2, 4, 6, 8]);
  assert.deepEqual(linearTicks(1200, 1900), [1200, 1400, 1600, 1800, 2000]);
});

test("one value has ticks on both sides", () => {
  for (const value of [0, 0.3, -7, 1e6, 1e-9]) {
    const ticks = linearTicks(value, value);
    assert.ok(ticks[0] < value && ticks.at(-1) > value, `${ticks}`);
  }
});

test("ticks of every range are few and enclose it", () => {
  for (const low of [-1e5, -0.02, 0, 3e-7, 12]) {
    for (const span of [1e-6, 0.7, 49, 3e4]) {
      const ticks = linearTicks(low, low + span);
      assert.ok(ticks[0] <= low + 1e-9 * span && ticks.at(-1) >= low + span * (1 - 1e-9));
      assert.ok(ticks.length >= 2 && ticks.length <= 8, `${ticks}`);
    }
  }
});

test("logarithmic ticks are 1, 2 and 5, or powers of ten where those are many", () => {
  assert.deepEqual(logTicks(30, 900), [20, 50, 100, 200, 500, 1000]);
  assert.deepEqual(logTicks(100, 1000), [100, 200, 500, 1000]);
  assert.deepEqual(logTicks(3, 2e6), [1, 10, 100, 1000, 10000, 100000, 1000000, 10000000]);
  assert.deepEqual(logTicks(0.02, 0.3), [0.02, 0.05, 0.1, 0.2, 0.5]);
});

test("latencies are logarithmic above a factor of ten, rewards never", () => {
  assert.equal(scale([100, 1000], 0, 1, 5, "ratio").isLog, false);
  assert.equal(scale([100, 1001], 0, 1, 5, "ratio").isLog, true);
  assert.equal(scale([0, 1000], 0, 1, 5, "ratio").isLog, false);
  assert.equal(scale([1, 1000], 0, 1, 5, "difference").isLog, false);
});

test("an axis puts its ends at its ends, and a logarithmic one equal ratios at equal distances", () => {
  const { at, ticks } = scale([10, 10000], 50, 350, 1, "ratio");
  assert.deepEqual([at(ticks[0]), at(ticks.at(-1))], [50, 350]);
  assert.ok(Math.abs(at(100) - at(10) - (at(1000) - at(100))) < 1e-9);
  const up = scale([0, 1], 200, 20, 5, "difference");
  assert.deepEqual([up.at(0), up.at(0.5), up.at(1)].map(Math.round), [200, 110, 20]);
});

test("one point stands inside its axis", () => {
  const { at } = scale([250], 0, 100, 5, "ratio");
  assert.ok(at(250) > 0 && at(250) < 100);
});

test("numbers are short and have a real minus", () => {
  assert.deepEqual([0, 0.25, -0.5, 1500, 12000, 2500000].map(short), ["0", "0.25", "−0.5", "1500", "12k", "2.5M"]);
  assert.deepEqual(
    [1.234, -1.236, -0.001, null].map((value) => fixed(value)),
    ["1.23", "−1.24", "0.00", "unknown"],
  );
  assert.deepEqual(
    [1.234, -1.234, 0.001, null].map((value) => signed(value)),
    ["+1.23", "−1.23", "0.00", "unknown"],
  );
  assert.deepEqual([0, Math.log(0.5), Math.log(4e-5), -30, null].map(probability), [
    "100.0 %",
    "50.0 %",
    "0.004 %",
    "< 0.001 %",
    "unknown",
  ]);
});
