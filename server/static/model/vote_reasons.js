// Sentences about votes.

import { percent } from "./plain_numbers.js";

/** @typedef {import("./search_scene.js").Scene} Scene */

/** searches whose candidates need not all compete where a rule goes by what answers have in common */
export const DRAWN_POOLS = new Set(["dts", "qalign"]);

/**
 * Why a vote left an answer out. What each answer voted for is not reported, so that none is told of here.
 * @param {Scene} told
 * @returns {string|null}
 */
export function outvoted(told) {
  const { votes } = told.report;
  if (votes === undefined) return null;
  const alone = told.rule.rule === "majority" && votes[0]?.answers === 1;
  if (DRAWN_POOLS.has(told.spec.strategy) || (votes.length > 0 && !alone)) {
    return votes.length ? `Not the answer that stands for the winning vote: ${words(told, votes[0])}.` : null;
  }
  const why = votes.length ? "No two answers voted alike" : "No answer held a vote";
  return `${why}; then the highest reward counts or, without rewards, the first answer.`;
}

/**
 * Why a vote took an answer: each choice stands for a group of answers that agree.
 * @param {Scene} told
 * @param {number} index
 * @returns {string|null}
 */
export function elected(told, index) {
  const place = told.chosen.indexOf(index);
  const group = told.report.votes?.[place];
  if (group === undefined) return null;
  return `${place === 0 ? "It stands for the winning vote" : `It stands for vote number ${place + 1}`}: ${words(told, group)}.`;
}

function words(told, group) {
  const vote = group.vote.length > 40 ? `${group.vote.slice(0, 39)}…` : group.vote;
  const count = group.answers === 1 ? "1 answer" : `${group.answers} answers`;
  return `“${vote}”, ${count}, ${percent(group.share)} of the ${told.rule.rule === "majority" ? "votes" : "weight"}`;
}
