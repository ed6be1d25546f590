import assert from "node:assert/strict";
import { test } from "node:test";

import {
  answerEnd,
  firstView,
  holding,
  inOrder,
  neighbour,
  passing,
  path,
  toggled,
  visible,
} from "../../../server/static/model/search_tree.js";
import { beginning } from "../../../server/static/model/step_text.js";
import { fate, label, numbers, texts } from "../../../server/static/model/step_words.js";
import { BOX, crosses, curve, layout, shows } from "../../../server/static/model/tree_layout.js";

const d3 = await import("../../../server/static/lib/d3-hierarchy.js").catch(() => null);
const unbuilt = d3 === null && "the page's libraries are not built";

/** @returns {any} */
function step(parent, fate = "pruned", more = {}) {
  const text = parent === null ? "" : ` s${more.candidate ?? ""}`;
  return { parent, text, tokens: 1, value: null, reward: null, fate, candidate: null, choice: null, ...more };
}

/** The root; 1-2-3 in a row to the choice; 4 given up, before it; 5 under 1 another candidate. */
function small() {
  const nodes = [
    step(null, "chosen"),
    step(0, "chosen", { text: "It" }),
    step(1, "chosen", { text: " rains" }),
    step(2, "chosen", { text: ".", candidate: 0, choice: 0, reward: 2 }),
    step(0, "pruned", { text: "No", value: -1 }),
    step(1, "kept", { text: " pours", candidate: 1 }),
  ];
  return { nodes, omitted: 0 };
}

const drawn = (tree, view) => inOrder(visible(tree, { ...firstView(tree), ...view }));
const rows = (tree, view) => drawn(tree, view).map((item) => item.row);

test("every answer passes through each step above its end", () => {
  assert.deepEqual(passing(small()), [3, 2, 1, 1, 1, 1]);
});

test("an answer that ends inside counts beside those that go on", () => {
  const nodes = [step(null), step(0, "kept", { candidate: 0 }), step(1), step(1, "kept", { text: "", candidate: 1 })];
  assert.deepEqual(passing({ nodes, omitted: 0 }), [3, 3, 1, 1]);
});

test("the way to a step leaves the root out", () => {
  assert.deepEqual(path(small(), 3), [1, 2, 3]);
  assert.deepEqual(path(small(), 0), []);
});

test("the way to the choice stands first, what was given up last, and may be hidden", () => {
  assert.deepEqual(rows(small()), [[0], [1], [2], [3], [5], [4]]);
  assert.deepEqual(rows(small(), { hidePruned: true }), [[0], [1], [2], [3], [5]]);
  const nodes = ["chosen", "pruned", "kept", "chosen", "kept"].map((fate, at) => step(at ? 0 : null, fate));
  assert.deepEqual(rows({ nodes, omitted: 0 }), [[0], [3], [2], [4], [1]]);
});

test("steps that follow each other alone are one item until it is unfolded", () => {
  assert.deepEqual(rows(small(), { foldRows: true }), [[0], [1], [2, 3], [5], [4]]);
  const tree = small();
  const view = { ...firstView(tree), foldRows: true };
  const folded = inOrder(visible(tree, view))[2];
  assert.equal(folded.folded, "row");
  assert.deepEqual(rows(tree, toggled(view, folded)), [[0], [1], [2], [3], [5], [4]]);
});

test("a row ends where a candidate does, and where the fate changes", () => {
  const steps = (fates, end) =>
    fates.map((fate, at) => step(at ? at - 1 : null, fate, { candidate: at === end ? 0 : null }));
  const folded = (fates, end) => rows({ nodes: steps(fates, end), omitted: 0 }, { foldRows: true });
  assert.deepEqual(folded(["kept", "kept", "kept", "kept"], 3), [[0], [1, 2, 3]]);
  assert.deepEqual(folded(["kept", "kept", "kept", "kept"], 2), [[0], [1, 2], [3]]);
  assert.deepEqual(folded(["kept", "kept", "pruned", "pruned"], 9), [[0], [1], [2, 3]]);
});

test("large trees are shown with their rows folded", () => {
  const nodes = Array.from({ length: 201 }, (_, index) => step(index === 0 ? null : index - 1));
  assert.equal(firstView({ nodes, omitted: 0 }).foldRows, true);
  assert.equal(firstView(small()).foldRows, false);
});

test("of large trees what was given up is folded where it parts from the rest", () => {
  const nodes = [step(null, "chosen"), step(0, "chosen"), step(1, "pruned"), step(2, "pruned"), step(3, "pruned")];
  const large = [...nodes, ...Array.from({ length: 200 }, () => step(1, "pruned"))];
  assert.deepEqual([...firstView({ nodes: large, omitted: 0 }).closed].slice(0, 2), [2, 5]);
  assert.equal(firstView({ nodes, omitted: 0 }).closed.size, 0);
});

