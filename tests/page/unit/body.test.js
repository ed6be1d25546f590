import assert from "node:assert/strict";
import { test } from "node:test";

import { body } from "../../../server/static/share/body.js";

const MESSAGES = [{ role: "user", content: "Rain?" }];
const SETTING = { id: "s1", decoding: { strategy: "best_of_n", n: 4, reward: "positivity" } };
const asked = (more) => body({ model: "demo", messages: MESSAGES, setting: SETTING, ...more });

test("a plain request", () => {
  assert.deepEqual(asked(), {
    model: "demo",
    messages: MESSAGES,
    decoding: SETTING.decoding,
    stream: true,
    stream_options: { include_usage: true, include_progress: true },
  });
});

test("sampling fields that are empty are left out; zero is not empty", () => {
  const request = asked({ sampling: { temperature: 0, top_p: null, max_tokens: NaN, seed: 0 } });
  assert.deepEqual([request.temperature, request.seed], [0, 0]);
  assert.ok(!("top_p" in request) && !("max_tokens" in request));
  assert.ok(!("temperature" in asked({ sampling: { temperature: undefined } })));
});

test("tokens come with their trace where they are traced", () => {
  const told = (more) => {
    const { decoding, stream_options: options } = asked(more);
    return [decoding.trace, options.include_trace];
  };
  assert.deepEqual(told({ trace: "tokens" }), ["tokens", true]);
  assert.deepEqual(told({ trace: "both" }), ["both", true]);
  assert.deepEqual(told({ trace: "search" }), ["search", undefined]);
  assert.deepEqual(told({ trace: null }), [undefined, undefined]);
  assert.deepEqual(told({ setting: { decoding: { trace: "tokens" } } }), ["tokens", true]);
});

test("a prefix is what the answer continues", () => {
  const request = asked({ prefix: "It is" });
  assert.deepEqual(request.messages, [...MESSAGES, { role: "assistant", content: "It is" }]);
  assert.equal(request.continue_final_message, true);
  assert.equal(request.add_generation_prompt, false);
  assert.ok(!("continue_final_message" in asked({ prefix: "" })));
});

test("what it is made from stays as it is", () => {
  const before = structuredClone([MESSAGES, SETTING]);
  asked({ prefix: "It", trace: "both" }).decoding.n = 9;
  assert.deepEqual([MESSAGES, SETTING], before);
});
