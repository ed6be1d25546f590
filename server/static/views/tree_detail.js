// One step of a search in full: the answer up to it, what the search thought of it, and what became of it.

import { html } from "../lib/preact.js";
import { plain } from "../model/plain_numbers.js";
import { fate, texts } from "../model/step_words.js";

/**
 * @param {{tree: import("../model/search_tree.js").Tree, item: import("../model/search_tree.js").Item,
 *   candidates: Record<string, any>[], ranks: Map<number, number>}} props
 */
export function StepDetail({ tree, item, candidates, ranks }) {
  const { before, own } = texts(tree, item);
  const step = tree.nodes[item.node];
  const more = item.folded === "more";
  const tokens = item.row.reduce((sum, each) => sum + tree.nodes[each].tokens, 0);
  const facts = [
    ["fate", more ? `${item.row.length} more steps are folded here` : fate(tree, item)],
    !more && step.value !== null && ["value", plain(step.value)],
    !more && step.reward !== null && ["reward", plain(step.reward)],
    !more && item.parent !== null && ["tokens", plain(tokens)],
    ["answers through it", plain(item.answers)],
    !more && step.candidate !== null && ["ends as", ends(step.candidate, candidates, ranks)],
  ].filter(Boolean);
  return html`<div class="tree-detail">
    <dl class="tree-facts">
      ${facts.map(
        ([name, value]) =>
          html`<div key=${name}>
            <dt>${name}</dt>
            <dd>${value}</dd>
          </div>`,
      )}
    </dl>
    <p class="tree-words" dir="auto">
      ${before}${own && html`<mark class="tree-own">${own}</mark>`}
      ${before + own === "" && html`<span class="muted">the beginning of every answer</span>`}
    </p>
  </div>`;
}

function ends(index, candidates, ranks) {
  const rank = ranks.get(index);
  const how = candidates[index]?.finish_reason === "stop" ? ", ended by itself" : "";
  return `candidate ${rank === undefined ? `number ${index + 1}` : `of rank ${rank}`}${how}`;
}
