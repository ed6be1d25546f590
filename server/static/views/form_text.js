// Texts of the server with formulas between backticks.

import { html } from "../lib/preact.js";

/** @param {{text: string}} props */
export function Coded({ text }) {
  return text.split("`").map((piece, index) => (index % 2 ? html`<code>${piece}</code>` : piece));
}
