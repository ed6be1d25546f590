import assert from "node:assert/strict";
import { test } from "node:test";

import { Api, ApiError } from "../../../server/static/net/api.js";
import { Run } from "../../../server/static/net/run.js";
import { body } from "../../../server/static/share/body.js";
import { event, listen, open, sendJson } from "./local_server.js";

const MESSAGES = [{ role: "user", content: "Rain?" }];
const SETTING = { id: "s1", decoding: { strategy: "best_of_n", n: 2, reward: "positivity" } };
const NOBODY = { reward: null, gold: null };

const delta = (content, more = {}) => ({ choices: [{ index: 0, delta: { content }, finish_reason: null, ...more }] });
const OPENING = { choices: [{ index: 0, delta: { role: "assistant", content: "" }, finish_reason: null }] };
const ENDING = { choices: [{ index: 0, delta: {}, finish_reason: "stop" }] };
const LAST = {
  choices: [],
  usage: { completion_tokens: 4 },
  decoding: { model_tokens: { base: 30, arm: 12 }, forwards: { base: 5, arm: 4 }, milliseconds: { total: 500 } },
};
const whole = (...chunks) => [OPENING, ...chunks, ENDING, LAST, "[DONE]"].map(event).join("");

/** A run against a server of its own: `answer(response, request)` streams, `score(asked, response)` scores. */
async function prepare(
  t,
  answer,
  { judges = NOBODY, score = (_asked, _response) => {}, trace = null, prefix = "" } = {},
) {
  const scored = [];
  const origin = await listen(t, (request, response) => {
    const asked = JSON.parse(request.body);
    if (request.path === "/v1/score") {
      scored.push(asked);
      return score(asked, response);
    }
    open(response);
    return answer(response, asked);
  });
  const request = body({ model: "demo", messages: MESSAGES, setting: SETTING, trace, prefix });
  const run = new Run(new Api(origin), { setting: SETTING, label: "best of 2", request, judges });
  return { run, scored };
}

/** Resolves once the run tells of a state that fits. */
function until(run, fits) {
  return new Promise((resolve) => {
    const end = run.subscribe(() => {
      if (!fits()) return;
      end();
      resolve(null);
    });
  });
}

test("a whole answer", async (t) => {
  const { run } = await prepare(t, (response) => response.end(whole(delta("It "), delta("is 🌧."))));
  assert.deepEqual([run.phase, run.milliseconds, run.tokensPerSecond, run.cost], ["waiting", null, null, null]);
  await run.start();
  assert.equal(run.phase, "done");
  assert.equal(run.text, "It is 🌧.");
  assert.equal(run.finish, "stop");
  assert.equal(run.milliseconds, 500);
  assert.equal(run.tokensPerSecond, 8);
  assert.deepEqual(run.cost, { modelTokens: 42, forwards: 9 });
  assert.deepEqual([run.error, run.judgeError, run.rewards], [null, null, { reward: null, gold: null }]);
  const { began, first, last, ended } = run.timing;
  assert.ok(began < first && first <= last && last <= ended);
});

test("phases follow the stream", async (t) => {
  let wire;
  const { run } = await prepare(t, (response) => {
    wire = response;
    wire.write(event(OPENING));
  });
  const ended = run.start();
  assert.equal(run.phase, "waiting");
  const progress = { phase: "decode", candidates: 2, finished: 1, best_reward: null, model_tokens: 9, milliseconds: 3 };
  await until(run, () => true);
  wire.write(event({ choices: [], progress }));
  await until(run, () => run.progress !== null);
  assert.deepEqual(run.progress, progress);
  assert.deepEqual([run.phase, run.timing.first], ["waiting", null]);
  wire.write(event(delta("It")));
  await until(run, () => run.text !== "");
  assert.equal(run.phase, "writing");
  assert.equal(run.timing.first, run.timing.last);
  assert.ok(run.milliseconds > 0);
  const { first } = run.timing;
  wire.end(event(delta(" is")) + event(ENDING) + event(LAST) + event("[DONE]"));
  await ended;
  assert.equal(run.timing.first, first);
  assert.ok(run.timing.last > first);
  assert.deepEqual(run.progress, progress);
});

test("without the server's milliseconds the wall counts, up to the end of the answer", async (t) => {
  const bare = [OPENING, delta("It"), ENDING, { choices: [], usage: { completion_tokens: 1 } }, "[DONE]"];
  const { run } = await prepare(t, (response) => response.end(bare.map(event).join("")), {
    judges: { reward: "positivity", gold: null },
    score: (_, response) => void setTimeout(() => sendJson(response, { data: [{ index: 0, score: 1 }] }), 60),
  });
  await run.start();
  assert.equal(run.milliseconds, run.timing.ended - run.timing.began);
  assert.ok(performance.now() - run.timing.ended >= 50);
  assert.ok(run.tokensPerSecond > 0);
  assert.equal(run.cost, null);
});

