// The gallery's comparisons, for servers with all guides, some, or none.

import assert from "node:assert/strict";
import { test } from "node:test";
import { presets } from "../../../server/static/model/presets.js";
import { GUIDES, offered } from "./offered.js";

const JUDGE = { type: "string", "x-guide": "scores_answers" };
const READER = { type: "string", "x-guide": "reader" };

function strategy(name, kind, properties = {}) {
  return { name, kind, summary: "", cost: "", paper: null, needs: [], schema: { type: "object", properties } };
}

const TEXT = { anyOf: [{ type: "string", maxLength: 4000 }, { type: "null" }], default: null };
const STRATEGIES = [
  strategy("sample", "search"),
  ...["best_of_n", "speculative_rejection", "dts_star", "treebon"].map((name) =>
    strategy(name, "search", { reward: JUDGE }),
  ),
  strategy("beam_search", "search", { value: JUDGE }),
  strategy("genarm", "steer", { arm: READER }),
  strategy("nudging", "steer", { aligned: { type: "string", "x-guide": "lm" } }),
  strategy("dexperts", "steer", { expert: READER, antiexpert: READER }),
  strategy("control_vector", "steer", { vector: { type: "string", "x-guide": "vector" } }),
  strategy("cd", "steer", { value: { type: "string", "x-guide": "scores_candidates" } }),
  strategy("args", "steer", { reward: { type: "string", "x-guide": "scores_candidates" } }),
  strategy("persona", "prompt", { text: TEXT }),
  strategy("pluralism", "prompt"),
];
const VECTOR = { name: "calm", role: "vector", scores_candidates: false, scores_answers: false };
const titles = (catalogue) => presets(catalogue).map((preset) => preset.title);
const full = offered({ strategies: STRATEGIES, guides: [...GUIDES, VECTOR] });

test("a server with guides of every kind has at least eight comparisons, each of other settings", () => {
  const all = presets(full);
  assert.ok(all.length >= 8, `${all.length}`);
  assert.equal(new Set(titles(full)).size, all.length);
  for (const { title, summary, prompt, settings, sampling } of all) {
    assert.ok(summary && prompt, title);
    assert.ok(settings.length >= 2 && settings.length <= 4, title);
    assert.equal(new Set(settings.map((each) => JSON.stringify(each))).size, settings.length, title);
    assert.ok(Number.isInteger(sampling.seed) && sampling.max_tokens > 0, title);
  }
});

test("comparisons are made of this server's guides", () => {
  const guides = [
    { name: "mine", role: "reward", scores_answers: true, scores_candidates: true },
    { name: "push", role: "lm", vocabulary: "same", card: { kind: "arm" } },
  ];
  const named = presets(offered({ strategies: STRATEGIES, guides })).flatMap((preset) => preset.settings);
  assert.ok(named.some((setting) => setting.strategy === "best_of_n" && setting.reward === "mine"));
  assert.ok(named.some((setting) => setting.strategy === "genarm" && setting.arm === "push"));
  assert.ok(!named.some((setting) => setting.strategy === "control_vector"));
});

test("without guides only those remain that need none", () => {
  const bare = presets(offered({ strategies: STRATEGIES, guides: [] }));
  const used = bare.flatMap((preset) => preset.settings.map((setting) => setting.strategy));
  assert.ok(bare.length >= 1 && used.every((name) => ["sample", "persona", "pluralism"].includes(name)), `${used}`);
});

test("a strategy that the server does not have takes its comparison with it", () => {
  const without = STRATEGIES.filter(({ name }) => name !== "nudging");
  const left = titles(offered({ strategies: without, guides: [...GUIDES, VECTOR] }));
  assert.equal(left.length, titles(full).length - 1);
});
