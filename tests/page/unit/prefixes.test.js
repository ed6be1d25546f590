// Rewards of an answer's beginnings.

import assert from "node:assert/strict";
import { test } from "node:test";

import { rewardSoFar } from "../../../server/static/net/prefixes.js";

const asked = [{ role: "user", content: "Hi" }];

/**
 * An API whose guide says how long an answer is.
 * @returns {any}
 */
function lengths() {
  const calls = [];
  const score = async (guide, conversations) => {
    calls.push({ guide, conversations });
    return conversations.map((each) => each.at(-1).content.length);
  };
  return { calls, score };
}

test("every beginning of a short answer is scored, in one request", async () => {
  const api = lengths();
  assert.deepEqual(await rewardSoFar(api, "kind", asked, ["a", "ab", "abcd"]), { at: [1, 2, 3], rewards: [1, 2, 4] });
  assert.equal(api.calls.length, 1);
  assert.equal(api.calls[0].guide, "kind");
  assert.deepEqual(api.calls[0].conversations[1], [...asked, { role: "assistant", content: "ab" }]);
});

test("of a long answer few are scored, evenly, and always the whole", async () => {
  for (const count of [32, 33, 100, 1000]) {
    const beginnings = Array.from({ length: count }, (_, index) => "x".repeat(index + 1));
    const { at, rewards } = await rewardSoFar(lengths(), "kind", asked, beginnings);
    assert.ok(at.length <= 33);
    assert.equal(at.at(-1), count);
    assert.deepEqual(rewards, at);
    const steps = new Set(at.slice(1, -1).map((each, index) => each - at[index]));
    assert.ok(steps.size <= 1);
  }
});

test("of an answer without tokens nothing is known", async () => {
  assert.deepEqual(await rewardSoFar(lengths(), "kind", asked, []), { at: [], rewards: [] });
});
