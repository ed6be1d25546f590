// Short names of settings.

const SHARED = new Set(["strategy", "method", "steer", "prompt", "select", "budget", "trace"]);
const MOST = 3; // parameters
const LONGEST = 24; // characters of one

/**
 * A decoding object in a few words: "best_of_n (n 8, positivity) + genarm (alpha 2)".
 * @param {Record<string, any>} decoding
 * @returns {string}
 */
export function label(decoding) {
  const { strategy = "sample", select, budget, prompt = [], steer = [] } = decoding;
  const own = said(decoding);
  if (select) own.push(`select ${select.rule ?? select}`);
  if (budget && Object.keys(budget).length) own.push(`within ${numbers(budget)}`);
  const parts = [...prompt, ...steer].map((part) => named(part.method, said(part)));
  return [named(strategy, own), ...parts].join(" + ");
}

function named(name, words) {
  return words.length ? `${name} (${words.join(", ")})` : name;
}

/** The first parameters that can be told in a word or a number. */
function said(object) {
  const own = Object.entries(object).filter(([name]) => !SHARED.has(name));
  return own
    .map(([name, value]) => short(name, value))
    .filter(Boolean)
    .slice(0, MOST);
}

function short(name, value) {
  if (typeof value === "number") return `${name} ${value}`;
  if (typeof value === "string") return /\w/.test(value) && value.length <= LONGEST ? value : "";
  const isWeights = value !== null && typeof value === "object" && Object.values(value).every(Number.isFinite);
  return isWeights && !Array.isArray(value) ? numbers(value) : "";
}

function numbers(object) {
  return Object.entries(object)
    .map(([name, value]) => `${name} ${value}`)
    .join(" ");
}
