// Asks for the API key, once; it stays in the memory of this page alone.

import { html, useState } from "../lib/preact.js";
import { Dialog } from "./dialog.js";

/**
 * @param {{refused: boolean, known: boolean, onKey: (key: string | null) => void, onClose: () => void}} props
 *   `refused`: a key was sent and is nobody's; `known`: there is one that can be forgotten
 */
export function KeyDialog({ refused, known, onKey, onClose }) {
  const [key, setKey] = useState("");
  const submit = (event) => {
    event.preventDefault();
    if (key.trim()) onKey(key.trim());
  };
  return html`
    <${Dialog} title="API key" onClose=${onClose}>
      <form class="stack" onSubmit=${submit}>
        <p>
          ${refused ? "The server knows no such key. " : "A key is needed where the server has any. "} It is kept in the
          memory of this page until you close or reload it, and sent to this server alone.
        </p>
        <label class="labelled">
          <span>Key</span>
          <input
            type="password"
            autocomplete="off"
            value=${key}
            aria-invalid=${refused}
            onInput=${(event) => setKey(event.currentTarget.value)}
          />
        </label>
        <div class="row">
          <button type="submit" class="button button-main" disabled=${!key.trim()}>Use this key</button>
          ${known && html`<button type="button" class="button" onClick=${() => onKey(null)}>Forget the key</button>`}
        </div>
      </form>
    <//>
  `;
}
