// What happens along an answer, as series of numbers over its tokens.

/** Points of a curve at most; a chart has no more pixels to draw them. */
export const MOST = 2000;

/**
 * Numbers of each token of an answer; null where one is unknown.
 * @typedef {{kl: (number | null)[], total: number, entropy: (number | null)[],
 *   values: Record<string, (number | null)[]>}} Series
 */

/**
 * No tokens yet.
 * @returns {Series}
 */
export function series() {
  return { kl: [], total: 0, entropy: [], values: {} };
}

/**
 * Add the records that have come since to `series`, in place.
 * @param {Series} series `kl` is the sum up to each token; what is unknown is left out of it
 * @param {any[]} records all records of the answer
 */
export function extend(series, records) {
  for (let index = series.kl.length; index < records.length; index++) {
    const { kl, entropy, values } = records[index];
    series.total += kl ?? 0;
    series.kl.push(kl === null ? null : series.total);
    series.entropy.push(entropy);
    for (const guide of Object.keys(values ?? {})) series.values[guide] ??= new Array(index).fill(null);
    for (const [guide, known] of Object.entries(series.values)) known.push(values?.[guide] ?? null);
  }
}

/**
 * Measurements of several answers after some of their tokens, as a chart takes them.
 * @param {({at: number[], rewards: (number | null)[]} | undefined)[]} measured undefined: an answer without any
 * @returns {(number | null)[][]} the token counts of all, then the rewards of each; null where it has none
 */
export function joined(measured) {
  const counts = [...new Set(measured.flatMap((each) => each?.at ?? []))].sort((a, b) => a - b);
  const curve = ({ at, rewards }) => {
    const known = new Map(at.map((count, index) => [count, rewards[index]]));
    return counts.map((count) => known.get(count) ?? null);
  };
  return [counts, ...measured.map((each) => curve(each ?? { at: [], rewards: [] }))];
}

/**
 * Token numbers and the curves of several answers over them, as a chart takes them: every `step`th token, and the last
 * of each answer, where there are too many.
 * @param {(number | null)[][]} curves
 * @param {number} [most]
 * @returns {(number | null)[][]} the token numbers from 1, then each curve; null behind its end
 */
export function aligned(curves, most = MOST) {
  const length = Math.max(0, ...curves.map((curve) => curve.length));
  const step = Math.ceil(length / most);
  const ends = new Set(curves.map((curve) => curve.length));
  const tokens = [];
  for (let token = 1; token <= length; token++) if (token % step === 0 || ends.has(token)) tokens.push(token);
  return [tokens, ...curves.map((curve) => tokens.map((token) => curve[token - 1] ?? null))];
}

/**
 * Least, mean and last of the known numbers of a curve; null where none is known.
 * @param {(number | null)[]} curve
 */
export function summary(curve) {
  const known = curve.filter((value) => value !== null);
  if (known.length === 0) return null;
  return {
    least: known.reduce((least, value) => Math.min(least, value)),
    mean: known.reduce((sum, value) => sum + value, 0) / known.length,
    last: known.at(-1),
  };
}
