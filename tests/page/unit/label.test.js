// Short names of settings.

import assert from "node:assert/strict";
import { test } from "node:test";

import { label } from "../../../server/static/model/label.js";

test("a setting is told by its strategy, its first parameters and its parts", () => {
  assert.equal(label({}), "sample");
  assert.equal(label({ strategy: "best_of_n", n: 8, reward: "kind" }), "best_of_n (n 8, kind)");
  assert.equal(
    label({ strategy: "best_of_n", steer: [{ method: "genarm", arm: "kind", alpha: 2 }], trace: "tokens" }),
    "best_of_n + genarm (kind, alpha 2)",
  );
});

test("settings that differ in weights, a rule or a budget differ in name", () => {
  assert.equal(label({ strategy: "panacea", preference: { kind: 1, short: 0.5 } }), "panacea (kind 1 short 0.5)");
  assert.equal(label({ strategy: "best_of_n", select: { rule: "soft" } }), "best_of_n (select soft)");
  assert.equal(label({ strategy: "best_of_n", select: "mbr" }), "best_of_n (select mbr)");
  assert.equal(label({ strategy: "sample", budget: { deadline_ms: 9 } }), "sample (within deadline_ms 9)");
});

test("what is long, empty or no number is left out", () => {
  const decoding = {
    strategy: "persona",
    text: "x".repeat(25),
    form: "",
    separator: ".",
    attributes: ["a"],
    other: { a: "b" },
    on: true,
  };
  assert.equal(label(decoding), "persona");
});
