// From the JSON Schema of a strategy, a rule or the budget to the fields of a form.

const LONG_TEXT = 200;
/** Keys of `decoding` that belong to no strategy; where a schema lists them they are edited in their own place. */
const SHARED = new Set(["budget", "trace", "steer", "prompt", "select"]);

/**
 * @typedef {"number"|"integer"|"boolean"|"choice"|"text"|"longtext"|"guide"|"guides"|"list"|"json"} Kind
 * @typedef {object} Field
 * @property {string} name
 * @property {string[]} path keys from the object that holds the parameters to the value
 * @property {Kind} kind `guides`: a map of names with weights; `json`: whatever has no better widget
 * @property {string} label
 * @property {string} description
 * @property {boolean} required it must be given: there is no default
 * @property {boolean} nullable null, which is the same as leaving it out, is allowed
 * @property {any} default undefined where there is none
 * @property {number} [minimum]
 * @property {number} [maximum]
 * @property {number} [exclusiveMinimum]
 * @property {number} [exclusiveMaximum]
 * @property {string[]} choices
 * @property {string|string[]|null} xGuide what a guide has to be able to do to be named here
 * @property {boolean} base the base model may be named, too
 * @property {boolean} expression a guide's name, or an object over several
 * @property {any} item schema of one value of a list or a map
 * @property {any} schema
 * @property {Record<string, any>} definitions what references in the schemas point to
 */

/**
 * The parameters of an object schema, in its order.
 * @param {any} schema
 * @returns {Field[]}
 */
export function fields(schema) {
  const required = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {})
    .filter(([name, property]) => !SHARED.has(name) && property.const === undefined)
    .map(([name, property]) => field(name, property, required.has(name), schema.$defs ?? {}));
}

/**
 * What a schema allows, references followed, each alternative for itself.
 * @param {any} schema
 * @param {Record<string, any>} definitions
 * @returns {any[]}
 */
export function alternatives(schema, definitions) {
  const whole = follow(schema, definitions);
  const several = whole.anyOf ?? whole.oneOf;
  return several ? several.flatMap((each) => alternatives(each, definitions)) : [whole];
}

/** A schema with its reference replaced by what it points to; keys beside the reference count. */
export function follow(schema, definitions) {
  if (schema.$ref === undefined) return schema;
  const { $ref, ...own } = schema;
  return { ...follow(definitions[$ref.replace("#/$defs/", "")], definitions), ...own };
}

function field(name, property, required, definitions) {
  const all = alternatives(property, definitions);
  const given = all.filter((each) => each.type !== "null");
  const nullable = given.length < all.length;
  const main = given[0] ?? {};
  const kind = kindOf(given, main, definitions);
  const item = kind === "list" ? main.items : kind === "guides" ? follow(main.additionalProperties, definitions) : null;
  const description = property.description ?? main.description ?? "";
  const fallback = property.default;
  return {
    name,
    path: [name],
    kind,
    label: name.replaceAll("_", " "),
    description,
    required: required || (fallback === undefined && !nullable),
    nullable,
    default: fallback,
    ...bounds(main),
    choices: main.enum ?? (main.const === undefined ? [] : [main.const]),
    xGuide: property["x-guide"] ?? main["x-guide"] ?? main.propertyNames?.["x-guide"] ?? null,
    base: fallback === "base" || description.includes("`base`"),
    expression: kind === "guide" && given.some((each) => each.type === "object"),
    item,
    schema: property,
    definitions,
  };
}

/** @returns {Kind} */
function kindOf(given, main, definitions) {
  if (main["x-guide"] && main.type === "string") return "guide";
  if (given.length !== 1) return "json";
  if (main.enum || main.const !== undefined) return "choice";
  if (main.type === "string") return (main.maxLength ?? 0) >= LONG_TEXT ? "longtext" : "text";
  if (main.type === "array") return isScalar(main.items) ? "list" : "json";
  if (main.type === "object") return isWeights(main, definitions) ? "guides" : "json";
  return ["number", "integer", "boolean"].includes(main.type) ? main.type : "json";
}

function isScalar(schema) {
  return ["string", "number", "integer"].includes(schema?.type);
}

function isWeights(schema, definitions) {
  const values = schema.additionalProperties;
  return Boolean(values) && follow(values, definitions).type === "number";
}

function bounds(schema) {
  const names = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
  return Object.fromEntries(names.filter((name) => schema[name] !== undefined).map((name) => [name, schema[name]]));
}
