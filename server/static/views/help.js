// What the keys do and how the page is to be read.

import { html } from "../lib/preact.js";
import { Dialog } from "./dialog.js";

const KEYS = [
  ["Enter", "send the prompt (Shift+Enter: a new line)"],
  ["Escape", "stop everything that runs"],
  ["/", "go to the prompt"],
  ["Arrow keys", "in an answer: from token to token; in a tree: from step to step"],
  ["Enter on a token", "continue from there with another strategy"],
];

/** @param {{onClose: () => void}} props */
export function Help({ onClose }) {
  return html`
    <${Dialog} title="How to read this page" onClose=${onClose}>
      <p>
        Every column answers the same conversation with the same seed under a strategy of its own. Colours of tokens
        tell how much likelier steering made them: log-probability of what the token was drawn from, minus the base's.
        Rewards are measured by the guide that is chosen under “Measured by”, after the answer, for every column alike.
      </p>
      <p>
        Columns that run together share the machine, and a trace of the tokens costs time: for latencies worth comparing
        let them run one after another, without traces.
      </p>
      <dl class="help-keys">
        ${KEYS.map(
          ([key, what]) =>
            html`<dt><kbd>${key}</kbd></dt>
              <dd>${what}</dd>`,
        )}
      </dl>
    <//>
  `;
}
