import assert from "node:assert/strict";
import { test } from "node:test";

import { initial, messages, reduce, restored, shared } from "../../../server/static/model/session.js";
import { decode, encode } from "../../../server/static/share/link.js";
import { numbers } from "./seeded.js";

const SAMPLE = { strategy: "sample" };
const BEST = { strategy: "best_of_n", n: 4, reward: "positivity" };
const CATALOGUE = {
  models: ["demo", "other"],
  strategies: [{ name: "sample" }, { name: "best_of_n" }],
  guides: [{ name: "positivity" }],
};

const start = () => initial(["demo", "other"], [SAMPLE, BEST]);
const run = (state, ...actions) => actions.reduce(reduce, state);
const patch = (changes) => ({ type: "patch", changes });
const ask = (content, answer = null) => ({ type: "ask", content, answer });
const answer = (content) => ({ content, label: "best of 4" });

test("the first state", () => {
  const state = start();
  assert.equal(state.model, "demo");
  assert.deepEqual(state.settings, [
    { id: "s1", decoding: SAMPLE },
    { id: "s2", decoding: BEST },
  ]);
  assert.deepEqual(messages(state), []);
});

test("patch changes what it may, sampling field by field, and nothing else", () => {
  const state = run(start(), patch({ model: "other", trace: false, draft: "hi", sampling: { seed: 9 } }));
  assert.deepEqual([state.model, state.trace, state.draft], ["other", false, "hi"]);
  assert.deepEqual(state.sampling, { ...start().sampling, seed: 9 });
  for (const changes of [{ turns: [] }, { nextId: 1 }, { model: "x", settings: [] }, { key: "secret" }]) {
    assert.equal(reduce(state, patch(changes)), state);
  }
});

test("settings come and go between one and four, with ids that never return", () => {
  const add = { type: "add-setting", decoding: SAMPLE };
  const four = run(start(), add, add);
  assert.deepEqual(
    four.settings.map(({ id }) => id),
    ["s1", "s2", "s3", "s4"],
  );
  assert.equal(reduce(four, add), four);
  const replaced = run(four, { type: "remove-setting", id: "s4" }, add);
  assert.equal(replaced.settings.at(-1).id, "s5");
  assert.equal(reduce(four, { type: "remove-setting", id: "s9" }), four);
  const one = run(start(), { type: "remove-setting", id: "s1" });
  assert.deepEqual(one.settings, [{ id: "s2", decoding: BEST }]);
  assert.equal(reduce(one, { type: "remove-setting", id: "s2" }), one);
});

test("change-setting changes one decoding", () => {
  const state = start();
  const next = run(state, { type: "change-setting", id: "s2", decoding: { ...BEST, n: 8 } });
  assert.equal(next.settings[1].decoding.n, 8);
  assert.equal(next.settings[0], state.settings[0]);
  assert.equal(reduce(state, { type: "change-setting", id: "s7", decoding: SAMPLE }), state);
});

test("adopt names a setting that is there, and ends with it", () => {
  const state = run(start(), { type: "adopt", id: "s2" });
  assert.equal(state.adopted, "s2");
  assert.equal(reduce(state, { type: "adopt", id: "s9" }), state);
  assert.equal(run(state, { type: "adopt", id: null }).adopted, null);
  assert.equal(run(state, { type: "remove-setting", id: "s2" }).adopted, null);
  assert.equal(run(state, { type: "remove-setting", id: "s1" }).adopted, "s2");
});

test("ask puts the answer that goes on before the new prompt", () => {
  const first = run(start(), patch({ system: "Be kind.", draft: "Rain?" }), ask("Rain?"), { type: "adopt", id: "s1" });
  const second = run(first, ask("And snow?", answer("Wet.")));
  assert.deepEqual(second.turns, [
    { role: "user", content: "Rain?" },
    { role: "assistant", content: "Wet.", label: "best of 4" },
    { role: "user", content: "And snow?" },
  ]);
  assert.deepEqual([first.draft, second.adopted], ["", null]);
  assert.deepEqual(messages(second), [
    { role: "system", content: "Be kind." },
    { role: "user", content: "Rain?" },
    { role: "assistant", content: "Wet." },
    { role: "user", content: "And snow?" },
  ]);
  assert.deepEqual(messages(run(second, patch({ system: "  \n" })))[0].role, "user");
});

test("nothing to ask, or an answer to nothing, changes nothing", () => {
  const state = start();
  assert.equal(reduce(state, ask("  \n")), state);
  assert.equal(reduce(state, ask("Snow?", answer("Wet."))), state);
});

test("edit-turn takes away what follows a prompt", () => {
  const state = run(start(), ask("Rain?"), ask("Snow?", answer("Wet.")), { type: "adopt", id: "s1" });
  const edited = run(state, { type: "edit-turn", index: 0, content: "Hail?" });
  assert.deepEqual(edited.turns, [{ role: "user", content: "Hail?" }]);
  assert.equal(edited.adopted, null);
  assert.equal(run(state, { type: "edit-turn", index: 2, content: "Hail?" }).turns.length, 3);
  for (const index of [1, 3, -1, undefined]) {
    assert.equal(reduce(state, { type: "edit-turn", index, content: "x" }), state);
  }
  assert.equal(reduce(state, { type: "edit-turn", index: 0, content: " " }), state);
});

