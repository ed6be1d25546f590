// The parameters of one object: what moves it most first, then what must be given, then the rest behind a summary.

import { html, useMemo, useState } from "../lib/preact.js";
import { withValue } from "../model/decoding.js";
import { strength } from "../model/strength.js";
import { Field } from "./fields.js";
import { StrengthField } from "./form_strength.js";

/**
 * @param {{catalogue: any, name: string, object: Record<string, any>, id: string,
 *   onChange: (object: Record<string, any>) => void}} props `name`: of the strategy; `object` may hold other keys, too
 */
export function Parameters({ catalogue, name, object, id, onChange }) {
  const { first, main, more } = useMemo(() => ordered(catalogue, name), [catalogue, name]);
  const shared = { catalogue, object, id, onChange };
  const rest = () => html`<${FieldList} fields=${more} ...${shared} />`;
  return html`
    ${first && html`<${FieldList} fields=${[first]} widget=${StrengthField} ...${shared} />`}
    <${FieldList} fields=${main} ...${shared} />
    ${more.length > 0 && html`<${Folded} title=${title(more, object)} content=${rest} />`}
  `;
}

/** What moves the strategy most; what it begins with; the rest. */
function ordered(catalogue, name) {
  const fields = catalogue.fields(name);
  const first = strength(fields);
  const rest = fields.filter((field) => field !== first);
  const begun = catalogue.strategy(name) ? catalogue.start(name) : {};
  const main = rest.filter((field) => field.required || field.name in begun);
  return { first, main, more: rest.filter((field) => !main.includes(field)) };
}

/** Fields of an object, one below the other. */
export function FieldList({ catalogue, fields, object, id, onChange, widget = Field }) {
  return fields.map(
    (field) => html`
      <${widget}
        key=${field.name}
        catalogue=${catalogue}
        field=${field}
        value=${object[field.name]}
        id=${`${id}-${field.name}`}
        onChange=${(value) => onChange(withValue(object, field, value))}
      />
    `,
  );
}

function title(fields, object) {
  const changed = fields.filter((field) => object[field.name] !== undefined).map((field) => field.label);
  const count = `${fields.length} more ${fields.length === 1 ? "parameter" : "parameters"}`;
  return changed.length ? `${count}; set: ${changed.join(", ")}` : count;
}

/** A summary with something behind it, `content`, that is made when it is opened. */
export function Folded({ title, content, begun = false }) {
  const [open, setOpen] = useState(begun);
  return html`
    <details class="form-folded" open=${begun} onToggle=${(event) => setOpen(event.currentTarget.open)}>
      <summary>${title}</summary>
      ${open && html`<div class="form-inside">${content()}</div>`}
    </details>
  `;
}
