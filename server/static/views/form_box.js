// What the widgets of fields are made of: frame, texts, and the box of what is written.

import { html } from "../lib/preact.js";
import { problem } from "../model/validate.js";
import { isTexts, read, written } from "../model/written.js";
import { useDraft } from "./form_draft.js";
import { Coded } from "./form_text.js";

/** Label, widget and the texts below it. */
export function Frame({ field, id, error, children }) {
  return html`
    <div class="form-field">
      <label class="form-label" for=${id}
        >${field.label}${field.required && html` <span class="form-required">required</span>`}</label
      >
      ${children}
      <${Told} field=${field} id=${id} error=${error} />
    </div>
  `;
}

/** What a field does, and what is wrong with its value. */
export function Told({ field, id, error }) {
  return html`
    ${error && html`<p class="form-error" id=${`${id}-error`} role="alert">${field.label} ${error}</p>`}
    ${field.description && html`<p class="form-hint" id=${`${id}-hint`}><${Coded} text=${field.description} /></p>`}
  `;
}

/** The ids of the texts of a field, for aria-describedby. */
export function described(field, id, error) {
  return [error && `${id}-error`, field.description && `${id}-hint`].filter(Boolean).join(" ") || undefined;
}

/** The draft of a field that is written as text: number, text, list or JSON. */
export function useWritten(field, value, onChange) {
  const draft = useDraft(written(field, value === undefined ? field.default : value), (text) => {
    const { value: meant, error } = read(field, text);
    if (error === null) onChange(meant);
    return { error, shown: written(field, meant === undefined ? field.default : meant) };
  });
  const standing = value === undefined || value === null ? null : problem(field.schema, value, field.definitions);
  return { ...draft, error: draft.error ?? standing };
}

/** The box of a written field. */
export function Box({ field, id, draft, label = undefined }) {
  const shared = {
    id,
    value: draft.text,
    onInput: draft.onInput,
    onBlur: draft.onBlur,
    dir: "auto",
    spellcheck: false,
    "aria-label": label,
    "aria-invalid": draft.error !== null,
    "aria-describedby": described(field, id, draft.error),
    "aria-required": field.required,
  };
  const { kind } = field;
  if (kind === "number" || kind === "integer") {
    return html`<input
      type="number"
      step=${kind === "integer" ? 1 : "any"}
      placeholder="none"
      ...${shared}
      dir="ltr"
    />`;
  }
  if (kind === "longtext") return html`<textarea rows="3" placeholder="none" ...${shared}></textarea>`;
  if (kind === "json") return html`<textarea class="form-code" rows="4" placeholder="none" ...${shared}></textarea>`;
  if (kind === "list" && isTexts(field)) {
    return html`<textarea class="form-code" rows="3" placeholder="one on each line" ...${shared}></textarea>`;
  }
  return html`<input type="text" placeholder=${kind === "list" ? "numbers, with commas" : "none"} ...${shared} />`;
}
