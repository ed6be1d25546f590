// The one parameter of a strategy that says how much of it there is, and where a slider for it begins and ends.

const NAMES = [
  "strength",
  "coeff",
  "weight",
  "w",
  "lam",
  "n",
  "simulations",
  "steps",
  "target",
  "beta",
  "alpha",
  "gamma",
];
const MORE = ["threshold", "delta", "k", "rounds", "directions", "mutations", "count", "examples"];
const BEYOND = 1000; // a bound beyond it keeps numbers finite, and says nothing of what is sensible

/**
 * The field that the strength slider moves, or null. The first rule that finds one counts: a factor of either sign,
 * which is what weighs a term of a sum of logits; nothing where a map of weights must be given, for these are the
 * strength; else a number by its name: weights, then how much is tried, then thresholds.
 * @param {import("./schema.js").Field[]} fields
 */
export function strength(fields) {
  const numbers = fields.filter((field) => isNumber(field) && !field.nullable);
  const factor = numbers.find(
    (field) => field.kind === "number" && field.minimum <= -BEYOND && field.maximum >= BEYOND,
  );
  if (factor) return factor;
  if (fields.some((field) => field.kind === "guides" && field.required)) return null;
  const names = [...NAMES, ...MORE];
  const named = names.map((name) => numbers.find((field) => field.name === name)).filter(Boolean);
  return named[0] ?? null;
}

function isNumber(field) {
  return field.kind === "number" || field.kind === "integer";
}

/**
 * The values at which a slider stops, ascending: all of a share, else up to four times the default, on both
 * sides where negative values mean something; by doubling for counts, where one more matters less the more there are.
 * @param {import("./schema.js").Field} field
 * @param {number} [reach] a value that the slider has room for, too
 * @returns {number[]}
 */
export function range(field, reach = 0) {
  const usual = Math.abs(field.default || 1);
  const middle = Math.abs(reach) > 4 * usual ? Math.abs(reach) / 2 : usual;
  return field.kind === "integer" && field.minimum >= 1 ? doubling(field, middle) : even(field, middle, reach < 0);
}

const DOUBLINGS = 3;

function doubling(field, middle) {
  const stops = [field.minimum, field.default ?? field.minimum];
  for (let power = -DOUBLINGS; power <= DOUBLINGS; power++) stops.push(Math.round(middle * 2 ** power));
  return ascending(stops.filter((stop) => inside(field, stop)));
}

function even(field, middle, below) {
  const far = 4 * middle;
  const low = field.minimum ?? field.exclusiveMinimum ?? -Infinity;
  const high = field.maximum ?? field.exclusiveMaximum ?? Infinity;
  const signed = low === -Infinity || below || (low < 0 && field.description.includes("negative"));
  const least = signed ? Math.max(low, -far) : Math.max(low, 0);
  const most = high <= 1 ? high : Math.min(high, far);
  const step =
    field.kind === "integer" ? Math.max(1, Math.round((most - least) / STEPS)) : nice((most - least) / STEPS);
  const stops = [field.default ?? least, most];
  for (let index = 0; least + index * step < most; index++) stops.push(rounded(least + index * step));
  return ascending(stops.filter((stop) => inside(field, stop)));
}

function ascending(stops) {
  return [...new Set(stops)].sort((a, b) => a - b);
}

const STEPS = 40;

/** The next step of 1, 2 or 5 times a power of ten. */
function nice(step) {
  const power = 10 ** Math.floor(Math.log10(step));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= step * (1 - 1e-9));
}

function rounded(value) {
  return Number(value.toPrecision(12));
}

function inside({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }, value) {
  if (exclusiveMinimum !== undefined && value <= exclusiveMinimum) return false;
  if (exclusiveMaximum !== undefined && value >= exclusiveMaximum) return false;
  return value >= (minimum ?? -Infinity) && value <= (maximum ?? Infinity);
}

/**
 * The number of the stop nearest to a value.
 * @param {number[]} stops
 * @param {number} value
 */
export function nearest(stops, value) {
  return stops.reduce(
    (best, stop, index) => (Math.abs(stop - value) < Math.abs(stops[best] - value) ? index : best),
    0,
  );
}
