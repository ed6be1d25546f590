// From numbers to positions on an axis.

import { linearTicks, logTicks } from "./ticks.js";

const WIDE = 10; // factor from which ratios are shown rather than differences

/**
 * The axis that shows all `values` between the positions `from` and `to`.
 * @param {number[]} values at least one
 * @param {number} from pixels
 * @param {number} to pixels
 * @param {number} count about so many ticks, up to twice as many on a logarithmic axis
 * @param {"ratio" | "difference"} kind "ratio": logarithmic where the values span more than a factor of ten
 * @returns {{ticks: number[], at: (value: number) => number, isLog: boolean}}
 */
export function scale(values, from, to, count, kind) {
  const low = values.reduce((least, value) => Math.min(least, value));
  const high = values.reduce((most, value) => Math.max(most, value));
  const isLog = kind === "ratio" && low > 0 && high / low > WIDE;
  const ticks = isLog ? logTicks(low, high, 2 * count) : linearTicks(low, high, count);
  const along = isLog ? Math.log10 : (value) => value;
  const [first, last] = [along(ticks[0]), along(ticks.at(-1))];
  const at = (value) => from + ((along(value) - first) / (last - first)) * (to - from);
  return { ticks, at, isLog };
}
