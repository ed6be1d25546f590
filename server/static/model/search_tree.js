// What is drawn of a search's tree: which steps are folded together, which hidden, and where the arrow keys lead.

/**
 * @typedef {{parent: number|null, text: string, tokens: number, value: number|null, reward: number|null,
 *   fate: "chosen"|"kept"|"pruned", candidate: number|null, choice: number|null}} Step
 * @typedef {{nodes: Step[], omitted: number}} Tree
 * @typedef {{hidePruned: boolean, foldRows: boolean, unfolded: Set<number>, closed: Set<number>, wide: Set<number>}} View
 *   what is folded: rows of single steps but those `unfolded`, what follows `closed` steps, and children beyond the first
 *   few but of `wide` steps
 * @typedef {{node: number, row: number[], fate: Step["fate"], parent: Item|null, children: Item[], answers: number,
 *   level: number, size: number, place: number, folded: "row"|"closed"|"more"|null}} Item
 *   what is drawn: `row` are the steps that it stands for, `node` the last of them; of "more" the first of the siblings
 *   that are folded together. `size` and `place` are among its siblings
 */

/** children that are drawn of one step before the others are folded together */
export const WIDEST = 12;
/** steps beyond which much is folded from the start */
export const MANY = 200;

/**
 * The view with which a tree is shown first; of a large one, without what follows where a branch was given up.
 * @param {Tree} tree
 * @returns {View}
 */
export function firstView({ nodes }) {
  const large = nodes.length > MANY;
  const leaves = ({ parent, fate }) => parent !== null && fate === "pruned" && nodes[parent].fate !== "pruned";
  const givenUp = large ? [...nodes.keys()].filter((index) => leaves(nodes[index])) : [];
  return { hidePruned: false, foldRows: large, unfolded: new Set(), closed: new Set(givenUp), wide: new Set() };
}

/**
 * How many answers pass through each step: those that end at it or after it.
 * @param {Tree} tree
 * @returns {number[]}
 */
export function passing({ nodes }) {
  const answers = nodes.map(() => 0);
  for (let index = nodes.length - 1; index >= 0; index--) {
    // A leaf is an answer that ended or was given up; others end inside where a candidate does.
    if (answers[index] === 0 || nodes[index].candidate !== null) answers[index]++;
    const { parent } = nodes[index];
    if (parent !== null) answers[parent] += answers[index];
  }
  return answers;
}

/**
 * The steps from the root to one, the root left out.
 * @param {Tree} tree
 * @param {number} index
 * @returns {number[]}
 */
export function path({ nodes }, index) {
  const steps = [];
  for (let at = index; nodes[at].parent !== null; at = nodes[at].parent) steps.push(at);
  return steps.reverse();
}

/**
 * What is drawn of a tree under a view, parents with their children.
 * @param {Tree} tree
 * @param {View} view
 * @returns {Item} the root
 */
export function visible(tree, view) {
  const children = childrenOf(tree, view.hidePruned);
  const answers = passing(tree);
  const root = item(tree, [0], null, answers[0]);
  const left = [root];
  while (left.length) {
    const parent = left.pop();
    let below = children[parent.node];
    if (view.closed.has(parent.node) && below.length) {
      parent.folded = "closed";
      continue;
    }
    const beyond = view.wide.has(parent.node) || below.length <= WIDEST ? [] : below.slice(WIDEST - 1);
    below = below.slice(0, below.length - beyond.length);
    parent.children = below.map((child) => {
      const row = view.foldRows && !view.unfolded.has(child) ? inARow(tree, children, child) : [child];
      return item(tree, row, parent, answers[child]);
    });
    if (beyond.length) parent.children.push(rest(tree, beyond, parent, answers));
    for (const [place, child] of parent.children.entries()) {
      child.place = place + 1;
      child.size = parent.children.length;
    }
    left.push(...parent.children.filter((child) => child.folded !== "more"));
  }
  return root;
}

/**
 * The items of a tree from top to bottom, each before its children.
 * @param {Item} root
 * @returns {Item[]}
 */
export function inOrder(root) {
  const found = [];
  const left = [root];
  while (left.length) {
    const next = left.pop();
    found.push(next);
    left.push(...[...next.children].reverse());
  }
  return found;
}

/**
 * The item to which an arrow key leads; the same one where there is none.
 * @param {Item} from
 * @param {string} key the name of a key
 * @returns {Item}
 */
export function neighbour(from, key) {
  const siblings = from.parent?.children ?? [from];
  const at = siblings.indexOf(from);
  switch (key) {
    case "ArrowLeft":
      return from.parent ?? from;
    case "ArrowRight":
      return from.children[0] ?? from;
    case "ArrowUp":
      return siblings[at - 1] ?? from;
    case "ArrowDown":
      return siblings[at + 1] ?? from;
    default:
      return from;
  }
}

/**
 * The item that stands for a step, or else for the nearest step before it.
 * @param {Tree} tree
 * @param {Item[]} items those that are drawn
 * @param {number} node
 * @returns {Item}
 */
export function holding({ nodes }, items, node) {
  const owner = new Map(items.flatMap((each) => each.row.map((step) => [step, each])));
  let at = node;
  while (!owner.has(at)) at = nodes[at].parent;
  return owner.get(at);
}

/**
 * The step at which the first choice ends; the root where there is none.
 * @param {Tree} tree
 * @returns {number}
 */
export function answerEnd({ nodes }) {
  const end = nodes.findIndex((each) => each.choice !== null);
  return end < 0 ? 0 : end;
}

/**
 * The view after an item was folded or unfolded.
 * @param {View} view
 * @param {Item} chosen
 * @returns {View}
 */
export function toggled(view, chosen) {
  if (chosen.folded === "more") return { ...view, wide: new Set([...view.wide, chosen.parent.node]) };
  if (chosen.folded === "row") return { ...view, unfolded: new Set([...view.unfolded, ...chosen.row]) };
  const closed = new Set(view.closed);
  if (!closed.delete(chosen.node) && chosen.children.length) closed.add(chosen.node);
  return { ...view, closed };
}

/** The children of each step: those on the way to a choice first, then those kept; pruned ones last or not at all. */
function childrenOf({ nodes }, hidePruned) {
  const order = { chosen: 0, kept: 1, pruned: 2 };
  const children = nodes.map(() => []);
  for (const [index, { parent, fate }] of nodes.entries()) {
    if (parent !== null && !(hidePruned && fate === "pruned")) children[parent].push(index);
  }
  for (const list of children) list.sort((a, b) => order[nodes[a].fate] - order[nodes[b].fate] || a - b);
  return children;
}

/** The steps from `first` on that follow each other alone and share a fate, up to where an answer ends. */
function inARow({ nodes }, children, first) {
  const row = [first];
  for (let at = first; children[at].length === 1 && nodes[at].candidate === null;) {
    [at] = children[at];
    if (nodes[at].fate !== nodes[first].fate || nodes[at].text === "") break;
    row.push(at);
  }
  return row;
}

function item(tree, row, parent, answers) {
  const folded = /** @type {Item["folded"]} */ (row.length > 1 ? "row" : null);
  const level = parent === null ? 1 : parent.level + 1;
  const { fate } = tree.nodes[row.at(-1)];
  return { node: row.at(-1), row, fate, parent, children: [], answers, level, size: 1, place: 1, folded };
}

function rest(tree, beyond, parent, answers) {
  const count = beyond.reduce((sum, each) => sum + answers[each], 0);
  return { ...item(tree, beyond, parent, count), node: beyond[0], folded: /** @type {Item["folded"]} */ ("more") };
}
