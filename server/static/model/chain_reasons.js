// What became of the states of qalign's chains.

import { gap } from "./plain_numbers.js";

/** @typedef {import("./search_scene.js").Scene} Scene */

/**
 * What became of a state that qalign proposed, where the rewards along its chain tell it for certain.
 *
 * Candidates are the first state of each chain, then the proposals of each step, chain by chain.
 * @param {Scene} told
 * @param {number} index
 * @returns {string|null}
 */
export function ofChain(told, index) {
  const { chains, burn_in: burnIn } = told.spec;
  const [step, chain] = [Math.floor(index / chains), index % chains];
  const states = told.report.rewards?.[chain];
  const own = told.candidates[index].reward;
  if (!Array.isArray(states) || own === null) return null;
  const name = chains > 1 ? `chain ${chain + 1}` : "the chain";
  if (step > 0 && states[step] !== own) {
    const ahead = own - (states[step - 1] ?? -Infinity);
    const stood = Number.isFinite(ahead)
      ? ` Its reward is ${gap(Math.abs(ahead))} ${ahead < 0 ? "below" : "above"} that of the state that stayed.`
      : "";
    return `Rejected at step ${step}: ${name} stayed where it was.${stood}`;
  }
  if (alike(told, index)) return null;
  const left = states.findIndex((reward, at) => at > step && reward !== own);
  const sampling = told.rule.rule === "sampled";
  if (left < 0) return sampling ? `Where ${name} ended; the choice is where another chain did.` : null;
  if (sampling) return `${step ? `Accepted at step ${step}` : `The first state of ${name}`}, left at step ${left}.`;
  return left <= burnIn ? `Left at step ${left}, before the burn-in of ${burnIn} was over.` : null;
}

/** Whether another state of the same chain has the same reward, so that the chain's rewards do not tell them apart. */
function alike(told, index) {
  const { chains } = told.spec;
  return told.candidates.some(
    (each, other) =>
      other !== index && other % chains === index % chains && each.reward === told.candidates[index].reward,
  );
}
