// The bar at the top: which model answers, what measures the answers, and the way to presets, help, key and theme.

import { html } from "../lib/preact.js";
import { CopyButton } from "./copy.js";
import { ThemeButton } from "./theme.js";

/**
 * @param {{catalogue: any, state: any, act: (action: any) => void, link: () => string, onPresets: () => void,
 *   onHelp: () => void, onKey: () => void}} props
 */
export function Header({ catalogue, state, act, link, onPresets, onHelp, onKey }) {
  const patch = (changes) => act({ type: "patch", changes });
  const judges = catalogue.fitting("scores_answers");
  return html`
    <header class="header">
      <h1 class="header-name">trimtab</h1>
      <${Choice} label="Model" value=${state.model} names=${catalogue.models} onChange=${(model) => patch({ model })} />
      <${Choice}
        label="Measured by"
        value=${state.reward}
        names=${judges}
        none="nothing"
        onChange=${(reward) => patch({ reward })}
      />
      <${Choice} label="Gold" value=${state.gold} names=${judges} none="none" onChange=${(gold) => patch({ gold })} />
      <span class="header-rest">
        <button type="button" class="button" onClick=${onPresets}>Presets</button>
        <${CopyButton} label="Link" what="a link to this page as it is set up" text=${link} />
        <button type="button" class="button" onClick=${onKey}>Key</button>
        <button type="button" class="button" onClick=${onHelp}>Help</button>
        <${ThemeButton} />
      </span>
    </header>
  `;
}

function Choice({ label, value, names, none, onChange }) {
  return html`
    <label class="choice">
      <span>${label}</span>
      <select onChange=${(event) => onChange(event.currentTarget.value || null)}>
        ${none && html`<option value="" selected=${value === null}>${none}</option>`}
        ${names.map((name) => html`<option value=${name} selected=${name === value}>${name}</option>`)}
      </select>
    </label>
  `;
}
