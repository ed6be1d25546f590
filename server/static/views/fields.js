// One field of a form: its label, the widget for its kind, what it does, and what is wrong with it.

import { html } from "../lib/preact.js";
import { problem } from "../model/validate.js";
import { Box, described, Frame, Told, useWritten } from "./form_box.js";
import { GuideField } from "./form_guide.js";
import { WeightsField } from "./form_weights.js";

const WIDGETS = { boolean: Check, choice: Choice, guide: GuideField, guides: WeightsField };

/**
 * @param {{catalogue: import("../model/catalogue.js").Catalogue, field: import("../model/schema.js").Field, value: any,
 *   id: string, onChange: (value: any) => void}} props `value`: undefined where the default holds; `onChange` gets
 *   undefined for the default, and nothing that is not valid
 */
export function Field(props) {
  const Widget = WIDGETS[props.field.kind] ?? Written;
  return html`<${Widget} ...${props} />`;
}

function Written({ field, value, id, onChange }) {
  const draft = useWritten(field, value, onChange);
  return html`
    <${Frame} field=${field} id=${id} error=${draft.error}>
      <${Box} field=${field} id=${id} draft=${draft} />
    <//>
  `;
}

function Check({ field, value, id, onChange }) {
  return html`
    <div class="form-field">
      <label class="form-check" for=${id}>
        <input
          type="checkbox"
          id=${id}
          checked=${value ?? field.default}
          aria-describedby=${described(field, id, null)}
          onChange=${(event) => onChange(event.currentTarget.checked)}
        />
        ${field.label}
      </label>
      <${Told} field=${field} id=${id} error=${null} />
    </div>
  `;
}

function Choice({ field, value, id, onChange }) {
  const current = value ?? field.default ?? "";
  const error = value === undefined || value === null ? null : problem(field.schema, value, field.definitions);
  return html`
    <${Frame} field=${field} id=${id} error=${error}>
      <select
        id=${id}
        aria-describedby=${described(field, id, error)}
        aria-invalid=${error !== null}
        onChange=${(event) => onChange(event.currentTarget.value || undefined)}
      >
        ${field.nullable && html`<option value="" selected=${current === ""}>none</option>`}
        ${field.choices.map((name) => html`<option value=${name} selected=${name === current}>${name}</option>`)}
      </select>
    <//>
  `;
}
