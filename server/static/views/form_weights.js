// A map of weights: of guides, or of attributes under names of one's own.

import { html, useRef, useState } from "../lib/preact.js";
import { alternatives } from "../model/schema.js";
import { problem } from "../model/validate.js";
import { Box, described, Told, useWritten } from "./form_box.js";

/** @param {any} props those of `Field` */
export function WeightsField({ catalogue, field, value, id, onChange }) {
  const [draft, setDraft] = useState(/** @type {{rows: [string, number][], of: any, error: string}|null} */ (null));
  const held = draft && draft.of === value ? draft : null;
  const rows = held?.rows ?? Object.entries(value ?? field.default ?? {});
  const names = field.xGuide ? catalogue.candidates(field) : suggestions(catalogue);
  const put = (changed) => {
    const error = wrong(field, changed);
    setDraft(error ? { rows: changed, of: value, error } : null);
    if (!error) onChange(changed.length ? Object.fromEntries(changed) : undefined);
  };
  const adding = useRef(null);
  const remove = (index) => {
    put(rows.filter((_, at) => at !== index));
    adding.current.focus(); // what had the focus is gone
  };
  const free = names.find((name) => !rows.some(([used]) => used === name));
  return html`
    <fieldset class="form-field form-weights" aria-describedby=${described(field, id, held?.error)}>
      <legend class="form-label">
        ${field.label}${field.required && html` <span class="form-required">required</span>`}
      </legend>
      ${rows.map(
        ([name, weight], index) => html`
          <${Row}
            key=${index}
            field=${field}
            id=${`${id}-${index}`}
            name=${name}
            weight=${weight}
            names=${names}
            onChange=${(row) => put(rows.map((each, at) => (at === index ? row : each)))}
            onRemove=${() => remove(index)}
          />
        `,
      )}
      <button
        ref=${adding}
        type="button"
        class="button button-small form-add"
        id=${id}
        onClick=${() => put([...rows, [free ?? "", 1]])}
      >
        Add a weight
      </button>
      <${Told} field=${field} id=${id} error=${held?.error} />
    </fieldset>
  `;
}

function Row({ field, id, name, weight, names, onChange, onRemove }) {
  const number = {
    ...field,
    kind: "number",
    label: "weight",
    schema: field.item,
    default: undefined,
    required: true,
    description: "",
  };
  const draft = useWritten(number, weight, (changed) => onChange([name, changed]));
  const rename = (event) => onChange([event.currentTarget.value, weight]);
  return html`
    <div class="form-weight">
      ${
        field.xGuide
          ? html`
              <select aria-label=${`${field.label}: guide`} onChange=${rename}>
                ${!names.includes(name) && html`<option value=${name} selected>${name}</option>`}
                ${names.map((each) => html`<option value=${each} selected=${each === name}>${each}</option>`)}
              </select>
            `
          : html`
              <input
                type="text"
                list=${`${id}-names`}
                value=${name}
                aria-label=${`${field.label}: name`}
                onChange=${rename}
              />
              <datalist id=${`${id}-names`}>${names.map((each) => html`<option value=${each}></option>`)}</datalist>
            `
      }
      <${Box} field=${number} id=${id} draft=${draft} label=${`weight of ${name}`} />
      <button type="button" class="button button-small" aria-label=${`Remove ${name}`} onClick=${onRemove}>×</button>
    </div>
    ${draft.error && html`<p class="form-error" id=${`${id}-error`} role="alert">weight ${draft.error}</p>`}
  `;
}

function wrong(field, rows) {
  const names = rows.map(([name]) => name);
  if (names.some((name) => name.trim() === "")) return "needs a name for every weight";
  if (new Set(names).size < names.length) return "has a name twice";
  if (rows.length === 0) return field.required ? "must be given" : null;
  return problem({ anyOf: alternatives(field.schema, field.definitions) }, Object.fromEntries(rows), field.definitions);
}

/** Names that other parts of the server know: attributes of adapters, and rewards. */
function suggestions(catalogue) {
  return [...new Set([...catalogue.guides.flatMap((guide) => guide.attributes ?? []), ...catalogue.rewards])];
}
