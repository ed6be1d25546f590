// Comparisons worth seeing, for what this server has.

import { html, useMemo } from "../lib/preact.js";
import { label } from "../model/label.js";
import { presets } from "../model/presets.js";

/**
 * @param {{catalogue: import("../model/catalogue.js").Catalogue,
 *   onPick: (preset: import("../model/presets.js").Preset) => void}} props
 */
export function Gallery({ catalogue, onPick }) {
  const all = useMemo(() => presets(catalogue), [catalogue]);
  const own = catalogue.models.filter((model) => model.includes(":"));
  return html`
    <p class="muted">
      Each asks one prompt under several strategies with the same
      seed.${own.length > 0 && ` The server has presets of its own, too, as models to choose above: ${own.join(", ")}.`}
    </p>
    <ul class="gallery">
      ${all.map((preset) => html`<${Card} key=${preset.title} preset=${preset} onPick=${onPick} />`)}
    </ul>
  `;
}

function Card({ preset, onPick }) {
  const { title, summary, prompt, settings } = preset;
  return html`
    <li class="gallery-card">
      <h3 class="gallery-title">${title}</h3>
      <p>${summary}</p>
      <p class="gallery-prompt" dir="auto">${prompt}</p>
      <ul class="gallery-settings" aria-label="Columns">
        ${settings.map(
          (decoding, index) => html`<li><span aria-hidden="true">${index + 1}</span> ${label(decoding)}</li>`,
        )}
      </ul>
      <button
        type="button"
        class="button button-main gallery-try"
        aria-label=${`Try: ${title}`}
        onClick=${() => onPick(preset)}
      >
        Try it
      </button>
    </li>
  `;
}
