// Round numbers for the axes of a chart.

const STEPS = [1, 2, 5, 10];

/**
 * Round values that cover `low` to `high`, about `count` of them; the first and the last enclose the range.
 * @param {number} low
 * @param {number} high
 * @param {number} [count]
 * @returns {number[]}
 */
export function linearTicks(low, high, count = 5) {
  const span = high - low || Math.abs(high) || 1;
  const [from, to] = high > low ? [low, high] : [low - span / 2, high + span / 2];
  const power = 10 ** Math.floor(Math.log10(span / count));
  const step = power * STEPS.find((each) => each * power >= (span / count) * (1 - 1e-9));
  const first = Math.floor(from / step + 1e-9);
  const last = Math.ceil(to / step - 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(12)));
}

/**
 * Values 1, 2 and 5 times powers of ten that cover `low` to `high`, both above 0; powers alone where that is many.
 * @param {number} low
 * @param {number} high
 * @param {number} [most]
 * @returns {number[]}
 */
export function logTicks(low, high, most = 8) {
  const dense = between([1, 2, 5], low, high);
  return dense.length <= most ? dense : between([1], low, high);
}

function between(factors, low, high) {
  const powers = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)) + 1; power++) powers.push(power);
  const all = powers.flatMap((power) => factors.map((factor) => Number(`${factor}e${power}`)));
  const first = all.filter((each) => each <= low).length - 1;
  const last = all.findIndex((each) => each >= high);
  return all.slice(first, Math.max(last, first + 1) + 1);
}

/**
 * A number of an axis, short.
 * @param {number} value
 */
export function short(value) {
  if (value === 0) return "0";
  const [size, unit] = Math.abs(value) >= 1e6 ? [1e6, "M"] : Math.abs(value) >= 1e4 ? [1e3, "k"] : [1, ""];
  return `${String(Number((value / size).toPrecision(4))).replace("-", "−")}${unit}`;
}
