// What fits a parameter, how a strategy begins, why one cannot run, and changes to a decoding object.

import assert from "node:assert/strict";
import { test } from "node:test";
import { Catalogue } from "../../../server/static/model/catalogue.js";
import { ruleOf, selects, withKey, withStrategy, withValue, wrong } from "../../../server/static/model/decoding.js";
import { GUIDES, offered, STRATEGIES } from "./offered.js";

test("the three lists of the server are asked for, and read", async () => {
  const told = {
    "/v1/models": { data: [{ id: "demo" }, { id: "demo:kind" }] },
    "/v1/strategies": {
      data: STRATEGIES,
      rules: [{ name: "soft" }],
      budget: { type: "object" },
      rewards: ["kindness"],
    },
    "/v1/guides": { data: GUIDES },
  };
  const catalogue = await Catalogue.load({ get: async (path) => told[path] });
  assert.deepEqual(catalogue.models, ["demo", "demo:kind"]);
  assert.equal(catalogue.strategy("arm").kind, "steer");
  assert.equal(catalogue.rule("soft").name, "soft");
  assert.equal(catalogue.guide("head").role, "value");
  assert.deepEqual([catalogue.rewards, catalogue.budget], [["kindness"], { type: "object" }]);
});

test("a guide fits by what it can do", () => {
  const catalogue = offered();
  assert.deepEqual(catalogue.fitting("lm"), ["far", "blocks", "negative-lm", "kind-arm", "positive-lm"]);
  assert.deepEqual(catalogue.fitting("reader"), ["blocks", "negative-lm", "kind-arm", "positive-lm"]);
  assert.deepEqual(catalogue.fitting("scores_answers"), ["length", "kindness"]);
  assert.deepEqual(catalogue.fitting("scores_candidates"), ["kindness", "wide-head"]);
  assert.deepEqual(catalogue.fitting("value_head"), ["head"]);
  assert.deepEqual(catalogue.fitting(["scores_answers", "value_head"]), ["length", "kindness", "head"]);
  assert.deepEqual(catalogue.fitting("attributes"), ["blocks"]);
  assert.deepEqual(catalogue.fitting("vector"), []);
  assert.deepEqual(catalogue.fitting("something new"), []);
  const [tuned, untuned] = catalogue.fields("duel");
  assert.deepEqual(catalogue.candidates(untuned), ["base", ...catalogue.candidates(tuned)]);
});

test("a strategy begins with the guides that suit it", () => {
  const catalogue = offered();
  const begun = Object.fromEntries(STRATEGIES.map(({ name }) => [name, catalogue.start(name)]));
  assert.deepEqual(begun.sample, { strategy: "sample" });
  assert.deepEqual(begun.best_of_n, { strategy: "best_of_n", reward: "kindness" });
  assert.deepEqual(begun.experts, { strategy: "experts", expert: "positive-lm", antiexpert: "negative-lm" });
  assert.deepEqual(begun.head, { strategy: "head", value: "head" });
  assert.deepEqual(begun.speak, { strategy: "speak", aligned: "positive-lm" });
  assert.deepEqual(begun.mix.weights, { "kind-arm": 0.5, base: 0.5 });
  assert.deepEqual(begun.pair, { strategy: "pair", one: "kind-arm", other: "positive-lm" });
  assert.deepEqual(begun.blocks, { strategy: "blocks", guide: "blocks", preference: { brevity: 0.5, kindness: 0.5 } });
});

test("of guides that may all be left out, one is named: the first, or the one to compare with the base", () => {
  const catalogue = offered();
  assert.deepEqual(catalogue.start("arm"), { strategy: "arm", arm: "kind-arm" });
  assert.deepEqual(catalogue.start("duel"), { strategy: "duel", reward: "kindness", tuned: "positive-lm" });
});

test("what would do nothing without a text gets one, and auto a budget", () => {
  assert.match(offered().start("wish").text, /\w/);
  assert.deepEqual(offered().start("auto").budget, { deadline_ms: 4000 });
});

test("a strategy that lacks a guide says what it needs", () => {
  const catalogue = offered();
  assert.match(catalogue.missing("vector"), /control vector \(role vector\)/);
  assert.match(catalogue.missing("auto"), /profile/);
  assert.equal(catalogue.missing("arm"), null);
  assert.match(offered({ guides: [] }).missing("arm"), /language model/);
  assert.match(offered({ guides: [] }).missing("best_of_n"), /scores answers.*or a value head/);
  assert.match(offered({ guides: GUIDES.filter((guide) => !guide.attributes) }).missing("blocks"), /attributes/);
  assert.equal(offered({ guides: [] }).missing("sample"), null);
});

