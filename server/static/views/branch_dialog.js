// Continue an answer from one of its tokens, in a column that is there or in a new one.

import { html, useState } from "../lib/preact.js";
import { label } from "../model/label.js";
import { Dialog } from "./dialog.js";

const SHOWN = 200; // characters of the beginning

/**
 * @param {{prefix: string, settings: {id: string, decoding: any}[], catalogue: any, room: boolean,
 *   onBranch: (target: string | object) => void, onClose: () => void}} props `prefix`: the answer up to that token;
 *   `room`: another column may be added; `onBranch` gets a column's id or the decoding of a new one
 */
export function BranchDialog({ prefix, settings, catalogue, room, onBranch, onClose }) {
  const usable = catalogue.strategies.filter((each) => catalogue.missing(each.name) === null);
  const [name, setName] = useState(usable[0].name);
  return html`
    <${Dialog} title="Continue from here" onClose=${onClose}>
      <p>The answer stands as far as this token, and is written anew from there:</p>
      <blockquote class="branch-prefix" dir="auto">
        ${prefix.length > SHOWN ? "…" : ""}${prefix.slice(-SHOWN)}
      </blockquote>
      <ul class="branch-ways">
        ${settings.map(
          (setting, index) => html`
            <li>
              <button type="button" class="button" onClick=${() => onBranch(setting.id)}>
                In column ${index + 1}: ${label(setting.decoding)}
              </button>
            </li>
          `,
        )}
      </ul>
      ${
        room &&
        html`
          <div class="row">
            <label class="choice">
              <span>In a new column with</span>
              <select value=${name} onChange=${(event) => setName(event.currentTarget.value)}>
                ${usable.map((each) => html`<option value=${each.name} selected=${each.name === name}>${each.name}</option>`)}
              </select>
            </label>
            <button type="button" class="button button-main" onClick=${() => onBranch(catalogue.start(name))}>
              Continue
            </button>
          </div>
        `
      }
    <//>
  `;
}
