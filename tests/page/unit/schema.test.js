// Fields from schemas, checks of values, values as text, and the strength slider.

import assert from "node:assert/strict";
import { test } from "node:test";
import { fields } from "../../../server/static/model/schema.js";
import { nearest, range, strength } from "../../../server/static/model/strength.js";
import { problem } from "../../../server/static/model/validate.js";
import { read, written } from "../../../server/static/model/written.js";

const EXPRESSION = {
  anyOf: [
    { type: "string", "x-guide": ["scores_answers", "value_head"] },
    {
      type: "object",
      additionalProperties: false,
      properties: {
        guide: { anyOf: [{ type: "string", "x-guide": "scores_answers" }, { type: "null" }], default: null },
        sum: {
          anyOf: [{ type: "array", items: { $ref: "#/$defs/Expression" }, minItems: 1 }, { type: "null" }],
          default: null,
        },
        weight: { type: "number", default: 1, minimum: -10, maximum: 10 },
      },
    },
  ],
};

const FACTOR = { type: "number", minimum: -10000, maximum: 10000 };
const COUNT = { type: "integer", minimum: 1, maximum: 256 };

/** The fields of a schema with these properties. */
function of(properties, required = []) {
  return fields({ type: "object", properties, required, $defs: { Expression: EXPRESSION } });
}

function one(property, required = false) {
  return of({ it: property }, required ? ["it"] : [])[0];
}

const WEIGHTS = { type: "object", additionalProperties: FACTOR, minProperties: 1 };
const nullable = (schema) => ({ anyOf: [schema, { type: "null" }], default: null });

test("every form of a schema has its kind of field", () => {
  const kinds = {
    number: { type: "number", default: 1 },
    integer: { type: "integer", default: 1 },
    boolean: { type: "boolean", default: false },
    choice: { type: "string", enum: ["a", "b"], default: "a" },
    text: { type: "string", maxLength: 64, default: "\n" },
    longtext: { type: "string", maxLength: 4000, default: "x" },
    guide: { type: "string", "x-guide": "lm" },
    guides: { ...WEIGHTS, propertyNames: { "x-guide": "reader" } },
    list: { type: "array", items: { type: "integer" }, default: [] },
    json: { type: "array", items: { type: "object" }, default: [] },
  };
  for (const [kind, schema] of Object.entries(kinds)) {
    assert.equal(one(schema).kind, kind);
    assert.equal(one(nullable(schema)).kind, kind, `${kind} or null`);
    assert.equal(one(nullable(schema)).nullable, true);
  }
  assert.equal(one({ anyOf: [{ const: "best", type: "string" }, { type: "null" }], default: null }).kind, "choice");
  assert.equal(one({ oneOf: [{ type: "object" }, { type: "array" }], default: {} }).kind, "json");
  assert.equal(one({ type: "object", additionalProperties: { type: "string" } }).kind, "json");
  assert.equal(one({ type: "object", patternProperties: { "^a": { type: "object" } } }).kind, "json");
});

test("bounds, choices and what a guide must do are found inside alternatives", () => {
  const bounded = one(nullable({ type: "number", exclusiveMinimum: 0, maximum: 3 }));
  assert.deepEqual([bounded.exclusiveMinimum, bounded.maximum, bounded.minimum], [0, 3, undefined]);
  assert.deepEqual(one({ anyOf: [{ const: "best", type: "string" }, { type: "null" }], default: null }).choices, [
    "best",
  ]);
  assert.equal(one(nullable({ type: "string", "x-guide": "reader" })).xGuide, "reader");
  assert.equal(one(nullable({ ...WEIGHTS, propertyNames: { "x-guide": "lm" } })).xGuide, "lm");
  assert.equal(one(nullable(WEIGHTS)).xGuide, null);
});

test("an expression over rewards is a guide's name or JSON, through references and null", () => {
  for (const schema of [{ $ref: "#/$defs/Expression" }, nullable({ $ref: "#/$defs/Expression" })]) {
    const field = one({ ...schema, description: "what scores" });
    assert.deepEqual([field.kind, field.expression, field.description], ["guide", true, "what scores"]);
    assert.deepEqual(field.xGuide, ["scores_answers", "value_head"]);
  }
  assert.equal(one({ type: "string", "x-guide": "lm" }).expression, false);
});

