// The tree of a search as nested lists: for narrow screens, and for reading aloud.

import { html, useMemo, useState } from "../lib/preact.js";
import { firstView, toggled, visible } from "../model/search_tree.js";
import { fate, numbers, texts } from "../model/step_words.js";

const DEEP = 8;

/**
 * @param {{tree: import("../model/search_tree.js").Tree, hidePruned: boolean, ranks: Map<number, number>}} props
 */
export function TreeOutline({ tree, hidePruned, ranks }) {
  // What is not opened is not drawn, so that nothing else need be folded.
  const [view, setView] = useState(() => ({ ...firstView(tree), foldRows: true, closed: new Set() }));
  const root = useMemo(() => visible(tree, { ...view, hidePruned }), [tree, view, hidePruned]);
  const onMore = (item) => setView(toggled(view, item));
  return html`<div class="tree-outline"><${Steps} items=${root.children} ...${{ tree, ranks, onMore }} /></div>`;
}

function Steps({ items, ...rest }) {
  const deep = items[0]?.level > DEEP;
  return html`<ul class=${deep ? "tree-list tree-deep" : "tree-list"}>
    ${items.map((item) => html`<li key=${item.node}><${item.folded === "more" ? More : Step} ...${{ item, ...rest }} /></li>`)}
  </ul>`;
}

function More({ item, onMore }) {
  return html`<button type="button" class="button button-small" onClick=${() => onMore(item)}>
    ${item.row.length} more steps
  </button>`;
}

/** A step, and what follows it once it is opened; the way to the answer is open from the start. */
function Step({ item, tree, ...rest }) {
  const [open, setOpen] = useState(item.fate === "chosen");
  if (!item.children.length) return html`<div class="tree-leaf"><${Words} ...${{ item, tree, ...rest }} /></div>`;
  return html`<details open=${open} onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary><${Words} ...${{ item, tree, ...rest }} /></summary>
    ${open && html`<${Steps} items=${item.children} ...${{ tree, ...rest }} />`}
  </details>`;
}

function Words({ item, tree, ranks }) {
  const { own } = texts(tree, item);
  const { candidate } = tree.nodes[item.node];
  const rank = candidate === null ? null : (ranks.get(candidate) ?? candidate + 1);
  const facts = [fate(tree, item), rank !== null && `candidate of rank ${rank}`, numbers(tree, item)].filter(Boolean);
  return html`<span class=${`tree-item tree-${item.fate}`}>
    <span class="tree-words" dir="auto">${own.trim() === "" ? "(ends here)" : own.trim()}</span>
    <span class="tree-told">${facts.join(" · ")}</span>
  </span>`;
}
