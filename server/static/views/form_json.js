// The whole decoding object as JSON. What is not valid is not taken over; the last valid one stays.

import { html } from "../lib/preact.js";
import { wrong } from "../model/decoding.js";
import { parsed } from "../model/written.js";
import { useDraft } from "./form_draft.js";

/** @param {{catalogue: any, decoding: any, id: string, onChange: (decoding: any) => void}} props */
export function AsJson({ catalogue, decoding, id, onChange }) {
  const shown = JSON.stringify(decoding, null, 2);
  const draft = useDraft(shown, (text) => {
    const meant = parsed(text);
    const error = meant === undefined ? "This is no valid JSON" : wrong(catalogue, meant);
    if (error === null) onChange(meant);
    return { error, shown: JSON.stringify(meant, null, 2) };
  });
  return html`
    <label class="form-label" for=${id}>The request's decoding object</label>
    <textarea
      class="form-code"
      id=${id}
      rows=${Math.min(14, shown.split("\n").length + 1)}
      spellcheck=${false}
      value=${draft.text}
      aria-invalid=${draft.error !== null}
      aria-describedby=${draft.error ? `${id}-error` : undefined}
      onInput=${draft.onInput}
      onBlur=${draft.onBlur}
    ></textarea>
    ${
      draft.error &&
      html`<p class="form-error" id=${`${id}-error`} role="alert">${draft.error}. The last valid one counts.</p>`
    }
  `;
}