test("a preset brings its own columns, prompt and sampling", () => {
  const before = run(start(), patch({ system: "old", reward: "positivity", sampling: { seed: 5 } }), ask("Rain?"));
  const preset = {
    title: "t",
    summary: "s",
    prompt: "Hail?",
    sampling: { max_tokens: 40 },
    settings: [BEST, SAMPLE, BEST],
  };
  const state = run(before, { type: "preset", preset });
  assert.deepEqual(
    state.settings.map(({ id }) => id),
    ["s3", "s4", "s5"],
  );
  assert.deepEqual(
    state.settings.map(({ decoding }) => decoding),
    preset.settings,
  );
  assert.deepEqual([state.system, state.draft, state.turns, state.reward], ["", "Hail?", [], "positivity"]);
  assert.deepEqual(state.sampling, { ...start().sampling, max_tokens: 40 });
  for (const settings of [[], Array(5).fill(SAMPLE)]) {
    assert.equal(reduce(before, { type: "preset", preset: { ...preset, settings } }), before);
  }
});

test("clear, load and actions that nobody knows", () => {
  const state = run(start(), ask("Rain?"));
  assert.deepEqual(run(state, { type: "clear" }).turns, []);
  assert.equal(reduce(start(), { type: "load", state }), state);
  for (const type of ["nope", "toString", "__proto__", undefined]) assert.equal(reduce(state, { type }), state);
});

test("no action changes the state that it is given", () => {
  const freeze = (value) => {
    if (typeof value === "object" && value !== null) Object.values(Object.freeze(value)).forEach(freeze);
    return value;
  };
  const draw = numbers(11);
  let state = freeze(start());
  const preset = { prompt: "Hail?", settings: [BEST] };
  for (let round = 0; round < 2000; round++) {
    const id = `s${draw(state.nextId + 1)}`;
    const actions = [
      patch({ draft: `${round}` }),
      patch({ sampling: { seed: round } }),
      { type: "add-setting", decoding: BEST },
      { type: "remove-setting", id },
      { type: "change-setting", id, decoding: { ...SAMPLE } },
      { type: "adopt", id },
      ask("Rain?", draw(2) ? answer("Wet.") : null),
      { type: "edit-turn", index: draw(8), content: "Snow?" },
      draw(20) ? { type: "nope" } : { type: "preset", preset },
      draw(20) ? { type: "nope" } : { type: "clear" },
    ];
    state = freeze(reduce(state, actions[draw(actions.length)]));
    const ids = state.settings.map((setting) => setting.id);
    assert.ok(ids.length >= 1 && ids.length <= 4 && new Set(ids).size === ids.length);
    assert.ok(state.adopted === null || ids.includes(state.adopted));
    assert.ok(state.turns.every((turn, index) => turn.role === "user" || state.turns[index - 1]?.role === "user"));
  }
});

test("a link brings the page back", () => {
  const state = run(
    start(),
    patch({ model: "other", system: "Be kind.", reward: "positivity", trace: false, oneByOne: true }),
    patch({ sampling: { temperature: 0, top_p: 0.5, max_tokens: 7, seed: null } }),
    ask("Rain?"),
    ask("Snow?", answer("Wet.")),
    { type: "remove-setting", id: "s1" },
    patch({ draft: "Hail" }),
    { type: "adopt", id: "s2" },
  );
  const back = restored(decode(encode(shared(state))), CATALOGUE);
  assert.deepEqual(back, { ...state, settings: [{ id: "s1", decoding: BEST }], nextId: 2, adopted: null });
});

test("a link holds as much as a link may", () => {
  let state = run(start(), patch({ system: "x".repeat(100_001) }), ask("0"));
  for (let turn = 1; turn < 50; turn++) state = run(state, ask(`${turn}`, answer("Wet.")));
  const found = decode(encode(shared(state)));
  assert.equal(found.turns.length, 63);
  assert.deepEqual(found.turns[0], { role: "user", content: "18" });
  assert.deepEqual(found.turns.at(-1), { role: "user", content: "49" });
  assert.equal(found.system.length, 100_000);
  assert.equal(shared(run(start(), ask("x".repeat(100_001)))).turns[0].content.length, 100_000);
  assert.deepEqual(shared(start()).turns, []);
});

test("what a link names and the server lacks is left out", () => {
  const link = { model: "gone", settings: [{ strategy: "gone" }, BEST, {}], reward: "gone", gold: "positivity" };
  const state = restored(link, CATALOGUE);
  assert.deepEqual([state.model, state.reward, state.gold], ["demo", null, "positivity"]);
  assert.deepEqual(state.settings, [
    { id: "s1", decoding: BEST },
    { id: "s2", decoding: {} },
  ]);
  assert.deepEqual(restored({ settings: [{ strategy: "gone" }] }, CATALOGUE).settings[0].decoding, SAMPLE);
  assert.deepEqual(restored({}, CATALOGUE), initial(CATALOGUE.models, [SAMPLE]));
});

test("sampling of a link is brought within its ranges", () => {
  const sampling = { temperature: 99, top_p: -1, max_tokens: 1e9, seed: -5 };
  assert.deepEqual(restored({ sampling }, CATALOGUE).sampling, {
    temperature: 2,
    top_p: 0.01,
    max_tokens: 100_000,
    seed: 0,
  });
  assert.equal(restored({ sampling: { seed: null } }, CATALOGUE).sampling.seed, null);
});