test("stopped while it waits", async (t) => {
  let left;
  const closed = new Promise((resolve) => (left = resolve));
  const { run } = await prepare(t, (response) => {
    response.on("close", left);
    response.write(event(OPENING));
  });
  const ended = run.start();
  await until(run, () => true);
  run.stop();
  await ended;
  await closed;
  assert.deepEqual([run.phase, run.text, run.error, run.timing.first], ["stopped", "", null, null]);
  assert.ok(run.timing.ended >= run.timing.began);
});

test("stopped while it writes, the text stays and nobody judges it", async (t) => {
  const { run, scored } = await prepare(t, (response) => response.write(event(delta("It is"))), {
    judges: { reward: "positivity", gold: null },
  });
  const ended = run.start();
  await until(run, () => run.text !== "");
  run.stop();
  await ended;
  const { milliseconds } = run;
  assert.deepEqual([run.phase, run.text, run.error, run.finish], ["stopped", "It is", null, null]);
  assert.equal(run.tokensPerSecond, null);
  assert.deepEqual(scored, []);
  await new Promise((resolve) => setTimeout(resolve, 5));
  assert.equal(run.milliseconds, milliseconds);
});

test("what had arrived with the last text is not taken after a stop", async (t) => {
  const { run } = await prepare(t, (response) => response.end(whole(delta("one"), delta(" two"), delta(" three"))));
  run.subscribe(() => run.text && run.stop());
  await run.start();
  assert.equal(run.phase, "stopped");
  assert.ok(run.text.startsWith("one") && !run.text.endsWith("three"), run.text);
});

test("stopped before its turn, it never asks", async () => {
  const api = { stream: () => assert.fail("it asked") };
  const request = body({ model: "demo", messages: MESSAGES, setting: SETTING });
  const run = new Run(/** @type {any} */ (api), { setting: SETTING, label: "x", request, judges: NOBODY });
  run.stop();
  assert.equal(run.phase, "stopped");
  await run.start();
  assert.deepEqual([run.phase, run.timing.began], ["stopped", null]);
});

test("a stop after the end changes nothing, nor does a second start", async (t) => {
  let asked = 0;
  const { run } = await prepare(t, (response) => {
    asked += 1;
    response.end(whole(delta("It")));
  });
  await run.start();
  run.stop();
  await run.start();
  assert.deepEqual([run.phase, run.text, asked], ["done", "It", 1]);
});

test("an error event, a cut, garbage and a lost connection leave the text", async (t) => {
  const error = { message: "guide 'arm' failed", type: "server_error", param: null, code: "guide_failed" };
  const ends = {
    http: (response) => response.end(event({ error }) + event("[DONE]")),
    cut: (response) => response.end('data: {"choi'),
    garbled: (response) => response.end(event("{broken")),
    gone: (response) => response.socket.resetAndDestroy(),
  };
  for (const [kind, end] of Object.entries(ends)) {
    const { run, scored } = await prepare(t, (response) => response.write(event(delta("It is")), () => end(response)), {
      judges: { reward: "positivity", gold: null },
    });
    await run.start();
    assert.deepEqual([run.phase, run.text, run.error.kind], ["failed", kind === "gone" ? run.text : "It is", kind]);
    assert.ok(run.error instanceof ApiError && run.timing.ended !== null);
    assert.deepEqual(scored, []);
  }
});

test("a refusal is an error with its status", async (t) => {
  const origin = await listen(t, (_, response) => {
    sendJson(response, { error: { message: "the queue is full", code: "overloaded" } }, 503, { "retry-after": "3" });
  });
  const request = body({ model: "demo", messages: MESSAGES, setting: SETTING });
  const run = new Run(new Api(origin), { setting: SETTING, label: "x", request, judges: NOBODY });
  await run.start();
  assert.equal(run.phase, "failed");
  assert.deepEqual([run.error.status, run.error.retryAfter, run.error.code], [503, 3, "overloaded"]);
});

test("chunks of an unknown form fail the run and reject nothing", async (t) => {
  for (const chunk of [{ choices: 5 }, { choices: [null] }]) {
    const { run } = await prepare(t, (response) => response.end(whole(delta("It"), chunk)));
    await run.start();
    assert.deepEqual([run.phase, run.text, run.error.kind], ["failed", "It", "garbled"]);
  }
});

test("other choices are not this answer", async (t) => {
  const other = { choices: [{ index: 1, delta: { content: "no" }, finish_reason: "length", trace: [{ id: 9 }] }] };
  const { run } = await prepare(t, (response) => response.end(whole(delta("yes"), other, {})));
  await run.start();
  assert.deepEqual([run.text, run.finish, run.tokens], ["yes", "stop", []]);
});

test("calls of functions are shown as text", async (t) => {
  const call = (said) => ({ choices: [{ index: 0, delta: { tool_calls: [{ index: 0, ...said }] } }] });
  const named = call({ id: "c1", type: "function", function: { name: "weather", arguments: "" } });
  const filled = ['{"city": ', '"Paris"}'].map((text) => call({ function: { arguments: text } }));
  const { run } = await prepare(t, (response) => response.end(whole(named, ...filled, call({}))));
  await run.start();
  assert.equal(run.text, 'weather {"city": "Paris"}');
});

