// Sentences that compare an answer's score with the chosen ones'.

import { gap, plain } from "./plain_numbers.js";

/** @typedef {import("./search_scene.js").Scene} Scene */
/** @typedef {(index: number) => number|null|undefined} Score by the index of a candidate */

/**
 * How far an answer stands below the chosen one; of several choices below the lowest, which was the one to beat.
 * @param {Scene} told
 * @param {number} index
 * @param {Score} score
 * @param {string} name what the score is called
 * @param {number[]} rivals the choices that it competed with
 * @returns {string|null} null where the score does not tell why it lost
 */
export function below(told, index, score, name, rivals = told.chosen) {
  const [own, rival] = [score(index), lowest(rivals, score)];
  if (typeof own !== "number" || rival === null) return null;
  const least = score(rival);
  const whose = rivals.length > 1 ? "the lowest chosen answer's" : "the chosen answer's";
  if (own > least) return null;
  if (own === least) return `The same ${name} as ${whose}${index > rival ? "; of equal ones the first counts" : ""}.`;
  const title = name[0].toUpperCase() + name.slice(1);
  return `${title} ${gap(least - own)} below ${whose} (${plain(own)} against ${plain(least)}).`;
}

/**
 * Where an answer's reward stands beside the chosen one's: a fact to add where rewards alone did not decide.
 * @param {Scene} told
 * @param {number} index
 * @returns {string} empty where one of them has none
 */
export function beside(told, index) {
  const reward = (/** @type {number} */ each) => told.candidates[each].reward;
  const [own, rival] = [reward(index), lowest(told.chosen, reward)];
  if (own === null || rival === null) return "";
  const whose = told.chosen.length > 1 ? "the lowest chosen answer's" : "the chosen answer's";
  const ahead = own - reward(rival);
  if (ahead === 0) return `Its reward is ${whose}, too.`;
  return `Its reward is ${gap(Math.abs(ahead))} ${ahead > 0 ? "above" : "below"} ${whose}.`;
}

/**
 * That an answer has the highest score of all, where it has.
 * @param {Scene} told
 * @param {number} index
 * @param {Score} score
 * @param {string} name
 * @param {number[]} among indices of those that competed
 * @returns {string|null}
 */
export function highest(told, index, score, name, among = [...told.candidates.keys()]) {
  const own = score(index);
  const known = among.map(score).filter((each) => typeof each === "number");
  const above = known.filter((each) => each > own).length;
  if (typeof own !== "number" || above >= told.chosen.length) return null;
  const equal = known.filter((each) => each === own).length;
  const place = above === 0 ? "The highest" : `Number ${above + 1} by`;
  return `${place} ${name} of ${known.length}${equal > 1 ? `; ${equal} have the same` : ""}.`;
}

/** The one of the lowest score; null where none has one. */
function lowest(indices, score) {
  const scored = indices.filter((each) => typeof score(each) === "number");
  return scored.reduce((low, each) => (low === null || score(each) < score(low) ? each : low), null);
}
