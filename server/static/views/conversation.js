// The turns so far. A prompt can be edited: what follows it goes, and the columns answer anew.

import { html, useState } from "../lib/preact.js";

/**
 * @param {{turns: {role: string, content: string, label?: string}[], running: boolean,
 *   onEdit: (index: number, content: string) => void, onClear: () => void}} props
 */
export function Conversation({ turns, running, onEdit, onClear }) {
  if (turns.length === 0) return null;
  return html`
    <section class="turns" aria-label="Conversation">
      <ol>
        ${turns.map((turn, index) => html`<${Turn} key=${index} turn=${turn} running=${running} onEdit=${(text) => onEdit(index, text)} />`)}
      </ol>
      <button type="button" class="button" disabled=${running} onClick=${onClear}>New conversation</button>
    </section>
  `;
}

function Turn({ turn, running, onEdit }) {
  const [draft, setDraft] = useState(null);
  const mine = turn.role === "user";
  const save = (event) => {
    event.preventDefault();
    if (!draft.trim()) return;
    setDraft(null);
    onEdit(draft);
  };
  return html`
    <li class=${mine ? "turn turn-user" : "turn"}>
      <p class="turn-head">
        <strong>${mine ? "You" : "Answer"}</strong>
        ${turn.label && html`<span class="muted">${turn.label}</span>`}
        ${
          mine &&
          draft === null &&
          html`<button
            type="button"
            class="button button-small"
            disabled=${running}
            onClick=${() => setDraft(turn.content)}
          >
            Edit
          </button>`
        }
      </p>
      ${
        draft === null
          ? html`<p class="turn-text" dir="auto">${turn.content}</p>`
          : html`
              <form class="stack" onSubmit=${save}>
                <label class="labelled">
                  <span class="hidden">Edit the prompt</span>
                  <textarea
                    rows="3"
                    dir="auto"
                    value=${draft}
                    onInput=${(event) => setDraft(event.currentTarget.value)}
                  ></textarea>
                </label>
                <div class="row">
                  <button type="submit" class="button button-main" disabled=${running || !draft.trim()}>
                    Ask this instead
                  </button>
                  <button type="button" class="button" onClick=${() => setDraft(null)}>Leave it</button>
                </div>
              </form>
            `
      }
    </li>
  `;
}
