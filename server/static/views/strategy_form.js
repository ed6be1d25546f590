// The form of one setting: strategy, parameters, and the parts and limits that go with any strategy.

import { html } from "../lib/preact.js";
import { selects, withKey, withStrategy } from "../model/decoding.js";
import { fields } from "../model/schema.js";
import { StrategyChoice } from "./form_choice.js";
import { AsJson } from "./form_json.js";
import { FieldList, Folded, Parameters } from "./form_parameters.js";
import { Parts } from "./form_parts.js";
import { SelectRule } from "./form_select.js";

/**
 * @param {{catalogue: import("../model/catalogue.js").Catalogue, decoding: Record<string, any>,
 *   onChange: (decoding: Record<string, any>) => void, idPrefix: string}} props `onChange` gets valid objects only
 */
export function StrategyForm({ catalogue, decoding, onChange, idPrefix }) {
  const id = `${idPrefix}-form`;
  const name = decoding.strategy ?? "sample";
  const strategy = catalogue.strategy(name);
  const place = (key) => ({
    catalogue,
    id: `${id}-${key}`,
    onChange: (value) => onChange(withKey(decoding, key, value)),
  });
  const limits = fields(catalogue.budget);
  const { steer = [], prompt = [], budget = {} } = decoding;
  return html`
    <div class="form">
      <${StrategyChoice}
        catalogue=${catalogue}
        name=${name}
        id=${`${id}-strategy`}
        onChoose=${(chosen) => onChange(withStrategy(catalogue, decoding, chosen))}
      />
      <${Parameters} key=${name} catalogue=${catalogue} name=${name} object=${decoding} id=${id} onChange=${onChange} />
      ${
        strategy?.kind !== "auto" &&
        html`
          <${Folded}
            title=${`Steering beside it (${steer.length})`}
            content=${() => html`<${Parts} ...${place("steer")} kind="steer" parts=${steer} />`}
          />
          <${Folded}
            title=${`Changes to the prompt (${prompt.length})`}
            content=${() => html`<${Parts} ...${place("prompt")} kind="prompt" parts=${prompt} />`}
          />
        `
      }
      ${
        selects(strategy) &&
        html`
          <${Folded}
            title=${`Selection${decoding.select ? `: ${decoding.select.rule ?? decoding.select}` : ""}`}
            content=${() => html`<${SelectRule} ...${place("select")} decoding=${decoding} />`}
          />
        `
      }
      <${Folded}
        key=${`budget-${strategy?.kind}`}
        title=${`Budget (${Object.keys(budget).length})`}
        begun=${strategy?.kind === "auto"}
        content=${() => html`<${FieldList} ...${place("budget")} fields=${limits} object=${budget} />`}
      />
      <${Folded}
        title="As JSON"
        content=${() => html`<${AsJson} ...${place("json")} decoding=${decoding} onChange=${onChange} />`}
      />
    </div>
  `;
}
