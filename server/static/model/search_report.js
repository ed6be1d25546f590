// What a search reports, under names that can be read.

import { percent, plain } from "./plain_numbers.js";

const NAMES = {
  n: "answers drawn",
  kl_bound: "KL from the base, at most",
  kl_estimate: "KL from the base, estimated",
  win_rate_bound: "wins over one answer, at most",
  rounds: "rounds",
  expanded: "steps written",
  kept: "kept",
  finished_early: "ended early",
  blocks: "blocks written",
  acceptance_rate: "accepted",
  segments: "segments",
  forced: "accepted for lack of a better one",
  proposals: "proposals",
  looks: "looks ahead",
  logprobs: "log-probabilities",
  simulations: "simulations",
  nodes: "nodes",
  depth: "depth",
  max_depth: "depth of the look ahead",
  visit_share: "visits of the chosen steps",
  best_reward: "best reward",
  log_normaliser: "log of the normaliser",
  ess: "effective sample size",
  resamplings: "resamplings",
  replacements: "replacements",
  steps: "steps",
  mean_cut: "tokens kept, on average",
  best_by_round: "best reward by round",
  drawn: "answers drawn",
  early: "stopped early",
  share: "share of the winner",
  posterior: "chance that the winner leads",
  drafted: "steps drafted",
  accepted: "drafts accepted",
  draft_tokens: "tokens of the draft",
  discarded_tokens: "tokens discarded",
  base_tokens: "tokens of the base",
  poisson_n: "answers that counted",
  abstain_tau: "least reward of an answer",
  abstain_best: "best reward",
  withheld: "answers withheld by the server's policy",
};
const SHARES = new Set(["acceptance_rate", "win_rate_bound", "visit_share", "share", "posterior"]);

/**
 * What a search reports, under names that can be read; what is neither a number nor a short list of them is left out.
 * @param {Record<string, any>} decoding the response's object
 * @returns {{name: string, value: string}[]}
 */
export function reported(decoding) {
  const found = [];
  for (const [key, value] of Object.entries(decoding.report ?? {})) {
    const text = key === "votes" ? null : said(key, value);
    if (text !== null) found.push({ name: NAMES[key] ?? key.replaceAll("_", " "), value: text });
  }
  for (const { vote, answers, share } of decoding.report?.votes ?? []) {
    found.push({ name: `vote “${vote}”`, value: `${answers} (${percent(share)})` });
  }
  return found;
}

/**
 * What ended a search before its own end, as a sentence; null where nothing did.
 * @param {Record<string, any>} decoding
 * @returns {string|null}
 */
export function stopped({ stopped_by: by, spec, report }) {
  const budget = spec?.budget ?? {};
  const limit = (key, unit = "") => (typeof budget[key] === "number" ? ` of ${plain(budget[key])}${unit}` : "");
  switch (by) {
    case "finished":
    case undefined:
      return null;
    case "abstained":
      return report?.withheld ? "The server's policy kept every answer back." : "The search gave no answer.";
    case "deadline_ms":
      return `Ended early: the deadline${limit("deadline_ms", " ms")} had passed.`;
    case "max_model_tokens":
      return `Ended early: the budget${limit("max_model_tokens", " tokens")} was used up.`;
    case "reward_at_least":
      return `Ended early: an answer reached the reward${limit("reward_at_least")} that is enough.`;
    case "max_kl":
      return `An answer was cut off at the greatest distance from the base${limit("max_kl", " nats")}.`;
    case "shutdown":
      return "Ended early: the server was shutting down.";
    default:
      return `Ended early: ${by}.`;
  }
}

function said(key, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  if (typeof value === "number") return SHARES.has(key) ? percent(value) : plain(value);
  const numbers = Array.isArray(value) && value.length > 0 && value.every((each) => typeof each === "number");
  return numbers ? value.slice(0, 8).map(plain).join(", ") + (value.length > 8 ? ", …" : "") : null;
}
