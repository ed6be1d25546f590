// The rule by which a search finds the choices among its answers.

import { html } from "../lib/preact.js";
import { ruleOf } from "../model/decoding.js";
import { fields } from "../model/schema.js";
import { FieldList } from "./form_parameters.js";
import { Coded } from "./form_text.js";

/** @param {{catalogue: any, decoding: any, id: string, onChange: (select: any) => void}} props */
export function SelectRule({ catalogue, decoding, id, onChange }) {
  const select = ruleOf(decoding);
  const rule = select && catalogue.rule(select.rule);
  const { rule: name, ...object } = select ?? {};
  return html`
    <div class="form-field">
      <label class="form-label" for=${id}>Rule</label>
      <select
        id=${id}
        aria-describedby=${`${id}-about`}
        onChange=${(event) => onChange(event.currentTarget.value || undefined)}
      >
        <option value="" selected=${select === null}>as the strategy has it</option>
        ${select && !rule && html`<option value=${name} selected>${name}</option>`}
        ${catalogue.rules.map(
          (each) => html`<option value=${each.name} selected=${each.name === name}>${each.name}</option>`,
        )}
      </select>
      <p class="form-hint" id=${`${id}-about`}>
        ${rule ? html`<${Coded} text=${rule.summary} />` : "Most strategies return the answer with the highest reward."}
      </p>
    </div>
    ${
      rule &&
      html`
        <${FieldList}
          key=${name}
          catalogue=${catalogue}
          fields=${fields(rule.schema)}
          object=${object}
          id=${`${id}-rule`}
          onChange=${(changed) => onChange(Object.keys(changed).length ? { rule: name, ...changed } : name)}
        />
      `
    }
  `;
}
