// The parts of a request beside its strategy: those that steer the next token, or those that change the prompt.

import { html, useRef, useState } from "../lib/preact.js";
import { label } from "../model/label.js";
import { StrategyOptions } from "./form_choice.js";
import { Parameters } from "./form_parameters.js";

const MOST = 8;

/**
 * @param {{catalogue: any, kind: "steer"|"prompt", parts: any[], id: string, onChange: (parts: any[]) => void}} props
 */
export function Parts({ catalogue, kind, parts, id, onChange }) {
  const [open, setOpen] = useState(parts.length === 1 ? 0 : null);
  const [method, setMethod] = useState(() => firstUsable(catalogue, kind));
  const adding = useRef(null);
  const add = () => {
    const { strategy, ...parameters } = catalogue.start(method);
    onChange([...parts, { method: strategy, ...parameters }]);
    setOpen(parts.length);
  };
  const remove = (index) => {
    onChange(parts.filter((_, at) => at !== index));
    setOpen(null);
    adding.current.focus(); // what had the focus is gone
  };
  return html`
    <ol class="form-parts">
      ${parts.map(
        (part, index) => html`
          <${Part}
            key=${`${index}-${part.method}`}
            catalogue=${catalogue}
            part=${part}
            id=${`${id}-${index}`}
            open=${open === index}
            onOpen=${() => setOpen(open === index ? null : index)}
            onRemove=${() => remove(index)}
            onChange=${(changed) => onChange(parts.map((each, at) => (at === index ? changed : each)))}
          />
        `,
      )}
    </ol>
    <div class="form-adding">
      <label class="form-label" for=${`${id}-method`}>${parts.length ? "Another part" : "A part"}</label>
      <select ref=${adding} id=${`${id}-method`} onChange=${(event) => setMethod(event.currentTarget.value)}>
        <${StrategyOptions} catalogue=${catalogue} kind=${kind} chosen=${method} />
      </select>
      <button type="button" class="button button-small" disabled=${!method || parts.length >= MOST} onClick=${add}>
        Add
      </button>
    </div>
  `;
}

function Part({ catalogue, part, id, open, onOpen, onRemove, onChange }) {
  const { method, ...object } = part;
  const strategy = catalogue.strategy(method);
  const name = label({ strategy: method, ...object });
  return html`
    <li class="form-part">
      <div class="form-part-head">
        <span>${name}</span>
        <button
          type="button"
          class="button button-small"
          aria-expanded=${open}
          aria-label=${`Edit ${name}`}
          onClick=${onOpen}
        >
          Edit
        </button>
        <button type="button" class="button button-small" aria-label=${`Remove ${name}`} onClick=${onRemove}>×</button>
      </div>
      ${
        open &&
        html`
          <div class="form-inside">
            ${strategy && html`<p class="form-hint">${strategy.summary.replaceAll("`", "")}</p>`}
            <${Parameters}
              catalogue=${catalogue}
              name=${method}
              object=${object}
              id=${id}
              onChange=${(changed) => onChange({ method, ...changed })}
            />
          </div>
        `
      }
    </li>
  `;
}

function firstUsable(catalogue, kind) {
  return catalogue.strategies.find((each) => each.kind === kind && catalogue.missing(each.name) === null)?.name;
}
