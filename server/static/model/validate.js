// Whether a value is what a JSON Schema asks for, as far as the server's schemas go.

import { follow } from "./schema.js";

/**
 * What is wrong with a value, in words; null where nothing is.
 * @param {any} schema
 * @param {any} value
 * @param {Record<string, any>} [definitions]
 * @param {string} [where] path of the value, which the words begin with
 * @returns {string|null}
 */
export function problem(schema, value, definitions = {}, where = "") {
  const whole = follow(schema, definitions);
  const several = whole.anyOf ?? whole.oneOf;
  if (several) return ofSeveral(several, value, definitions, where);
  if (whole.const !== undefined && value !== whole.const) return said(where, `must be ${JSON.stringify(whole.const)}`);
  if (whole.enum && !whole.enum.includes(value)) return said(where, `must be one of ${whole.enum.join(", ")}`);
  if (whole.type && !isOf(whole.type, value)) return said(where, `must be ${ARTICLES[whole.type]}`);
  if (typeof value === "number") return said(where, ofNumber(whole, value));
  if (typeof value === "string") return said(where, ofText(whole, value));
  if (Array.isArray(value)) return ofList(whole, value, definitions, where);
  if (value !== null && typeof value === "object") return ofObject(whole, value, definitions, where);
  return null;
}

const ARTICLES = {
  number: "a number",
  integer: "a whole number",
  string: "a text",
  boolean: "true or false",
  array: "a list",
  object: "an object",
  null: "null",
};

/** What is wrong by the alternative that comes nearest: one of the value's own type. */
function ofSeveral(several, value, definitions, where) {
  const problems = several.map((each) => problem(each, value, definitions, where));
  if (problems.includes(null)) return null;
  const own = several.findIndex((each) => {
    const { type, anyOf, oneOf } = follow(each, definitions);
    return (anyOf ?? oneOf) !== undefined || (type !== "null" && isOf(type, value));
  });
  if (own >= 0) return problems[own];
  const types = several
    .map((each) => ARTICLES[follow(each, definitions).type])
    .filter((each) => each !== ARTICLES.null);
  return said(where, `must be ${types.join(" or ")}`);
}

function ofNumber(schema, value) {
  const { minimum, maximum, exclusiveMinimum, exclusiveMaximum } = schema;
  if (minimum !== undefined && value < minimum) return `must be at least ${minimum}`;
  if (maximum !== undefined && value > maximum) return `must be at most ${maximum}`;
  if (exclusiveMinimum !== undefined && value <= exclusiveMinimum) return `must be above ${exclusiveMinimum}`;
  if (exclusiveMaximum !== undefined && value >= exclusiveMaximum) return `must be below ${exclusiveMaximum}`;
  return null;
}

function ofText({ minLength = 0, maxLength = Infinity, pattern }, value) {
  const length = [...value].length;
  if (length < minLength)
    return length === 0 ? "must not be empty" : `must have at least ${counted(minLength, "character", "characters")}`;
  if (length > maxLength) return `must have at most ${counted(maxLength, "character", "characters")}`;
  return pattern && !new RegExp(pattern, "u").test(value) ? `must match ${pattern}` : null;
}

function ofList({ items, minItems = 0, maxItems = Infinity }, value, definitions, where) {
  if (value.length < minItems) return said(where, `must have at least ${counted(minItems, "value", "values")}`);
  if (value.length > maxItems) return said(where, `must have at most ${counted(maxItems, "value", "values")}`);
  return items ? first(value, (each, index) => problem(items, each, definitions, `${where}[${index}]`)) : null;
}

function ofObject(schema, value, definitions, where) {
  const { properties = {}, required = [], minProperties = 0, maxProperties = Infinity, propertyNames } = schema;
  const names = Object.keys(value);
  if (names.length < minProperties)
    return said(where, `must have at least ${counted(minProperties, "entry", "entries")}`);
  if (names.length > maxProperties)
    return said(where, `must have at most ${counted(maxProperties, "entry", "entries")}`);
  const absent = required.find((name) => !(name in value));
  if (absent) return said(where, `needs ${absent}`);
  return first(names, (name) => {
    const inside = where ? `${where}.${name}` : name;
    const named = propertyNames && problem(propertyNames, name, definitions, inside);
    if (named) return named;
    const own = properties[name] ?? byPattern(schema.patternProperties, name) ?? schema.additionalProperties;
    if (own === false || (own === undefined && schema.patternProperties)) return said(where, `has no key ${name}`);
    return own && own !== true ? problem(own, value[name], definitions, inside) : null;
  });
}

function byPattern(patterns = {}, name) {
  return Object.entries(patterns).find(([pattern]) => new RegExp(pattern, "u").test(name))?.[1];
}

function isOf(type, value) {
  if (type === "integer") return Number.isInteger(value);
  if (type === "number") return typeof value === "number" && Number.isFinite(value);
  if (type === "array") return Array.isArray(value);
  if (type === "null") return value === null;
  return type === "object" ? isObject(value) : typeof value === type;
}

function isObject(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value);
}

function first(values, check) {
  for (const [index, value] of values.entries()) {
    const found = check(value, index);
    if (found) return found;
  }
  return null;
}

function said(where, what) {
  return what === null || !where ? what : `${where}: ${what}`;
}

function counted(number, one, several) {
  return `${number} ${number === 1 ? one : several}`;
}
