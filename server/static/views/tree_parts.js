// The boxes and links of a search's tree.

import { html } from "../lib/preact.js";
import { fate, label, numbers, spoken } from "../model/step_words.js";
import { BOX, curve } from "../model/tree_layout.js";
import { memo } from "./memo.js";

const LETTERS = 20;
const RISING = { pruned: 0, kept: 1, chosen: 2 };

/** Links, the way to the answer above the others. Props: `links` as layout() gives them. */
export const Links = memo(({ links }) => {
  const ordered = [...links].sort((one, other) => RISING[one.item.fate] - RISING[other.item.fate]);
  return html`<g aria-hidden="true">
    ${ordered.map(
      (link) =>
        html`<path
          key=${link.item.node}
          class=${`tree-link tree-${link.item.fate}`}
          d=${curve(link)}
          stroke-width=${link.width}
        />`,
    )}
  </g>`;
});

/** One step. Props: `tree`, `item`, its `box`, `at` (its number among the items), `name` of the tree, `active`. */
export const StepBox = memo(({ tree, item, at, name, box, active }) => {
  const inside = item.children.length > 0 || item.folded !== null;
  const sign = item.folded ? "+" : item.children.length > 0 && item.parent ? "−" : "";
  return html`<g
    role="treeitem"
    id=${`tree-${name}-${item.node}`}
    data-at=${at}
    class=${`tree-step tree-${item.fate} ${active ? "tree-active" : ""}`}
    transform=${`translate(${box.x},${box.y})`}
    aria-level=${item.level}
    aria-setsize=${item.size}
    aria-posinset=${item.place}
    aria-expanded=${inside ? String(item.folded === null) : undefined}
    aria-selected=${String(active)}
    aria-label=${spoken(tree, item)}
  >
    <title>${fate(tree, item)}</title>
    <rect width=${BOX.width} height=${BOX.height} rx="6" />
    <text class="tree-label" x="9" y="17">${label(tree, item, LETTERS)}</text>
    <text class="tree-number" x="9" y="32">${numbers(tree, item)}</text>
    ${
      sign &&
      html`<g data-fold="">
        <rect class="tree-touch" x=${BOX.width - 26} y="16" width="26" height="24" />
        <text class="tree-sign" x=${BOX.width - 8} y="32" text-anchor="end">${sign}</text>
      </g>`
    }
  </g>`;
});