test("trace records grow in the same array, and those of the last chunk count where there are no others", async (t) => {
  const records = [1, 2, 3].map((id) => ({ id }));
  let run;
  const kept = [];
  const streamed = whole(
    delta("a", { trace: records.slice(0, 2) }),
    delta("b"),
    delta("", { trace: records.slice(2) }),
  );
  ({ run } = await prepare(t, (response) => response.end(streamed), { trace: "tokens" }));
  kept.push(run.tokens);
  await run.start();
  assert.deepEqual(run.tokens, records);
  assert.equal(run.tokens, kept[0]);

  const late = { ...LAST, decoding: { ...LAST.decoding, trace: [records] } };
  const chunks = [OPENING, delta("a"), late, "[DONE]"];
  ({ run } = await prepare(t, (response) => response.end(chunks.map(event).join("")), { trace: "tokens" }));
  kept.push(run.tokens);
  await run.start();
  assert.deepEqual(run.tokens, records);
  assert.equal(run.tokens, kept[1]);

  const twice = [OPENING, delta("a", { trace: records }), late, "[DONE]"];
  ({ run } = await prepare(t, (response) => response.end(twice.map(event).join("")), { trace: "tokens" }));
  await run.start();
  assert.deepEqual(run.tokens, records);
});

test("judges read the conversation with the whole answer, prefix included", async (t) => {
  const scores = { positivity: 0.25, length: -3 };
  const { run, scored } = await prepare(t, (response) => response.end(whole(delta(" wet."))), {
    judges: { reward: "positivity", gold: "length" },
    score: ({ model }, response) => sendJson(response, { data: [{ index: 0, score: scores[model] }] }),
    prefix: "It is",
  });
  assert.equal(run.prefix, "It is");
  const phases = new Set();
  run.subscribe(() => phases.add(run.phase));
  await run.start();
  await Promise.resolve();
  assert.deepEqual(run.rewards, { reward: 0.25, gold: -3 });
  assert.ok(phases.has("judging"));
  assert.equal(run.phase, "done");
  const conversation = [...MESSAGES, { role: "assistant", content: "It is wet." }];
  scored.sort((a, b) => a.model.localeCompare(b.model));
  assert.deepEqual(
    scored,
    ["length", "positivity"].map((model) => ({ model, conversations: [conversation] })),
  );
});

test("a judge that fails leaves null and its words; the other one counts", async (t) => {
  const { run } = await prepare(t, (response) => response.end(whole(delta("It"))), {
    judges: { reward: "positivity", gold: "broken" },
    score: ({ model }, response) =>
      model === "broken"
        ? sendJson(response, { error: { message: "no such guide" } }, 404)
        : sendJson(response, { data: [{ index: 0, score: 1 }] }),
  });
  await run.start();
  assert.deepEqual([run.phase, run.rewards, run.error], ["done", { reward: 1, gold: null }, null]);
  assert.equal(run.judgeError, "broken: no such guide");
});

test("a stop while it is judged leaves a complete answer without a score", async (t) => {
  const { run, scored } = await prepare(t, (response) => response.end(whole(delta("It"))), {
    judges: { reward: "positivity", gold: null },
  });
  const ended = run.start();
  await until(run, () => run.phase === "judging");
  while (scored.length === 0) await new Promise((resolve) => setTimeout(resolve, 2));
  run.stop();
  await ended;
  assert.deepEqual([run.phase, run.finish, run.rewards.reward], ["done", "stop", null]);
  assert.match(run.judgeError, /stopped/);
});

test("many changes at once are told once, and whoever left is told nothing", async (t) => {
  const words = Array.from({ length: 200 }, (_, index) => delta(` ${index}`));
  const { run } = await prepare(t, (response) => response.end(whole(...words)));
  const frames = [];
  t.after(() => {
    delete globalThis.requestAnimationFrame;
    delete globalThis.cancelAnimationFrame;
  });
  globalThis.requestAnimationFrame = (call) => frames.push(call);
  globalThis.cancelAnimationFrame = () => {};
  let told = 0;
  run.subscribe(() => (told += 1));
  run.subscribe(() => assert.fail("told"))();
  await run.start();
  assert.equal(frames.length, 1);
  assert.equal(told, 0);
  frames[0](0);
  assert.equal(told, 1);
});

test("where frames stand still, as in a hidden tab, a timer tells", async (t) => {
  const { run } = await prepare(t, (response) => response.end(whole(delta("It"))));
  t.after(() => {
    delete globalThis.requestAnimationFrame;
    delete globalThis.cancelAnimationFrame;
  });
  const cancelled = [];
  globalThis.requestAnimationFrame = () => 7;
  globalThis.cancelAnimationFrame = (frame) => cancelled.push(frame);
  const told = until(run, () => run.phase === "done");
  await run.start();
  await told;
  assert.deepEqual(cancelled, [7]);
});

test("runs have names of their own", () => {
  const request = body({ model: "demo", messages: MESSAGES, setting: SETTING });
  const make = () => new Run(new Api(), { setting: SETTING, label: "x", request, judges: NOBODY }).id;
  assert.equal(new Set(Array.from({ length: 100 }, make)).size, 100);
});
