import assert from "node:assert/strict";
import { test } from "node:test";

import { decode, encode } from "../../../server/static/share/link.js";
import { numbers, oddText } from "./seeded.js";

const STATE = {
  model: "demo",
  system: "Be kind.",
  settings: [{ strategy: "sample" }, { strategy: "best_of_n", n: 4, reward: { sum: [{ guide: "positivity" }] } }],
  sampling: { temperature: null, top_p: 0.9, max_tokens: 100, seed: 1 },
  reward: "positivity",
  gold: null,
  trace: true,
  oneByOne: false,
  turns: [
    { role: "user", content: "Rain?" },
    { role: "assistant", content: "Wet.", label: "sample" },
  ],
  draft: "",
};

/** A fragment of anything, as somebody else might make it. */
const fragment = (value) =>
  Buffer.from(typeof value === "string" ? value : JSON.stringify(value)).toString("base64url");
const changed = (changes) => decode(fragment({ ...STATE, ...changes }));
const nested = (depth) => (depth === 0 ? 1 : { a: nested(depth - 1) });

test("a state comes back from its link", () => {
  const link = encode(STATE);
  assert.match(link, /^[A-Za-z0-9_-]+$/);
  assert.deepEqual(decode(link), STATE);
});

test("any text comes back", () => {
  const draw = numbers(3);
  for (let round = 0; round < 300; round++) {
    const state = { ...STATE, draft: oddText(draw, 40), turns: [{ role: "user", content: oddText(draw, 40) }] };
    assert.deepEqual(decode(encode(state)), state);
  }
  const everything = Array.from({ length: 0xd800 }, (_, code) => String.fromCharCode(code)).join("");
  assert.equal(decode(encode({ ...STATE, draft: everything })).draft, everything);
});

test("half a surrogate pair is replaced", () => {
  const state = { ...STATE, draft: "a\ud83cb 🌧 \udf27", turns: [{ role: "user", content: "\ud83c" }] };
  assert.equal(decode(encode(state)).draft, "a\ufffdb 🌧 \ufffd");
  assert.equal(decode(encode(state)).turns[0].content, "\ufffd");
});

test("what is broken is null, wherever it breaks", () => {
  const link = encode(STATE);
  for (let at = 0; at < link.length; at++) assert.equal(decode(link.slice(0, at)), null, `${at}`);
  for (const text of ["", "#", "=", "a", "%20", "ab cd", "é", "null", "[]", '"x"', "{", "5"]) {
    assert.equal(decode(text), null, text);
    assert.equal(decode(fragment(text)), null, text);
  }
  assert.equal(decode(Buffer.from('{"draft":"\xff"}', "latin1").toString("base64url")), null);
});

test("a link with one character changed never throws", () => {
  const link = encode(STATE);
  const draw = numbers(5);
  const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
  for (let round = 0; round < 2000; round++) {
    const at = draw(link.length);
    const found = decode(link.slice(0, at) + letters[draw(64)] + link.slice(at + 1));
    assert.ok(found === null || (found.settings.length === 2 && typeof found.model === "string"));
  }
});

test("fields may be missing, and unknown ones are refused", () => {
  assert.deepEqual(decode(fragment({})), {});
  assert.deepEqual(decode(fragment({ draft: "hi" })), { draft: "hi" });
  assert.equal(changed({ key: "secret" }), null);
  assert.equal(changed({ toString: 1 }), null);
  assert.equal(changed({ sampling: { ...STATE.sampling, top_k: 1 } }), null);
  assert.equal(changed({ turns: [{ role: "user", content: "x", id: 1 }] }), null);
});

test("prototypes are refused at any depth", () => {
  for (const name of ["__proto__", "constructor", "prototype"]) {
    assert.equal(decode(fragment(`{"${name}": {"draft": "x"}}`)), null);
    assert.equal(decode(fragment(`{"settings": [{"strategy": "x", "steer": [{"${name}": {"a": 1}}]}]}`)), null);
    assert.equal(decode(fragment(`{"sampling": {"${name}": 1}}`)), null);
  }
  assert.equal(/** @type {any} */ ({}).draft, undefined);
});

test("every field has its type", () => {
  const wrong = {
    model: [null, 5, {}],
    system: [null, ["x"]],
    settings: [null, {}, [], [null], ["sample"], [[]], [{}, {}, {}, {}, {}]],
    sampling: [null, [], { seed: "1" }, { seed: 1.5 }, { seed: 1e300 }, { temperature: true }],
    reward: [5, {}],
    gold: [false],
    trace: [null, "yes", 1],
    oneByOne: [null, 0],
    turns: [null, {}, [null], [{}], [{ role: "user" }], [{ content: "x" }], [{ role: "system", content: "x" }]],
    draft: [null, 5],
  };
  wrong.turns.push([{ role: "user", content: 5 }], [{ role: "user", content: "x", label: null }]);
  for (const [name, values] of Object.entries(wrong)) {
    for (const value of values) assert.equal(changed({ [name]: value }), null, `${name}: ${JSON.stringify(value)}`);
  }
});

test("lengths and depth have bounds, and reach them", () => {
  const turn = { role: "user", content: "x" };
  assert.notEqual(changed({ settings: Array(4).fill({}) }), null);
  assert.equal(changed({ settings: Array(5).fill({}) }), null);
  assert.notEqual(changed({ turns: Array(64).fill(turn) }), null);
  assert.equal(changed({ turns: Array(65).fill(turn) }), null);
  assert.notEqual(changed({ draft: "x".repeat(100_000) }), null);
  assert.equal(changed({ draft: "x".repeat(100_001) }), null);
  assert.equal(changed({ settings: [{ ["x".repeat(100_001)]: 1 }] }), null);
  assert.equal(changed({ settings: [{ strategy: "x".repeat(100_001) }] }), null);
  assert.notEqual(changed({ settings: [nested(10)] }), null);
  assert.equal(changed({ settings: [nested(11)] }), null);
  assert.equal(decode(fragment(`{"settings":[${'{"a":'.repeat(50_000)}1${"}".repeat(50_000)}]}`)), null);
  const long = { role: "user", content: "x".repeat(100_000) };
  assert.notEqual(decode(fragment({ turns: Array(14).fill(long) })), null);
  assert.equal(decode(fragment({ turns: Array(15).fill(long) })), null);
});