test("a value that is the default is left out, except where it must be given", () => {
  const [n, reward] = offered().fields("best_of_n");
  assert.deepEqual(withValue({ n: 4, reward: "kindness" }, n, 8), { reward: "kindness" });
  assert.deepEqual(withValue({ reward: "kindness" }, n, 4), { reward: "kindness", n: 4 });
  assert.deepEqual(withValue({ n: 4 }, n, undefined), {});
  assert.deepEqual(withValue({}, reward, "length"), { reward: "length" });
  const [arm] = offered().fields("arm");
  assert.deepEqual(withValue({ arm: "kind-arm", alpha: 2 }, arm, null), { alpha: 2 });
  assert.deepEqual(withKey({ a: 1, steer: [1] }, "steer", []), { a: 1 });
  assert.deepEqual(withKey({ a: 1 }, "select", "soft"), { a: 1, select: "soft" });
});

test("another strategy keeps the parts, and a rule only where there is something to select", () => {
  const catalogue = offered();
  const decoding = {
    strategy: "best_of_n",
    n: 3,
    reward: "length",
    steer: [{ method: "arm", arm: "kind-arm" }],
    prompt: [{ method: "wish", text: "short" }],
    select: "soft",
    budget: { deadline_ms: 10 },
  };
  const { steer, prompt, budget, select } = decoding;
  assert.deepEqual(withStrategy(catalogue, decoding, "duel"), {
    ...catalogue.start("duel"),
    steer,
    prompt,
    select,
    budget,
  });
  assert.deepEqual(withStrategy(catalogue, decoding, "sample"), { strategy: "sample", steer, prompt, budget });
  assert.deepEqual(withStrategy(catalogue, decoding, "speak"), { ...catalogue.start("speak"), steer, prompt, budget });
  assert.deepEqual(withStrategy(catalogue, decoding, "auto"), { strategy: "auto", budget });
  assert.equal(selects(catalogue.strategy("speak")), false);
});

test("a preference that belongs to a strategy goes with it, one of the request stays", () => {
  const catalogue = offered();
  const own = { strategy: "blocks", guide: "blocks", preference: { brevity: 1 } };
  assert.deepEqual(withStrategy(catalogue, own, "sample"), { strategy: "sample" });
  const shared = { strategy: "sample", preference: { text: "short" } };
  assert.deepEqual(withStrategy(catalogue, shared, "arm").preference, { text: "short" });
  assert.deepEqual(withStrategy(catalogue, shared, "blocks"), catalogue.start("blocks"));
});

test("a rule is read in both of its forms", () => {
  assert.deepEqual(ruleOf({ select: "soft" }), { rule: "soft" });
  assert.deepEqual(ruleOf({ select: { rule: "soft", temperature: 2 } }), { rule: "soft", temperature: 2 });
  assert.equal(ruleOf({}), null);
});

test("every strategy begins with an object that is right", () => {
  const catalogue = offered();
  for (const { name } of STRATEGIES.filter((each) => catalogue.missing(each.name) === null)) {
    assert.equal(wrong(catalogue, catalogue.start(name)), null, name);
  }
});

test("what is wrong with a decoding object is said with its place", () => {
  const cases = [
    [[], "must be an object"],
    [{ strategy: "best_of_m" }, 'no strategy is named "best_of_m"'],
    [{ strategy: "best_of_n", n: 0 }, "n: must be at least 1"],
    [{ strategy: "best_of_n", m: 1 }, "has no key m"],
    [{ strategy: "vector" }, "needs vector"],
    [{ steer: {} }, "steer: must be a list of parts"],
    [{ steer: [{ method: "arm", alpha: "1" }] }, "steer[0].alpha: must be a number"],
    [{ steer: [null] }, "steer[0]: no strategy is named undefined"],
    [{ prompt: [{ method: "arm" }] }, "prompt[0]: arm is no part of this kind"],
    [{ select: "best" }, 'select: no rule is named "best"'],
    [{ select: { rule: "soft", temperature: -1 } }, "select.temperature: must be at least 0"],
    [{ budget: { deadline: 1 } }, "budget: has no key deadline"],
  ];
  for (const [decoding, said] of cases) assert.equal(wrong(offered(), decoding), said);
});
