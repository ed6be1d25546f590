// A small server's offer, for tests: a catalogue with strategies of each form and a few guides.

import { Catalogue } from "../../../server/static/model/catalogue.js";

const named = (ability, more = {}) => ({ type: "string", "x-guide": ability, ...more });
const orNull = (schema, more = {}) => ({ anyOf: [schema, { type: "null" }], default: null, ...more });
const factor = (value) => ({ type: "number", minimum: -10000, maximum: 10000, default: value });
const count = (value) => ({ type: "integer", minimum: 1, maximum: 256, default: value });
const JUDGE = ["scores_answers", "value_head"];
const EXPRESSION = {
  anyOf: [
    { type: "string", "x-guide": JUDGE },
    { type: "object", properties: { guide: named(JUDGE) } },
  ],
};
const reward = { $ref: "#/$defs/Expression" };
const weights = { type: "object", additionalProperties: { type: "number", minimum: 0, maximum: 1 }, minProperties: 1 };

/** @param {any} [told] `required`, `needs`, and what else the server tells of it */
function strategy(name, kind, properties, told = {}) {
  const { required = [], needs = [], ...more } = told;
  const schema = {
    type: "object",
    additionalProperties: false,
    properties,
    required,
    $defs: { Expression: EXPRESSION },
  };
  return { name, kind, summary: name, cost: "", paper: null, needs, temperature: null, schema, ...more };
}

/** Strategies as the server lists them, one for each way in which guides are asked for. */
export const STRATEGIES = [
  strategy("sample", "search", {}),
  strategy("best_of_n", "search", { n: count(8), reward }, { needs: ["reward"] }),
  strategy("duel", "search", { tuned: orNull(named("reader")), untuned: named("reader", { default: "base" }), reward }),
  strategy(
    "arm",
    "steer",
    { arm: orNull(named("reader")), alpha: factor(1), arms: orNull(weights) },
    { needs: ["lm"] },
  ),
  strategy("experts", "steer", { expert: named("reader"), antiexpert: named("reader"), alpha: factor(2) }),
  strategy("pair", "steer", { one: named("reader"), other: named("reader") }),
  strategy("mix", "steer", {
    weights: { ...weights, propertyNames: { "x-guide": "reader" }, description: "guides, and `base`" },
  }),
  strategy(
    "blocks",
    "steer",
    { guide: named("attributes"), preference: weights },
    { required: ["guide", "preference"] },
  ),
  strategy(
    "vector",
    "steer",
    { vector: named("vector"), coeff: factor(1) },
    { required: ["vector"], needs: ["vector"] },
  ),
  strategy("head", "steer", { value: named("value_head"), lr: factor(1) }, { required: ["value"], needs: ["value"] }),
  strategy("speak", "steer", { aligned: named("lm"), gamma: { type: "number", minimum: 0, maximum: 1, default: 0.4 } }),
  strategy("wish", "prompt", {
    text: orNull({ type: "string", minLength: 1, maxLength: 4000 }),
    form: { enum: ["a"], default: "a" },
  }),
  strategy("auto", "auto", { budget: { type: "object" } }, { available: false }),
];

/** @returns {any} */
const guide = (name, role, more = {}) => ({ name, role, scores_candidates: false, scores_answers: false, ...more });

/** Guides as /v1/guides tells of them. */
export const GUIDES = [
  guide("far", "lm", { vocabulary: "text only" }),
  guide("blocks", "lm", { vocabulary: "same", attributes: ["brevity", "kindness"] }),
  guide("negative-lm", "lm", { vocabulary: "same", card: { kind: "expert" } }),
  guide("kind-arm", "lm", { vocabulary: "same", card: { kind: "arm" } }),
  guide("positive-lm", "lm", { vocabulary: "translated", card: { kind: "expert" } }),
  guide("length", "program", { scores_answers: true }),
  guide("kindness", "reward", { scores_answers: true, scores_candidates: true }),
  guide("head", "value"),
  guide("wide-head", "value", { scores_candidates: true }),
];

/** A catalogue of the strategies above; `changes` replaces parts of it. */
export function offered(changes = {}) {
  const rules = [
    {
      name: "argmax",
      summary: "the highest",
      schema: { properties: { rule: { const: "argmax" } }, additionalProperties: false },
    },
    {
      name: "soft",
      summary: "by chance",
      schema: {
        type: "object",
        additionalProperties: false,
        properties: { rule: { const: "soft" }, temperature: { type: "number", minimum: 0, default: 1 } },
      },
    },
  ];
  const budget = {
    type: "object",
    additionalProperties: false,
    properties: { deadline_ms: orNull({ type: "integer", minimum: 1 }) },
  };
  const told = {
    models: ["demo"],
    strategies: STRATEGIES,
    rules,
    budget,
    rewards: ["kindness", "length"],
    guides: GUIDES,
  };
  return new Catalogue({ ...told, ...changes });
}
