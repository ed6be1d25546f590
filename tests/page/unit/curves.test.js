import assert from "node:assert/strict";
import { test } from "node:test";
import { aligned, extend, joined, series, summary } from "../../../server/static/model/curves.js";

const record = (kl, entropy = 1, values = {}) => ({ kl, entropy, values });

test("KL adds up, has gaps where it is unknown and goes on behind them", () => {
  const one = series();
  extend(one, [record(0.5), record(null), record(0.25)]);
  assert.deepEqual(one.kl, [0.5, null, 0.75]);
});

test("records that come later extend what is there and change none of it", () => {
  const records = [record(1, 2), record(2, null)];
  const one = series();
  extend(one, records);
  records.push(record(3, 4));
  extend(one, records);
  extend(one, records);
  assert.deepEqual(one.kl, [1, 3, 6]);
  assert.deepEqual(one.entropy, [2, null, 4]);
});

test("values stand at their tokens, also of guides that begin late or leave tokens out", () => {
  const one = series();
  extend(one, [record(0, 1, { a: 1 }), record(0, 1, { a: null, b: 5 }), record(0, 1, {}), record(0, 1, { a: 0 })]);
  assert.deepEqual(one.values, { a: [1, null, null, 0], b: [null, 5, null, null] });
});

test("answers of different lengths share the token numbers", () => {
  assert.deepEqual(aligned([[5, null, 7], [1]]), [
    [1, 2, 3],
    [5, null, 7],
    [1, null, null],
  ]);
  assert.deepEqual(aligned([[], []]), [[], [], []]);
});

test("long answers keep every so many tokens and the last of each", () => {
  const long = Array.from({ length: 5001 }, (_, index) => index);
  const [tokens, first, second] = aligned([long, long.slice(0, 100)], 50);
  assert.ok(tokens.length <= 52 && tokens.length > 40);
  assert.equal(tokens.at(-1), 5001);
  assert.equal(first.at(-1), 5000);
  assert.equal(second[tokens.indexOf(100)], 99);
  assert.ok(first.every((value, index) => value === tokens[index] - 1));
});

test("measurements of several answers share their token counts", () => {
  assert.deepEqual(joined([{ at: [4, 10], rewards: [0.1, null] }, undefined, { at: [2, 4], rewards: [0, 1] }]), [
    [2, 4, 10],
    [null, 0.1, null],
    [null, null, null],
    [0, 1, null],
  ]);
});

test("a summary leaves unknown numbers out and is null without any", () => {
  assert.deepEqual(summary([3, null, 1, 2, null]), { least: 1, mean: 2, last: 2 });
  assert.equal(summary([null]), null);
});
