// The first decoding object of a strategy: everything it cannot do without, filled in from what the server has.

import { needed, suitability } from "./fitting.js";
import { alternatives } from "./schema.js";

/** For strategies without a required parameter that do nothing unless one of these says what to do. */
const EXAMPLES = {
  text: "I like short and cheerful answers.",
  negative_prompt: "You are gloomy and unhelpful.",
  top_k: 20,
};
const DEADLINE_MS = 4000;

/**
 * The parameters to begin with. Required ones are filled; where guides may be left out, the first that something fits
 * is named if nothing else names one, and so is the first of two models that are compared where the second is the base.
 * @param {import("./catalogue.js").Catalogue} catalogue
 * @param {any} strategy
 * @returns {Record<string, any>}
 */
export function parameters(catalogue, strategy) {
  const all = catalogue.fields(strategy.name);
  const filled = {};
  const put = (field) => {
    const value = first(catalogue, strategy, field, filled);
    if (value !== undefined) filled[field.name] = value;
  };
  all.filter((field) => field.required).forEach(put);
  optionalGuides(catalogue, all).forEach(put);
  if (all.length && !all.some((field) => field.required || field.xGuide)) {
    all.filter((field) => field.name in EXAMPLES).forEach((field) => (filled[field.name] = EXAMPLES[field.name]));
  }
  if (strategy.kind === "auto") filled.budget = { deadline_ms: DEADLINE_MS };
  return filled;
}

/**
 * Why a strategy cannot run here; null where it can.
 * @param {import("./catalogue.js").Catalogue} catalogue
 * @param {any} strategy
 * @returns {string|null}
 */
export function missing(catalogue, strategy) {
  if (strategy.available === false) return "needs a measured profile: the server has none";
  const all = catalogue.fields(strategy.name);
  const unmet = all.find((field) => field.required && field.xGuide && catalogue.candidates(field).length === 0);
  if (unmet) return `needs ${needed(unmet.xGuide)}`;
  const open = all.filter((field) => isOptionalGuide(field));
  const none = open.length > 0 && open.every((field) => catalogue.fitting(field.xGuide).length === 0);
  const lacks = none && strategy.needs.length > 0 && !all.some((field) => field.required && field.xGuide);
  return lacks ? `needs ${needed(open[0].xGuide)}` : null;
}

function isOptionalGuide(field) {
  return Boolean(field.xGuide) && field.nullable && field.default === null;
}

/** The guide parameters to fill although they may be left out: at most one. */
function optionalGuides(catalogue, all) {
  const open = all.filter((field) => isOptionalGuide(field) && catalogue.fitting(field.xGuide).length > 0);
  if (!all.some((field) => field.required && field.xGuide)) return open.slice(0, 1);
  const compared = (field) => all[all.indexOf(field) + 1]?.default === "base" && !field.expression;
  return open.filter(compared).slice(0, 1);
}

function first(catalogue, strategy, field, filled) {
  if (field.kind === "guide") return best(catalogue, strategy, field, filled)[0];
  if (field.kind === "guides") return weights(catalogue, strategy, field, filled);
  if (field.kind === "choice") return field.choices[0];
  if (field.kind === "number" || field.kind === "integer")
    return Math.min(Math.max(1, field.minimum ?? 1), field.maximum ?? 1);
  if (field.kind === "json") return members(catalogue, field);
  return undefined;
}

/** Names that fit, the most suitable first, those that are not yet used before others. */
function best(catalogue, strategy, field, filled) {
  const points = (name) => {
    const guide = catalogue.guide(name);
    if (!guide) return -3; // the base: where there is nothing else
    const used = Object.values(filled).includes(name) ? -5 : 0;
    return suitability(guide, field, strategy.needs) + used;
  };
  return sorted(catalogue.candidates(field), points);
}

/** Even weights: of the best guide and the base, of as many guides as there must be, or of an adapter's attributes. */
function weights(catalogue, strategy, field, filled) {
  const names = field.xGuide ? weighed(catalogue, strategy, field, filled) : attributes(catalogue, filled);
  return Object.fromEntries(names.map((name) => [name, Number((1 / names.length).toPrecision(3))]));
}

function weighed(catalogue, strategy, field, filled) {
  const names = best(catalogue, strategy, field, filled);
  return field.base ? [names[0], "base"] : names.slice(0, minimumEntries(field));
}

function attributes(catalogue, filled) {
  return Object.values(filled).flatMap((name) => catalogue.guide(name)?.attributes ?? []);
}

function minimumEntries(field) {
  return alternatives(field.schema, field.definitions).find((each) => each.type === "object")?.minProperties ?? 1;
}

/** An object of objects that each name a guide: the first that fit, under their own names. */
function members(catalogue, field) {
  const schema = alternatives(field.schema, field.definitions).find((each) => each.type === "object") ?? {};
  const member = schema.additionalProperties || Object.values(schema.patternProperties ?? {})[0];
  const inside = member ? alternatives(member, field.definitions).find((each) => each.properties) : undefined;
  for (const [key, property] of Object.entries(inside?.properties ?? {})) {
    const named = alternatives(property, field.definitions).find((each) => each["x-guide"]);
    if (!named) continue;
    const names = ["base", ...catalogue.fitting(named["x-guide"])].slice(0, minimumEntries(field));
    return Object.fromEntries(names.map((name) => [name, { [key]: name }]));
  }
  return undefined;
}

function sorted(names, points) {
  return names
    .map((name) => ({ name, value: points(name) }))
    .sort((a, b) => b.value - a.value)
    .map(({ name }) => name);
}
