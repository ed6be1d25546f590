// Numbers as people read them.

const MINUS = "−";
const UNKNOWN = "unknown";

/**
 * A number with a fixed count of decimals.
 * @param {number | null} value
 * @param {number} [digits]
 */
export function fixed(value, digits = 2) {
  return value === null
    ? UNKNOWN
    : value
        .toFixed(digits)
        .replace(/^-(?=.*[1-9])/, MINUS)
        .replace(/^-/, "");
}

/**
 * A number whose sign is always told.
 * @param {number | null} value
 * @param {number} [digits]
 */
export function signed(value, digits = 2) {
  const text = fixed(value, digits);
  return value !== null && value > 0 && /[1-9]/.test(text) ? `+${text}` : text;
}

/**
 * The probability that belongs to a log-probability.
 * @param {number | null} logprob nats
 */
export function probability(logprob) {
  if (logprob === null) return UNKNOWN;
  const percent = 100 * Math.exp(logprob);
  if (percent >= 0.1) return `${percent.toFixed(1)} %`;
  return percent >= 0.001 ? `${percent.toFixed(3)} %` : "< 0.001 %";
}
