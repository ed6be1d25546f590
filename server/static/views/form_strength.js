// A number as a slider over what is sensible, and a box for all that is allowed.

import { html, useRef } from "../lib/preact.js";
import { nearest, range } from "../model/strength.js";
import { Box, Told, useWritten } from "./form_box.js";

/** @param {any} props those of `Field` */
export function StrengthField({ field, value, id, onChange }) {
  const draft = useWritten(field, value, onChange);
  const current = Number(value ?? field.default ?? 0);
  const stops = useStops(field, current);
  const slide = (event) => onChange(stops[Number(event.currentTarget.value)]);
  return html`
    <fieldset class="form-field form-strength">
      <legend class="form-label">Strength: ${field.label}</legend>
      <div class="form-slide">
        <input
          type="range"
          min="0"
          max=${stops.length - 1}
          step="1"
          value=${nearest(stops, current)}
          aria-label=${`${field.label}, slider`}
          aria-valuetext=${String(current)}
          onInput=${slide}
        />
        <${Box} field=${field} id=${id} draft=${draft} label=${field.label} />
      </div>
      <p class="form-ends" aria-hidden="true"><span>${stops[0]}</span><span>${stops.at(-1)}</span></p>
      <${Told} field=${field} id=${id} error=${draft.error} />
    </fieldset>
  `;
}

/** The slider's stops; a value beyond them widens them for good, so that they do not move while somebody slides. */
function useStops(field, current) {
  const reach = useRef(0);
  const stops = range(field, reach.current);
  if (current >= stops[0] && current <= stops.at(-1)) return stops;
  reach.current = current;
  return range(field, current);
}
