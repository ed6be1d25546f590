// Where the boxes and links of a search's tree stand.

/** @typedef {import("./search_tree.js").Item} Item */
/** @typedef {{item: Item, x: number, y: number}} Box the upper left corner, pixels */
/** @typedef {{item: Item, from: Box, to: Box, width: number}} Link from the parent's box to the item's */
/** @typedef {{left: number, top: number, right: number, bottom: number}} Window a part of the drawing, pixels */

export const BOX = { width: 184, height: 40 };
const STEP = { x: BOX.width + 44, y: BOX.height + 8 };
const MARGIN = 8;
const WIDTH = { least: 1.25, most: 7 };

/**
 * Boxes from left to right, links beneath them as wide as answers pass.
 * @param {typeof import("d3-hierarchy")} d3
 * @param {Item} root
 * @returns {{boxes: Map<Item, Box>, links: Link[], width: number, height: number}} pixels
 */
export function layout(d3, root) {
  const top = d3.tree().nodeSize([STEP.y, STEP.x]).separation(apart)(d3.hierarchy(root, (item) => item.children));
  const found = top.descendants();
  const [first, last] = [Math.min(...found.map((each) => each.x)), Math.max(...found.map((each) => each.x))];
  const boxes = new Map(
    found.map((each) => [each.data, { item: each.data, x: each.y + MARGIN, y: each.x - first + MARGIN }]),
  );
  const links = found.slice(1).map(({ data }) => link(boxes.get(data.parent), boxes.get(data), root.answers));
  const deepest = Math.max(...found.map((each) => each.y));
  return { boxes, links, width: deepest + BOX.width + 2 * MARGIN, height: last - first + BOX.height + 2 * MARGIN };
}

function apart(one, other) {
  return one.parent === other.parent ? 1 : 1.25;
}

function link(from, to, total) {
  const width = WIDTH.least + (WIDTH.most - WIDTH.least) * Math.sqrt(to.item.answers / total);
  return { item: to.item, from, to, width: Math.round(width * 100) / 100 };
}

/**
 * A link as the path of an SVG.
 * @param {Link} link
 * @returns {string}
 */
export function curve({ from, to }) {
  const [x0, y0, x1, y1] = [from.x + BOX.width, from.y + BOX.height / 2, to.x, to.y + BOX.height / 2];
  const middle = (x0 + x1) / 2;
  return `M${x0},${y0}C${middle},${y0},${middle},${y1},${x1},${y1}`;
}

/**
 * Whether a window shows any of a box.
 * @param {Window} window
 * @param {Box} box
 * @returns {boolean}
 */
export function shows({ left, top, right, bottom }, { x, y }) {
  return x < right && x + BOX.width > left && y < bottom && y + BOX.height > top;
}

/**
 * Whether a window may show any of a link: whether it meets the rectangle around both of its boxes.
 * @param {Window} window
 * @param {Link} link
 * @returns {boolean}
 */
export function crosses({ left, top, right, bottom }, { from, to }) {
  const [above, below] = from.y < to.y ? [from.y, to.y] : [to.y, from.y];
  return from.x < right && to.x > left && above < bottom && below + BOX.height > top;
}
