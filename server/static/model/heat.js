// How far steering moved a token, as a class of colour, and what else marks it.

/** Differences in nats from which the next stronger class of colour begins. */
export const EDGES = Object.freeze([0.1, 0.5, 1, 2, 4]);

const SURE = 0.999; // probability from which a token had no rival
const OPEN = 0.5; // probability below which the base was far from sure

/**
 * Log-probability under the steered distribution less that under the base, nats; null where either is unknown.
 * @param {any} record
 * @returns {number | null}
 */
export function difference(record) {
  const { logprob_base: base, logprob_steered: steered } = record;
  return base === null || steered === null ? null : steered - base;
}

/**
 * The difference of several tokens together, null where that of one is unknown.
 * @param {any[]} records
 * @returns {number | null}
 */
export function total(records) {
  const each = records.map(difference);
  return each.includes(null) ? null : each.reduce((sum, value) => sum + value, 0);
}

/**
 * The class of colour of a difference: -5 (much less likely under steering) to 5 (much more), 0 for hardly any.
 * @param {number} difference nats
 * @returns {number}
 */
export function heat(difference) {
  const strength = EDGES.filter((edge) => Math.abs(difference) >= edge).length;
  return difference < 0 && strength > 0 ? -strength : strength;
}

/**
 * Whether another model spoke the token.
 * @param {any} record
 */
export function isForeign(record) {
  return record.source === "nudge" || record.source === "draft";
}

/**
 * Whether steering left no choice where the base had one.
 * @param {any} record
 */
export function isForced(record) {
  const { logprob_base: base, logprob_steered: steered } = record;
  return base !== null && steered !== null && steered >= Math.log(SURE) && base < Math.log(OPEN);
}

/**
 * A token's text with what cannot be seen made visible.
 * @param {string} text
 */
export function visible(text) {
  return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\r", "␍").replaceAll("\t", "⇥");
}
