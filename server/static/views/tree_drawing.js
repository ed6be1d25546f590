// The tree of a search, drawn from left to right; one stop for the tab key, arrows move in it.

import { html, useCallback, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../lib/preact.js";
import { neighbour } from "../model/search_tree.js";
import { BOX, crosses, layout, shows } from "../model/tree_layout.js";
import { Links, StepBox } from "./tree_parts.js";

const PAGE = 240; // pixels by which the drawn part grows: as seldom as the scrolling box passes such a line
const BEFORE = { left: 0, top: 0, right: 1600, bottom: 800 };

/**
 * @param {{tree: import("../model/search_tree.js").Tree, root: import("../model/search_tree.js").Item,
 *   items: import("../model/search_tree.js").Item[], active: import("../model/search_tree.js").Item, name: string,
 *   onActive: (node: number) => void, onFold: (item: import("../model/search_tree.js").Item) => void,
 *   onFail: () => void}} props
 */
export function TreeDrawing({ tree, root, items, active, name, onActive, onFold, onFail }) {
  const scroller = useRef(null);
  const pointer = useRef({ x: 0, y: 0 });
  const plan = usePlan(root, onFail);
  const [seen, look] = useSeen(scroller);
  const shown = useRef(false);
  useLayoutEffect(() => {
    if (!plan) return;
    // At first the start, and if both do not fit, the first step to the answer, which stands above the others.
    const wanted = shown.current ? [active] : [root, ...root.children.slice(0, 1)];
    for (const item of wanted) reveal(scroller.current, plan.boxes.get(item));
    shown.current = true;
    look();
  }, [plan]);
  if (!plan) return html`<p class="muted">Drawing the tree …</p>`;

  const press = (event) => {
    const next = leads(event.key, active, items);
    if (event.altKey || event.ctrlKey || event.metaKey || next === null) return;
    event.preventDefault();
    if (event.key === "Enter" || event.key === " ") return onFold(active);
    onActive(next.node);
    reveal(scroller.current, plan.boxes.get(next));
  };
  const pointed = (event) => items[event.target.closest?.("[data-at]")?.dataset.at];
  const click = (event) => {
    const item = pointed(event);
    if (!item) return;
    onActive(item.node);
    if (item.folded || event.target.closest("[data-fold]")) onFold(item);
  };
  const hover = (event) => {
    // When the box scrolls under a pointer that rests, the browser says that it moved.
    const rests = event.clientX === pointer.current.x && event.clientY === pointer.current.y;
    pointer.current = { x: event.clientX, y: event.clientY };
    const item = rests ? undefined : pointed(event);
    if (item && item !== active) onActive(item.node);
  };
  // Only what can be seen is drawn, and the active step, which the tree refers to.
  const drawn = items.filter((item) => item === active || shows(seen, plan.boxes.get(item)));
  const at = new Map(items.map((item, index) => [item, index]));
  return html`<div
    class="tree-box"
    ref=${scroller}
    role="region"
    aria-label="Search tree, scrolls"
    tabindex="0"
    onScroll=${look}
  >
    <svg
      class="tree-drawing"
      role="tree"
      tabindex="0"
      aria-label="Steps of the search. Arrows move, Enter folds."
      aria-activedescendant=${`tree-${name}-${active.node}`}
      width=${plan.width}
      height=${plan.height}
      onKeyDown=${press}
      onClick=${click}
      onPointerMove=${hover}
    >
      <${Links} links=${plan.links.filter((link) => crosses(seen, link))} />
      ${drawn.map((item) => {
        const props = { tree, item, name, at: at.get(item), box: plan.boxes.get(item), active: item === active };
        return html`<${StepBox} key=${item.node} ...${props} />`;
      })}
    </svg>
  </div>`;
}

/** Where everything stands, once the library that finds it is here; null before. */
function usePlan(root, onFail) {
  const [d3, setD3] = useState(null);
  useEffect(() => {
    import("../lib/d3-hierarchy.js").then((library) => setD3(library), onFail);
  }, []);
  return useMemo(() => d3 && layout(d3, root), [d3, root]);
}

/** The part of the drawing that its box shows, in whole pages, and what to call when that has changed. */
function useSeen(scroller) {
  const [seen, setSeen] = useState(BEFORE);
  const look = useCallback(() => {
    if (!scroller.current) return;
    const { scrollLeft, scrollTop, clientWidth, clientHeight } = scroller.current;
    const [floor, ceil] = [(at) => (Math.floor(at / PAGE) - 1) * PAGE, (at) => (Math.ceil(at / PAGE) + 1) * PAGE];
    const next = { left: floor(scrollLeft), top: floor(scrollTop), right: ceil(scrollLeft + clientWidth) };
    const bottom = ceil(scrollTop + clientHeight);
    setSeen((last) => {
      const same = last.left === next.left && last.top === next.top && last.right === next.right;
      return same && last.bottom === bottom ? last : { ...next, bottom };
    });
  }, []);
  useEffect(() => {
    addEventListener("resize", look);
    return () => removeEventListener("resize", look);
  }, []);
  return /** @type {const} */ ([seen, look]);
}

function leads(key, active, items) {
  if (key === "Enter" || key === " ") return active;
  if (key === "Home") return items[0];
  if (key === "End") return items.at(-1);
  return key.startsWith("Arrow") ? neighbour(active, key) : null;
}

/** Scrolls a box into view, at once: a moving picture would lag behind the keys. */
function reveal(scroller, { x, y }) {
  const margin = 24;
  const within = (start, size, from, room) => Math.min(Math.max(from, start + size + margin - room), start - margin);
  scroller.scrollTo(
    within(x, BOX.width, scroller.scrollLeft, scroller.clientWidth),
    within(y, BOX.height, scroller.scrollTop, scroller.clientHeight),
  );
}