test("what has no default must be given, also where the schema leaves it to a preference", () => {
  assert.equal(one({ type: "number" }).required, true);
  assert.equal(one({ type: "number", default: 0 }).required, false);
  assert.equal(one(nullable({ type: "number" })).required, false);
});

test("the base is offered where the default or the description names it", () => {
  assert.equal(one({ type: "string", "x-guide": "lm", default: "base" }).base, true);
  assert.equal(one({ type: "string", "x-guide": "lm", description: "the weaker model, or `base`" }).base, true);
  assert.equal(one({ type: "string", "x-guide": "lm", description: "added to the base" }).base, false);
});

test("constants and what every strategy shares are no parameters", () => {
  const rule = { const: "soft", default: "soft", type: "string" };
  assert.deepEqual(
    of({ rule, budget: { type: "object" }, n: COUNT }).map((field) => field.name),
    ["n"],
  );
});

test("values are checked as the schema says", () => {
  const cases = [
    [{ type: "integer", minimum: 1 }, 0, "must be at least 1"],
    [{ type: "integer" }, 1.5, "must be a whole number"],
    [{ type: "number", exclusiveMinimum: 0 }, 0, "must be above 0"],
    [{ type: "number", exclusiveMaximum: 1 }, 1, "must be below 1"],
    [{ type: "number", maximum: 1 }, 2, "must be at most 1"],
    [{ type: "number" }, "1", "must be a number"],
    [{ type: "boolean" }, 1, "must be true or false"],
    [{ enum: ["a", "b"] }, "c", "must be one of a, b"],
    [{ type: "string", minLength: 1 }, "", "must not be empty"],
    [{ type: "string", maxLength: 2 }, "😀😀😀", "must have at most 2 characters"],
    [{ type: "string", pattern: "\\S" }, " ", "must match \\S"],
    [{ type: "array", items: { type: "integer" }, maxItems: 2 }, [1, 2, 3], "must have at most 2 values"],
    [{ type: "array", items: { type: "integer", minimum: 1 } }, [1, 0], "[1]: must be at least 1"],
    [{ type: "object", required: ["a"] }, {}, "needs a"],
    [{ type: "object", additionalProperties: false, properties: {} }, { a: 1 }, "has no key a"],
    [{ ...WEIGHTS }, { a: 20000 }, "a: must be at most 10000"],
    [{ ...WEIGHTS, minProperties: 2 }, { a: 1 }, "must have at least 2 entries"],
    [{ type: "object", patternProperties: { "^\\w+$": { type: "object" } } }, { "!": {} }, "has no key !"],
    [nullable({ type: "number", minimum: 1 }), 0, "must be at least 1"],
    [nullable({ type: "number" }), "a", "must be a number"],
  ];
  for (const [schema, value, said] of cases) assert.equal(problem(schema, value), said);
  assert.equal(problem({ type: "string", maxLength: 3 }, "😀😀😀"), null);
  assert.equal(problem(nullable({ type: "number" }), null), null);
});

test("expressions are checked at any depth", () => {
  const definitions = { Expression: EXPRESSION };
  const schema = { $ref: "#/$defs/Expression" };
  assert.equal(problem(schema, { sum: ["a", { sum: [{ guide: "b", weight: 2 }] }] }, definitions), null);
  assert.equal(
    problem(schema, { sum: ["a", { sum: [{ wieght: 2 }] }] }, definitions),
    "sum[1].sum[0]: has no key wieght",
  );
  assert.equal(problem(schema, { sum: [] }, definitions), "sum: must have at least 1 value");
  assert.equal(problem(schema, 3, definitions), "must be a text or an object");
});