test("children beyond the first are folded into one item that opens", () => {
  const nodes = [step(null), ...Array.from({ length: 30 }, () => step(0))];
  const tree = { nodes, omitted: 0 };
  const items = drawn(tree);
  const more = items.at(-1);
  assert.equal(items.length, 13);
  assert.deepEqual([more.folded, more.row.length, more.answers], ["more", 19, 19]);
  assert.equal(label(tree, more, 20), "+19 more");
  assert.equal(drawn(tree, toggled(firstView(tree), more)).length, 31);
  nodes.length = 13;
  assert.ok(
    drawn(tree).every((item) => item.folded === null),
    "as many as fit are not folded",
  );
});

test("what follows a step is folded and unfolded again, and the step before it stands for what is hidden", () => {
  const tree = small();
  const view = firstView(tree);
  const closed = toggled(view, drawn(tree)[1]);
  const items = inOrder(visible(tree, closed));
  assert.deepEqual(
    items.map((item) => item.row),
    [[0], [1], [4]],
  );
  assert.equal(items[1].folded, "closed");
  assert.equal(holding(tree, items, 3), items[1]);
  assert.equal(holding(tree, items, 4), items[2]);
  assert.equal(inOrder(visible(tree, toggled(closed, items[1]))).length, 6);
});

test("arrows lead to the parent, the first child and the siblings, and stay where there is none", () => {
  const [root, it, rains, end, pours, no] = drawn(small());
  assert.equal(neighbour(it, "ArrowLeft"), root);
  assert.equal(neighbour(it, "ArrowRight"), rains);
  assert.equal(neighbour(rains, "ArrowDown"), pours);
  assert.equal(neighbour(no, "ArrowUp"), it);
  for (const key of ["ArrowUp", "ArrowLeft"]) assert.equal(neighbour(root, key), root);
  for (const key of ["ArrowRight", "ArrowDown"]) assert.equal(neighbour(end, key), end);
});

test("items tell their level, and their place among their siblings", () => {
  const items = drawn(small());
  assert.deepEqual(
    items.map(({ level, place, size }) => [level, place, size]),
    [
      [1, 1, 1],
      [2, 1, 2],
      [3, 1, 2],
      [4, 1, 1],
      [3, 2, 2],
      [2, 2, 2],
    ],
  );
});

test("a step is told with the answer before it, its number and its fate", () => {
  const tree = small();
  const [root, it, folded, pours, no] = drawn(tree, { foldRows: true });
  assert.deepEqual(texts(tree, folded), { before: "It", own: " rains." });
  assert.equal(numbers(tree, folded), "reward 2 · 2 steps");
  assert.equal(numbers(tree, root), "3 answers");
  tree.nodes[2].value = 0.5;
  tree.nodes[3].reward = null;
  assert.equal(numbers(tree, folded), "value 0.5 · 2 steps");
  assert.deepEqual(
    [it, folded, pours, no].map((item) => fate(tree, item)),
    ["on the way to the answer", "the answer", "not chosen", "given up"],
  );
  assert.equal(answerEnd(tree), 3);
});

test("labels are cut by letters, with what cannot be seen made visible at their ends", () => {
  assert.equal(beginning(" a b ", 9), "·a b·");
  assert.equal(beginning("one\ntwo", 9), "one⏎two");
  assert.equal(beginning("a long text", 6), "a long…");
  assert.equal(beginning("👩‍👩‍👧‍👦👩‍👩‍👧‍👦", 3), "👩‍👩‍👧‍👦…");
  assert.equal(beginning("<b>", 9), "<b>");
});

test("boxes stand by level, none over another, and links are as wide as answers pass", { skip: unbuilt }, () => {
  const root = visible(small(), firstView(small()));
  const { boxes, links, width, height } = layout(d3, root);
  const places = [...boxes.values()];
  assert.equal(new Set(places.map(({ x }) => x)).size, 4);
  for (const one of places) {
    for (const other of places) {
      const apart = one === other || one.x !== other.x || Math.abs(one.y - other.y) >= BOX.height;
      assert.ok(apart, "two boxes overlap");
    }
    assert.ok(one.x >= 0 && one.y >= 0 && one.x + BOX.width <= width && one.y + BOX.height <= height);
  }
  assert.equal(links.length, 5);
  const [wide, thin] = [1, 3].map((node) => links.find((link) => link.item.node === node).width);
  assert.ok(wide > thin);
  assert.match(curve(links[0]), /^M\d/);
});

test("a window shows the boxes within it and the links that pass it", () => {
  const box = (x, y) => ({ item: null, x, y });
  const seen = { left: 1000, top: 1000, right: 1100, bottom: 1100 };
  assert.ok(shows(seen, box(1000 - BOX.width + 1, 1050)));
  assert.ok(!shows(seen, box(1000 - BOX.width, 1050)));
  assert.ok(crosses(seen, { item: null, from: box(900, 0), to: box(1200, 5000), width: 1 }));
  assert.ok(!crosses(seen, { item: null, from: box(900, 1200), to: box(1200, 5000), width: 1 }));
});
