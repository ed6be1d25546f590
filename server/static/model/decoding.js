// Changes to a decoding object, which holds what differs from the defaults and what has none.

import { problem } from "./validate.js";

/** Keys that every strategy shares. */
const SHARED = ["steer", "prompt", "select", "budget", "preference", "trace"];
const LISTS = ["steer", "prompt"];

/**
 * An object with one parameter set; left out where it is what the server takes anyway.
 * @param {Record<string, any>} object
 * @param {import("./schema.js").Field} field
 * @param {any} value undefined: the default
 */
export function withValue(object, field, value) {
  const { [field.name]: _, ...rest } = object;
  const isDefault = value === undefined || (value === null && field.nullable && field.default === null);
  const same = JSON.stringify(value) === JSON.stringify(field.default);
  return isDefault || same ? rest : { ...object, [field.name]: value };
}

/** An object with one key set, or without it where the value is empty. */
export function withKey(object, key, value) {
  const { [key]: _, ...rest } = object;
  const empty = value === undefined || (typeof value === "object" && Object.keys(value).length === 0);
  return empty ? rest : { ...object, [key]: value };
}

/** The value that counts: what the object says, else the default. */
export function valueOf(object, field) {
  return object[field.name] === undefined ? field.default : object[field.name];
}

/** Whether a strategy ends with several answers, among which `select` may choose. */
export function selects(strategy) {
  return strategy?.kind === "search" && Object.keys(strategy.schema.properties ?? {}).length > 0;
}

/**
 * The first decoding object of another strategy, with the parts and limits of this one where they still mean something.
 * @param {import("./catalogue.js").Catalogue} catalogue
 * @param {Record<string, any>} decoding
 * @param {string} name
 */
export function withStrategy(catalogue, decoding, name) {
  const next = catalogue.start(name);
  const owned = (strategy, key) => key in (catalogue.strategy(strategy)?.schema.properties ?? {});
  const kept = SHARED.filter((key) => {
    if (decoding[key] === undefined || (key === "select" && !selects(catalogue.strategy(name)))) return false;
    return key === "budget" || !(owned(name, key) || owned(decoding.strategy, key));
  });
  const parts = name === "auto" ? kept.filter((key) => key === "budget") : kept;
  return { ...next, ...Object.fromEntries(parts.map((key) => [key, decoding[key]])) };
}

/** The rule of `select` as an object, however it was written; null where the strategy's own holds. */
export function ruleOf(decoding) {
  const { select } = decoding;
  return typeof select === "string" ? { rule: select } : (select ?? null);
}

/**
 * What is wrong with a decoding object as far as the page can tell; null where nothing is.
 * @param {import("./catalogue.js").Catalogue} catalogue
 * @param {any} decoding
 * @returns {string|null}
 */
export function wrong(catalogue, decoding) {
  if (decoding === null || typeof decoding !== "object" || Array.isArray(decoding)) return "must be an object";
  const { strategy = "sample", ...rest } = decoding;
  const own = Object.fromEntries(
    Object.entries(rest).filter(([key]) => !SHARED.includes(key) || isOwn(catalogue, strategy, key)),
  );
  return (
    ofStrategy(catalogue, strategy, own, "") ??
    LISTS.map((key) => ofParts(catalogue, decoding[key] === undefined ? [] : decoding[key], key)).find(Boolean) ??
    ofSelect(catalogue, ruleOf(decoding)) ??
    (decoding.budget === undefined
      ? null
      : problem(catalogue.budget, decoding.budget, catalogue.budget.$defs, "budget"))
  );
}

function isOwn(catalogue, strategy, key) {
  return key in (catalogue.strategy(strategy)?.schema.properties ?? {});
}

function ofStrategy(catalogue, name, parameters, where) {
  const strategy = catalogue.strategy(name);
  if (!strategy) return `${where ? `${where}: ` : ""}no strategy is named ${JSON.stringify(name)}`;
  return problem(strategy.schema, parameters, strategy.schema.$defs, where);
}

function ofParts(catalogue, parts, kind) {
  if (!Array.isArray(parts)) return `${kind}: must be a list of parts`;
  for (const [index, part] of parts.entries()) {
    const { method, ...parameters } = part ?? {};
    const where = `${kind}[${index}]`;
    const found = catalogue.strategy(method);
    if (found && found.kind !== kind) return `${where}: ${method} is no part of this kind`;
    const said = ofStrategy(catalogue, method, parameters, where);
    if (said) return said;
  }
  return null;
}

function ofSelect(catalogue, select) {
  if (select === null) return null;
  const rule = catalogue.rule(select.rule);
  return rule
    ? problem(rule.schema, select, rule.schema.$defs, "select")
    : `select: no rule is named ${JSON.stringify(select.rule)}`;
}
