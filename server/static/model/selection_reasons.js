// Sentences about each rule of selection.

import { below, beside, highest } from "./comparisons.js";
import { amongFirst, drawn, notAmongFirst, notDrawn, notSampled, sampled } from "./draw_reasons.js";
import { plain } from "./plain_numbers.js";
import { DRAWN_POOLS, elected, outvoted } from "./vote_reasons.js";

/** @typedef {import("./search_scene.js").Scene} Scene */

/**
 * Why the rule of selection left an answer out; no more than the rule's name where the numbers do not tell.
 * @param {Scene} told
 * @param {number} index
 * @returns {string}
 */
export function lost(told, index) {
  const reason = LOST[told.rule.rule]?.(told, index);
  return reason ?? `Not selected by rule ${told.rule.rule}. ${beside(told, index)}`.trimEnd();
}

/**
 * Why the rule of selection took an answer.
 * @param {Scene} told
 * @param {number} index
 * @returns {string} empty where the numbers do not tell
 */
export function won(told, index) {
  return WON[told.rule.rule]?.(told, index) ?? "";
}

const LOST = {
  argmax: byReward,
  soft: notDrawn,
  chi2: notDrawn,
  poisson: notAmongFirst,
  sampled: notSampled,
  ensemble: (told, index) => below(told, index, judged(told), JUDGED[told.rule.aggregate]),
  rbon: (told, index) =>
    told.rule.alpha === 0
      ? byReward(told, index)
      : `Reward + ${plain(told.rule.alpha)} × log-probability under the base was not the highest; the second is not ` +
        `reported. ${beside(told, index)}`.trimEnd(),
  mbr: (told) =>
    DRAWN_POOLS.has(told.spec.strategy)
      ? null
      : `Another answer is more like all of them, or as much (${told.rule.similarity}).`,
  majority: outvoted,
  weighted_vote: outvoted,
  blockwise: (told, index) => below(told, index, valued(told), LAST_BLOCK, ofOneChoice(told, index, told.chosen)),
  last: (told, index) => {
    const round = Math.floor(index / told.chosen.length);
    return `${round ? `Rewrite ${round}` : "The original"}; without a reward the last rewrite is returned.`;
  },
};

const WON = {
  argmax: (told, index) => highest(told, index, rewarded(told), rewardName(told)),
  ensemble: (told, index) => highest(told, index, judged(told), JUDGED[told.rule.aggregate]),
  soft: drawn,
  chi2: drawn,
  poisson: amongFirst,
  sampled,
  mbr: (told, index) =>
    told.chosen[0] === index ? `The most like all that competed (${told.rule.similarity}).` : null,
  majority: elected,
  weighted_vote: elected,
  rbon: (told, index) =>
    told.chosen[0] === index && told.rule.alpha !== 0
      ? `The highest reward + ${plain(told.rule.alpha)} × log-probability under the base.`
      : WON.argmax(told, index),
  blockwise: (told, index) =>
    highest(told, index, valued(told), LAST_BLOCK, ofOneChoice(told, index, [...told.candidates.keys()])),
  last: () => "The last rewrite.",
};

const LAST_BLOCK = "value at the end of the last block";
const JUDGED = {
  mean: "mean of the raw rewards",
  min: "least of the raw rewards",
  pessimistic: "mean of the raw rewards without their variance",
};

function rewarded(told) {
  return (index) => told.candidates[index].reward;
}

function valued(told) {
  return (index) => told.candidates[index].value;
}

/** Those of some indices that belong to the same choice, where a search lists its candidates choice by choice. */
function ofOneChoice(told, index, indices) {
  const size = told.candidates.length / told.chosen.length;
  return indices.filter((each) => Math.floor(each / size) === Math.floor(index / size));
}

/** deal reports its own sum as the reward. */
function rewardName(told) {
  return told.spec.strategy === "deal" ? "score (log-probability + λ × heuristic)" : "reward";
}

function byReward(told, index) {
  const reason = below(told, index, rewarded(told), rewardName(told));
  if (reason !== null || told.spec.strategy !== "speculative_rejection") return reason;
  // Of those that are left the highest reward wins, so that one above it was given up before.
  return `Given up on the way, while others ranked above it. ${beside(told, index)}`;
}

/** What rule ensemble goes by, from the raw rewards of all judges. */
function judged(told) {
  const { aggregate, c } = told.rule;
  return (index) => {
    const raw = Object.values(told.candidates[index].rewards ?? {});
    if (!raw.length || raw.includes(null)) return null;
    if (aggregate === "min") return Math.min(...raw);
    const mean = raw.reduce((sum, each) => sum + each, 0) / raw.length;
    const variance = raw.reduce((sum, each) => sum + (each - mean) ** 2, 0) / raw.length;
    return aggregate === "mean" ? mean : mean - (c ?? 0.5) * variance;
  };
}
