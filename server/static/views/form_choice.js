// Which strategy it is, and what is to be known of it.

import { html } from "../lib/preact.js";
import { Coded } from "./form_text.js";

const KINDS = [
  ["search", "Search: several answers, one is chosen"],
  ["steer", "Steer: shape the next token"],
  ["prompt", "Prompt: change what is read"],
  ["auto", "Auto: the server chooses"],
];

/** @param {{catalogue: any, name: string, id: string, onChoose: (name: string) => void}} props */
export function StrategyChoice({ catalogue, name, id, onChoose }) {
  const strategy = catalogue.strategy(name);
  return html`
    <div class="form-field">
      <label class="form-label" for=${id}>Strategy</label>
      <select
        id=${id}
        aria-describedby=${`${id}-about`}
        aria-invalid=${!strategy}
        onChange=${(event) => onChoose(event.currentTarget.value)}
      >
        ${!strategy && html`<option value=${name} selected>${name}</option>`}
        ${KINDS.map(
          ([kind, title]) => html`
            <optgroup label=${title}>
              <${StrategyOptions} catalogue=${catalogue} kind=${kind} chosen=${name} />
            </optgroup>
          `,
        )}
      </select>
      <div class="form-about" id=${`${id}-about`}>
        ${
          strategy
            ? html`<${About} strategy=${strategy} missing=${catalogue.missing(name)} />`
            : "This server has no such strategy."
        }
      </div>
    </div>
  `;
}

/** The strategies of a kind; those that need what the server has not are shown with the reason. */
export function StrategyOptions({ catalogue, kind, chosen }) {
  return catalogue.strategies
    .filter((each) => each.kind === kind)
    .map(({ name }) => {
      const missing = catalogue.missing(name);
      return html`
        <option value=${name} selected=${name === chosen} disabled=${missing !== null}>
          ${missing ? `${name}: ${missing}` : name}
        </option>
      `;
    });
}

function About({ strategy, missing }) {
  return html`
    <p><${Coded} text=${strategy.summary} /></p>
    <p class="form-hint">Cost: <${Coded} text=${strategy.cost} />.${strategy.paper && ` ${strategy.paper}.`}</p>
    ${missing && html`<p class="form-error">It ${missing}.</p>`}
  `;
}
