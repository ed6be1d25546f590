// A field that names a guide; of rewards also an expression over several, as JSON.

import { html } from "../lib/preact.js";
import { Box, described, Frame, useWritten } from "./form_box.js";

const SEVERAL = "\u0000several"; // no guide is named like this

/** @param {any} props those of `Field` */
export function GuideField({ catalogue, field, value, id, onChange }) {
  const current = value ?? field.default ?? null;
  const several = current !== null && typeof current === "object";
  const names = catalogue.candidates(field);
  const unknown = typeof current === "string" && !names.includes(current);
  const error = unknown ? "names a guide that is not on this server or does not fit" : null;
  const choose = (name) => onChange(name === SEVERAL ? { guide: names[0] } : name || undefined);
  return html`
    <${Frame} field=${field} id=${id} error=${error}>
      <select
        id=${id}
        aria-describedby=${described(field, id, error)}
        aria-invalid=${error !== null}
        aria-required=${field.required}
        onChange=${(event) => choose(event.currentTarget.value)}
      >
        ${(!field.required || current === null) && html`<option value="" selected=${current === null}>none</option>`}
        ${unknown && html`<option value=${current} selected>${current}</option>`}
        ${names.map((name) => html`<option value=${name} selected=${name === current}>${name}</option>`)}
        ${field.expression && html`<option value=${SEVERAL} selected=${several}>several, as JSON</option>`}
      </select>
      ${several && html`<${Expression} field=${field} value=${current} id=${`${id}-json`} onChange=${onChange} />`}
    <//>
  `;
}

function Expression({ field, value, id, onChange }) {
  const json = { ...field, kind: "json", description: "", required: true };
  const draft = useWritten(json, value, onChange);
  return html`
    <${Box} field=${json} id=${id} draft=${draft} label=${`${field.label} as JSON`} />
    ${draft.error && html`<p class="form-error" id=${`${id}-error`} role="alert">${field.label} ${draft.error}</p>`}
  `;
}
