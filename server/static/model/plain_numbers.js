// Numbers in sentences and tables.

/**
 * A number as a reader wants it: three digits that matter, whole numbers whole.
 * @param {number|null|undefined} value
 * @returns {string} "–" where there is none
 */
export function plain(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en").replace("-", "−");
  const size = Math.abs(value);
  const text = size >= 1000 || size < 1e-4 ? value.toPrecision(3) : String(Number(value.toPrecision(3)));
  return text.replace("-", "−");
}

/**
 * How far apart two numbers are, in words that hold for the smallest distance too.
 * @param {number} distance at least 0
 * @returns {string}
 */
export function gap(distance) {
  return distance < 0.001 ? "less than 0.001" : plain(distance);
}

/**
 * A share of one as per cent.
 * @param {number} share
 * @returns {string}
 */
export function percent(share) {
  if (share > 0 && share < 0.01) return "under 1 %";
  if (share < 1 && share > 0.99) return "over 99 %";
  return `${Math.round(share * 100)} %`;
}