test("values go through their text unchanged", () => {
  const cases = [
    [{ type: "number", default: 0 }, 0.25],
    [{ type: "string", maxLength: 64, default: "" }, "\n\n a\\n\t"],
    [{ type: "string", maxLength: 4000, default: "" }, "one\ntwo \\n"],
    [{ type: "array", items: { type: "integer" }, default: [] }, [64, 128]],
    [{ type: "array", items: { type: "string" }, default: [] }, [".", "\n", "a b"]],
    [{ type: "array", items: { type: "object" }, default: [] }, [{ a: [1] }]],
  ];
  for (const [schema, value] of cases) {
    const field = one(schema);
    assert.deepEqual(read(field, written(field, value)), { value, error: null });
  }
});

test("an empty box is the default, and wrong where there is none", () => {
  assert.deepEqual(read(one({ type: "number", default: 3 }), ""), { value: undefined, error: null });
  assert.equal(read(one({ type: "number" }), " ").error, "must be given");
  assert.equal(read(one({ type: "number", default: 3 }), "x").error, "must be a number");
  assert.equal(read(one({ type: "array", items: { type: "integer" }, default: [] }), "1, x").error, "must be a number");
  assert.equal(read(one({ type: "array", items: {}, default: [] }), "[").error, "is no valid JSON");
  assert.equal(read(one({ type: "string", maxLength: 9, default: "" }), " ").value, " ", "a space separates, too");
});

test("the strength is a factor of either sign, wherever it stands", () => {
  assert.equal(
    strength(of({ alpha: { type: "number", minimum: 0, maximum: 1, default: 0 }, beta: { ...FACTOR, default: 1 } }))
      .name,
    "beta",
  );
  assert.equal(strength(of({ weights: WEIGHTS, strength: { ...FACTOR, default: 1 } }, ["weights"])).name, "strength");
});

test("without a factor it goes by the name, and a map of weights is its own strength", () => {
  const share = { type: "number", minimum: 0, maximum: 1, default: 0.5 };
  assert.equal(strength(of({ block: COUNT, alpha: share, n: COUNT })).name, "n");
  assert.equal(strength(of({ draft: COUNT, gamma: share })).name, "gamma");
  assert.equal(strength(of({ weights: WEIGHTS, alpha: share }, ["weights"])), null);
  assert.equal(strength(of({ n: nullable(COUNT), name: { type: "string", default: "" } })), null);
});

test("the slider goes as far as makes sense, by doubling for counts, and stops at the default", () => {
  const ends = (schema) => [range(one(schema))[0], range(one(schema)).at(-1)];
  assert.deepEqual(ends({ ...FACTOR, default: 1.5 }), [0, 6]);
  assert.deepEqual(ends({ ...FACTOR, default: 1, description: "strength; negative: away from it" }), [-4, 4]);
  assert.deepEqual(ends({ type: "number", minimum: 0, maximum: 1, default: 0.4 }), [0, 1]);
  assert.deepEqual(ends({ type: "number", default: 0.7 }), [-2.8, 2.8]);
  assert.deepEqual(ends({ type: "integer", minimum: 0, maximum: 3, default: 3 }), [0, 3]);
  assert.deepEqual(range(one({ ...COUNT, default: 8 })), [1, 2, 4, 8, 16, 32, 64]);
  assert.deepEqual(range(one({ ...COUNT, maximum: 16, default: 4 })), [1, 2, 4, 8, 16]);
  assert.ok(range(one({ type: "number", default: 0.73 })).includes(0.73));
  assert.ok(!range(one({ type: "number", exclusiveMinimum: 0, maximum: 1, default: 0.5 })).includes(0));
});

test("a value beyond the slider's end widens it, below zero too, within the bounds", () => {
  const factor = one({ ...FACTOR, default: 1 });
  assert.deepEqual([range(factor, 50)[0], range(factor, 50).at(-1)], [0, 100]);
  assert.deepEqual([range(factor, -3)[0], range(factor, -3).at(-1)], [-4, 4]);
  assert.equal(range(one({ ...COUNT, default: 8 }), 200).at(-1), 200);
  assert.ok(range(one({ ...COUNT, default: 8 }), 200).includes(8));
});

test("a value between two stops, or beyond them, is shown at the nearest", () => {
  assert.equal(nearest([1, 2, 4], 3.5), 2);
  assert.equal(nearest([1, 2, 4], 100), 2);
  assert.equal(nearest([1, 2, 4], -1), 0);
});
