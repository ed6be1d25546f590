// The columns of a table of candidates, and how its rows are sorted.

import { worth } from "./search_scene.js";

/** @typedef {import("./candidates.js").Verdict} Verdict */
/**
 * @typedef {{key: string, name: string, of: (candidate: Record<string, any>, verdict: Verdict) => number|string|null}}
 *   Column `of` is what is shown of a candidate, and what its rows are sorted by
 */

/**
 * The columns that the candidates of a response have something for.
 * @param {Record<string, any>} decoding the response's object
 * @returns {Column[]}
 */
export function columns({ candidates }) {
  const named = (field) => [...new Set(candidates.flatMap((each) => Object.keys(each[field] ?? {})))];
  const guides = named("rewards");
  // One guide whose raw number is the reward itself, or the value of what has none, needs no column of its own.
  const alike = guides.length === 1 && candidates.every((each) => each.rewards?.[guides[0]] === worth(each));
  const known = (field) => candidates.some((each) => (each[field] ?? null) !== null);
  const number = (key, name, of) => ({ key, name, of: (candidate) => of(candidate) ?? null });
  return [
    { key: "rank", name: "Rank", of: (_, verdict) => verdict.rank },
    { key: "text", name: "Answer", of: (candidate) => candidate.text ?? "" },
    number("tokens", "Tokens", (each) => each.tokens),
    ...(alike ? [] : guides.map((guide) => number(`raw ${guide}`, `${guide}, raw`, (each) => each.rewards?.[guide]))),
    ...named("terms").map((guide) => number(`term ${guide}`, `${guide}, transformed`, (each) => each.terms?.[guide])),
    ...(known("reward") ? [number("reward", alike ? `Reward: ${guides[0]}` : "Reward", (each) => each.reward)] : []),
    ...(known("value") ? [number("value", "Value on the way", (each) => each.value)] : []),
    { key: "ended", name: "Ended", of: (_, verdict) => verdict.ended },
    { key: "why", name: "Why", of: (_, verdict) => verdict.why },
  ];
}

/**
 * Verdicts by a column; what has no number comes last either way, and equal rows by rank.
 * @param {Record<string, any>} decoding
 * @param {Verdict[]} verdicts by rank
 * @param {Column[]} heads
 * @param {{key: string, falling: boolean}} order
 * @returns {Verdict[]}
 */
export function sorted({ candidates }, verdicts, heads, { key, falling }) {
  const { of } = heads.find((each) => each.key === key) ?? heads[0];
  const value = (verdict) => of(candidates[verdict.index], verdict);
  return [...verdicts].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === null || b === null) return Number(a === null) - Number(b === null) || one.rank - other.rank;
    const rising = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b));
    return (falling ? -rising : rising) || one.rank - other.rank;
  });
}
