// The tokens of an answer as elements that are appended and never drawn again.

import { align, NOTHING } from "../model/align.js";
import { heat, isForced, isForeign, total } from "../model/heat.js";

/** Grows with an answer inside an element that nothing else fills. */
export class TokenList {
  /** @param {HTMLElement} box */
  constructor(box) {
    this.box = box;
    /** @type {HTMLElement[]} */
    this.spans = [];
    /** @type {import("../model/align.js").Piece[]} one for each span */
    this.pieces = [];
    this.stop = 0; // the span that the tab key reaches
    this.found = NOTHING;
    this.rest = document.createTextNode(""); // text whose tokens are not known, or not yet
    box.append(this.rest);
  }

  /**
   * Append what has come since.
   * @param {any[]} records
   * @param {string} text
   * @param {boolean} ended no more of either comes
   */
  show(records, text, ended) {
    const { pieces, found } = align(records, text, this.found, ended);
    this.found = found;
    const fresh = document.createDocumentFragment();
    for (const piece of pieces.filter(({ start, end }) => end > start)) {
      const span = token(records.slice(piece.first, piece.first + piece.count), text.slice(piece.start, piece.end));
      span.tabIndex = this.spans.length === this.stop ? 0 : -1;
      span.dataset.at = String(this.spans.length);
      this.spans.push(span);
      this.pieces.push(piece);
      fresh.append(span);
    }
    if (fresh.firstChild) this.box.insertBefore(fresh, this.rest);
    const rest = text.slice(found.at);
    if (rest !== this.rest.data) this.rest.data = rest;
  }

  /**
   * The number of the span that an event happened on, or null.
   * @param {EventTarget | null} target
   */
  at(target) {
    const span = target instanceof Element ? target.closest("[data-at]") : null;
    return span === null || !this.box.contains(span) ? null : Number(/** @type {HTMLElement} */ (span).dataset.at);
  }

  /**
   * Make one span the stop of the tab key, and focus it.
   * @param {number} at
   */
  focus(at) {
    this.stopAt(at);
    this.spans[at].focus();
  }

  /**
   * Make one span the stop of the tab key.
   * @param {number} at
   */
  stopAt(at) {
    this.spans[this.stop].tabIndex = -1;
    this.spans[at].tabIndex = 0;
    this.stop = at;
  }
}

function token(records, text) {
  const span = document.createElement("span");
  const difference = total(records);
  span.className = [
    "tokens-token",
    /^\s*\n\s*$/.test(text) && "tokens-break",
    difference !== null && `tokens-heat-${heat(difference)}`,
    records.some(isForeign) ? "tokens-foreign" : records.some(isForced) && "tokens-forced",
  ]
    .filter(Boolean)
    .join(" ");
  span.append(text);
  return span;
}
