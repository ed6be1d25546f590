// What is said of a step of a search: its text, its numbers and its fate.

import { plain } from "./plain_numbers.js";
import { path } from "./search_tree.js";
import { beginning } from "./step_text.js";

/** @typedef {import("./search_tree.js").Tree} Tree */
/** @typedef {import("./search_tree.js").Item} Item */

const FATES = { chosen: "on the way to the answer", kept: "on the way to other candidates", pruned: "given up" };

/**
 * The text that an item adds, and all before it.
 * @param {Tree} tree
 * @param {Item} item
 * @returns {{before: string, own: string}} `own` is empty for children that are folded together
 */
export function texts(tree, item) {
  const said = (steps) => steps.map((step) => tree.nodes[step].text).join("");
  const steps = path(tree, item.node);
  if (item.folded === "more") return { before: said(steps.slice(0, -1)), own: "" };
  const own = item.row.filter((step) => step !== 0);
  return { before: said(steps.slice(0, steps.length - own.length)), own: said(own) };
}

/**
 * What stands in an item's box.
 * @param {Tree} tree
 * @param {Item} item
 * @param {number} width in letters
 * @returns {string}
 */
export function label(tree, item, width) {
  if (item.folded === "more") return `+${item.row.length} more`;
  if (item.parent === null) return "start";
  const { own } = texts(tree, item);
  return own === "" ? "(ends here)" : beginning(own, width);
}

/**
 * The last numbers of an item, and how many steps are folded into it.
 * @param {Tree} tree
 * @param {Item} item
 * @returns {string} empty where there are none
 */
export function numbers(tree, item) {
  if (item.folded === "more" || item.parent === null)
    return item.answers === 1 ? "1 answer" : `${item.answers} answers`;
  const { reward } = tree.nodes[item.node];
  const valued = [...item.row].reverse().find((step) => tree.nodes[step].value !== null);
  const value = valued === undefined ? "" : `value ${plain(tree.nodes[valued].value)}`;
  const known = reward === null ? value : `reward ${plain(reward)}`;
  const folded = item.row.length > 1 ? `${item.row.length} steps` : "";
  return [known, folded].filter(Boolean).join(" · ");
}

/**
 * What became of an item's last step, or of the best of those that are folded together.
 * @param {Tree} tree
 * @param {Item} item
 * @returns {string}
 */
export function fate(tree, item) {
  const step = tree.nodes[item.node];
  if (item.folded === "more" || (step.candidate === null && step.choice === null)) return FATES[step.fate];
  if (step.choice === null) return "not chosen";
  return step.choice > 0 ? `choice ${step.choice + 1}` : "the answer";
}

/**
 * An item as it is read aloud.
 * @param {Tree} tree
 * @param {Item} item
 * @returns {string}
 */
export function spoken(tree, item) {
  if (item.parent === null) return `Start of ${item.answers} answers`;
  if (item.folded === "more") return `${item.row.length} more steps, folded`;
  const { own } = texts(tree, item);
  return [own.trim().slice(0, 120) || "ends here", numbers(tree, item), fate(tree, item)].filter(Boolean).join(", ");
}
