// The tree of a search: as a drawing where there is room, else as an outline.

import { html, useEffect, useMemo, useRef, useState } from "../lib/preact.js";
import { answerEnd, firstView, holding, inOrder, toggled, visible } from "../model/search_tree.js";
import { StepDetail } from "./tree_detail.js";
import { TreeDrawing } from "./tree_drawing.js";
import { TreeOutline } from "./tree_outline.js";

const ROOM = 560;

/**
 * @param {{tree: import("../model/search_tree.js").Tree, candidates: Record<string, any>[], ranks?: Map<number, number>,
 *   name?: string}} props `ranks` are places of candidates, from 1 on; `name` tells several trees of a page apart
 */
export function SearchTree({ tree, candidates, ranks = new Map(), name = "search" }) {
  const [view, setView] = useState(() => firstView(tree));
  const [form, setForm] = useState(null);
  const [node, setNode] = useState(() => answerEnd(tree));
  const [box, narrow] = useNarrow();
  const root = useMemo(() => visible(tree, view), [tree, view]);
  const items = useMemo(() => inOrder(root), [root]);
  const active = useMemo(() => holding(tree, items, node), [tree, items, node]);
  const shape = form ?? (narrow ? "outline" : "drawing");
  const fold = (item) => setView(toggled(view, item));
  const turn = (change) => setView({ ...view, ...change });
  return html`<section class="tree" ref=${box} aria-label="Search tree">
    <div class="row">
      <h3>Search tree</h3>
      <span class="muted">${counted(tree)}</span>
    </div>
    <${Controls} ...${{ view, shape, turn, onForm: setForm }} />
    ${
      shape === "outline"
        ? html`<${TreeOutline} ...${{ tree, hidePruned: view.hidePruned, ranks }} />`
        : html`<${TreeDrawing}
              ...${{ tree, root, items, active, name, onActive: setNode, onFold: fold, onFail: () => setForm("outline") }}
            />
            <${StepDetail} ...${{ tree, item: active, candidates, ranks }} />`
    }
  </section>`;
}

function counted({ nodes, omitted }) {
  const many = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
  const pruned = nodes.filter((each) => each.fate === "pruned").length;
  const left = omitted ? `; ${many(omitted, "more step")} left out for lack of room` : "";
  return `${many(nodes.length - 1, "step")}, ${pruned.toLocaleString("en")} given up${left}`;
}

function Controls({ view, shape, turn, onForm }) {
  const check = (label, key, change) =>
    html`<label class="check">
      <input type="checkbox" checked=${view[key]} onChange=${(event) => change(event.currentTarget.checked)} />${label}
    </label>`;
  const rows = (foldRows) => turn({ foldRows, unfolded: new Set() });
  const choice = (key, label) =>
    html`<button type="button" class="button button-small" aria-pressed=${shape === key} onClick=${() => onForm(key)}>
      ${label}
    </button>`;
  return html`<div class="row">
    ${check("Hide what was given up", "hidePruned", (hidePruned) => turn({ hidePruned }))}
    ${shape === "drawing" && check("Fold steps that follow each other alone", "foldRows", rows)}
    <span class="row" role="group" aria-label="Shown as"
      >${choice("drawing", "Drawing")} ${choice("outline", "Outline")}</span
    >
  </div>`;
}

/** Whether the element of the reference is too narrow for a drawing. */
function useNarrow() {
  const box = useRef(null);
  const [narrow, setNarrow] = useState(() => innerWidth < ROOM);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => setNarrow(entry.contentRect.width < ROOM));
    observer.observe(box.current);
    return () => observer.disconnect();
  }, []);
  return /** @type {const} */ ([box, narrow]);
}
