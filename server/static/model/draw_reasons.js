// Sentences about choices that were drawn at random.

import { chiSquaredChances, softChances } from "./chances.js";
import { below, beside, highest } from "./comparisons.js";
import { percent } from "./plain_numbers.js";

/** @typedef {import("./search_scene.js").Scene} Scene */

// Candidates of these that are no longer in the running may have a reward, so that chances and places are not known.
const DROPPING = new Set(["speculative_rejection", "qalign"]);
const REORDERED = new Set([...DROPPING, "beam_search", "dvts", "cbs"]);
const SAMPLED = {
  dts: ["Drawn at random from the tree.", "Not drawn; the choice is drawn at random from the tree."],
  particle_filter: ["Drawn at random", "Not drawn; the choice is drawn at random"],
  qalign: ["Where a chain ended.", "Not where the chain ended."],
};

/**
 * Why soft or chi2 left an answer out.
 * @param {Scene} told
 * @param {number} index
 * @returns {string|null}
 */
export function notDrawn(told, index) {
  if (greedy(told)) return byReward(told, index);
  return `Not drawn: rule ${told.rule.rule} draws at random${odds(told, index)}. ${beside(told, index)}`.trimEnd();
}

/**
 * Why soft or chi2 took an answer.
 * @param {Scene} told
 * @param {number} index
 * @returns {string|null}
 */
export function drawn(told, index) {
  if (greedy(told)) return highest(told, index, (each) => told.candidates[each].reward, "reward");
  return `Drawn at random${odds(told, index)}.`;
}

/**
 * Why the rule poisson left an answer out.
 * @param {Scene} told
 * @param {number} index
 * @returns {string|null}
 */
export function notAmongFirst(told, index) {
  const count = told.report.poisson_n;
  if (count === undefined || REORDERED.has(told.spec.strategy)) return null;
  if (index < count) return byReward(told, index);
  const first = count === 1 ? "the first answer" : `the first ${count} answers`;
  return `Not in the running: by chance only ${first} counted. ${beside(told, index)}`.trimEnd();
}

/**
 * Why the rule poisson took an answer.
 * @param {Scene} told
 * @param {number} index
 * @returns {string|null}
 */
export function amongFirst(told, index) {
  const count = told.report.poisson_n;
  if (count === undefined || REORDERED.has(told.spec.strategy)) return null;
  const among = [...told.candidates.keys()].slice(0, count);
  if (!among.includes(index)) return null;
  if (count === 1) return "The first answer; by chance no other counted.";
  return highest(told, index, (each) => told.candidates[each].reward, "reward", among)?.replace(
    /\.$/,
    ", which by chance were those that counted.",
  );
}

/**
 * Why a search that samples did not return an answer.
 * @param {Scene} told
 * @param {number} index
 * @returns {string|null}
 */
export function notSampled(told, index) {
  const sentence = SAMPLED[told.spec.strategy]?.[1];
  return sentence ? `${sentence}${weighed(told, index)} ${beside(told, index)}`.trimEnd() : null;
}

/**
 * Why a search that samples returned an answer.
 * @param {Scene} told
 * @param {number} index
 * @returns {string|null}
 */
export function sampled(told, index) {
  const sentence = SAMPLED[told.spec.strategy]?.[0];
  return sentence ? `${sentence}${weighed(told, index)}` : null;
}

function greedy(told) {
  return (told.rule.rule === "soft" ? told.rule.temperature : told.rule.beta) === 0;
}

function byReward(told, index) {
  return below(told, index, (each) => told.candidates[each].reward, "reward");
}

function odds(told, index) {
  const rewards = told.candidates.map((each) => each.reward);
  if (DROPPING.has(told.spec.strategy) || told.chosen.some((each) => rewards[each] === null)) return "";
  const { rule, temperature, beta } = told.rule;
  const chances = rule === "soft" ? softChances(rewards, temperature) : chiSquaredChances(rewards, beta);
  return `; its chance${told.chosen.length > 1 ? " to come first" : ""} was ${percent(chances[index])}`;
}

/** How a particle was weighed. Without a resampling nothing but its reward has counted, which gives its chance. */
function weighed(told, index) {
  if (told.spec.strategy !== "particle_filter") return "";
  const rewards = told.candidates.map((each) => each.reward);
  const known = told.report.resamplings === 0 && told.chosen.every((each) => rewards[each] !== null);
  if (!known) return " by the weights of the particles.";
  const first = told.chosen.length > 1 ? " to come first" : "";
  return ` by weight; its chance${first} was ${percent(softChances(rewards, 1 / told.spec.beta)[index])}.`;
}
