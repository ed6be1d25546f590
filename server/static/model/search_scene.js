// What the response says about a search's end, in the form that reasons are found from.

/**
 * What the reasons of a search's end are told from; everything is read off the response.
 * @typedef {{tokens: number, text?: string, reward: number|null, finish_reason: string, choice: number|null,
 *   rewards?: Record<string, number|null>, terms?: Record<string, number|null>, value?: number|null}} Candidate
 * @typedef {{spec: Record<string, any>, report: Record<string, any>, candidates: Candidate[], chosen: number[],
 *   rule: Record<string, any>, refused: boolean, early: boolean, stoppedBy: string, ends: Map<number, number>}} Scene
 */

const SAMPLERS = new Set(["dts", "particle_filter", "qalign"]);
const COMPLETE = new Set(["finished", "abstained", "max_kl"]); // max_kl caps an answer; the search went to its end

/**
 * @param {Record<string, any>} decoding the response's object
 * @returns {Scene}
 */
export function scene(decoding) {
  const spec = decoding.spec ?? {};
  const stoppedBy = decoding.stopped_by ?? "finished";
  const early = !COMPLETE.has(stoppedBy);
  return {
    spec,
    report: decoding.report ?? {},
    candidates: decoding.candidates ?? [],
    chosen: (decoding.chosen ?? []).filter((index) => index !== null),
    rule: rule(spec, early),
    refused: stoppedBy === "abstained",
    early,
    stoppedBy,
    ends: ends(decoding.tree),
  };
}

/** The rule that found the choices: the request's, what abstain hands over to, or the strategy's own. */
function rule(spec, early) {
  const { strategy, select } = spec;
  // These make one answer for each choice; abstain may refuse it, and selects nothing.
  if (strategy === "cd_blockwise") return { rule: "blockwise" };
  if (strategy === "refine" && !spec.reward) return { rule: "last" };
  if (select) return select.rule === "abstain" ? select.then : select;
  if (strategy === "self_consistency") return { rule: spec.reward ? "weighted_vote" : "majority" };
  // What an early end leaves of a sampler goes by the highest reward.
  return { rule: SAMPLERS.has(strategy) && !early ? "sampled" : "argmax" };
}

/** By candidate, how often the search has valued it on the way, by the tree. */
function ends(tree) {
  const valued = [];
  const found = new Map();
  for (const [index, node] of (tree?.nodes ?? []).entries()) {
    valued[index] = (node.parent === null ? 0 : valued[node.parent]) + (node.value === null ? 0 : 1);
    if (node.candidate !== null) found.set(node.candidate, valued[index]);
  }
  return found;
}

/**
 * The number by which an answer stands among the others: its reward, or else its value.
 * @param {Candidate} candidate
 * @returns {number|null}
 */
export function worth(candidate) {
  return candidate.reward ?? candidate.value ?? null;
}

/**
 * Names of the guides that gave an answer no finite number.
 * @param {Candidate} candidate
 * @returns {string[]}
 */
export function failures(candidate) {
  return Object.keys(candidate.rewards ?? {}).filter((guide) => candidate.rewards[guide] === null);
}

/**
 * Whether a search that went to its end left an answer unfinished, for others that ranked above it.
 * @param {Scene} told
 * @param {Candidate} candidate
 * @returns {boolean}
 */
export function unfinished(told, candidate) {
  const drops = ["beam_search", "dvts", "cbs", "speculative_rejection"].includes(told.spec.strategy);
  const unscored = candidate.reward === null && (candidate.value ?? null) !== null && !failures(candidate).length;
  return drops && !told.early && unscored && candidate.finish_reason === "length";
}
