// What became of each candidate of a search, and why, from what the response says.

import { ofChain } from "./chain_reasons.js";
import { below, highest } from "./comparisons.js";
import { plain } from "./plain_numbers.js";
import { failures, scene, unfinished, worth } from "./search_scene.js";
import { lost, won } from "./selection_reasons.js";

/** @typedef {import("./search_scene.js").Scene} Scene */
/** @typedef {{index: number, rank: number, chosen: boolean, ended: string, why: string}} Verdict */

/**
 * What became of every candidate of a search, best first: its place from 1 on, how it ended, and why it won or lost.
 * @param {Record<string, any>} decoding the response's object
 * @returns {Verdict[]}
 */
export function explain(decoding) {
  const told = scene(decoding);
  return order(told).map((index, place) => {
    const chosen = told.chosen.includes(index);
    return {
      index,
      rank: place + 1,
      chosen,
      ended: ended(told, told.candidates[index]),
      why: chosen ? taken(told, index) : left(told, index),
    };
  });
}

/** The choices in their order, then the others by reward, then those without by value. */
function order(told) {
  const key = (index) => {
    const { choice, reward, value } = told.candidates[index];
    const blockwise = told.rule.rule === "blockwise";
    if ((choice ?? null) !== null) return [0, choice];
    if (reward !== null && !blockwise) return [1, -reward];
    return typeof value === "number" ? [2, -value] : [3, 0];
  };
  const keys = told.candidates.map((_, index) => key(index));
  return [...keys.keys()].sort((a, b) => keys[a][0] - keys[b][0] || keys[a][1] - keys[b][1] || a - b);
}

function ended(told, candidate) {
  if (candidate.finish_reason === "stop") return "by itself";
  return unfinished(told, candidate) ? "not finished" : "cut off";
}

function taken(told, index) {
  if (!byRule(told)) return highest(told, index, (each) => worth(told.candidates[each]), WORTH) ?? "";
  if (told.candidates.length === told.chosen.length) return "";
  return won(told, index);
}

function left(told, index) {
  const candidate = told.candidates[index];
  if (told.refused) return refused(told, candidate);
  if (!told.chosen.length) return "No answer was chosen.";
  if (!byRule(told)) {
    const reason = below(told, index, (each) => worth(told.candidates[each]), WORTH);
    return reason ?? "Not selected when the search was ended early.";
  }
  return copied(told, candidate) ?? outside(told, index) ?? lost(told, index);
}

const WORTH = "worth so far";

/** An early end goes by the rule only if every answer has its reward; else by what each seemed to be worth. */
function byRule(told) {
  return !told.early || told.candidates.every((each) => each.reward !== null);
}

function refused(told, { reward }) {
  const { select } = told.spec;
  const threshold = told.report.abstain_tau ?? select?.tau ?? null;
  if (threshold === null || reward === null || reward >= threshold) return "The search gave no answer.";
  return `Reward ${plain(reward)} is below ${plain(threshold)}, the least that is worth an answer.`;
}

function copied(told, { text, tokens }) {
  const same = told.chosen.some(
    (each) => told.candidates[each].text === text && told.candidates[each].tokens === tokens,
  );
  return same && text ? "Word for word the chosen answer." : null;
}

/** Why an answer was not in the running, where the response shows it. */
function outside(told, index) {
  const candidate = told.candidates[index];
  const failed = failures(candidate);
  if (failed.length && candidate.reward === null)
    return `No reward: guide ${failed.join(" and ")} gave no number for it.`;
  if (told.spec.strategy === "qalign") return ofChain(told, index);
  if (told.spec.strategy === "speculative_rejection") return givenUp(told, candidate);
  if (!unfinished(told, candidate)) return null;
  const steps = told.ends.get(index);
  const when = steps ? ` after ${steps} ${steps === 1 ? "step" : "steps"}` : "";
  return `Not finished${when}: the beams ranked above it had ended, and with them the search.`;
}

function givenUp({ spec, report }, { reward, value, tokens }) {
  if (reward !== null || typeof value !== "number") return null;
  const stage = spec.schedule.indexOf(tokens);
  const kept = report.kept?.[stage + 1];
  const places = stage >= 0 && kept !== undefined ? `the best ${kept}` : "the best";
  return `Given up after ${tokens} tokens: its value so far, ${plain(value)}, was not among ${places}.`;
}
