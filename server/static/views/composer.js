// Where the prompt is written, with what holds for all columns: system message, sampling, traces.

import { html, useEffect, useRef, useState } from "../lib/preact.js";

const SAMPLING = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.1, hint: "empty: the strategy's own" },
  { name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.05, hint: "empty: 1" },
  { name: "max_tokens", label: "Max tokens", min: 1, max: 100000, step: 1, hint: "empty: as the context has room" },
  { name: "seed", label: "Seed", min: 0, max: 2 ** 31, step: 1, hint: "empty: drawn anew" },
];

/**
 * @param {{state: any, act: (action: any) => void, running: boolean, answered: boolean, onAsk: (text: string) => void,
 *   onStop: () => void, onAgain: () => void}} props `onAgain`: the same once more, with the next seed
 */
export function Composer({ state, act, running, answered, onAsk, onStop, onAgain }) {
  const [text, setText] = useState(state.draft);
  const box = useRef(null);
  useEffect(() => setText(state.draft), [state.draft]);
  useEffect(() => {
    const focus = (event) => {
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || isWriting(event.target)) return;
      event.preventDefault();
      box.current.focus();
    };
    document.addEventListener("keydown", focus);
    return () => document.removeEventListener("keydown", focus);
  }, []);
  const send = (event) => {
    event.preventDefault();
    if (!text.trim() || running) return;
    onAsk(text);
    setText("");
  };
  const onKey = (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    box.current.form.requestSubmit(); // unless a field of the form is wrong
  };
  return html`
    <form class="composer" aria-label="Prompt" onSubmit=${send}>
      <label class="labelled">
        <span class="hidden">Prompt for all columns</span>
        <textarea
          ref=${box}
          class="composer-text"
          rows="2"
          dir="auto"
          placeholder="Ask all columns the same …"
          value=${text}
          onInput=${(event) => setText(event.currentTarget.value)}
          onKeyDown=${onKey}
          onBlur=${() => text !== state.draft && act({ type: "patch", changes: { draft: text } })}
        ></textarea>
      </label>
      <div class="row">
        ${
          running
            ? html`<button type="button" class="button button-main" onClick=${onStop}>Stop</button>`
            : html`<button type="submit" class="button button-main" disabled=${!text.trim()}>Send</button>`
        }
        <button type="button" class="button" disabled=${running || !answered} onClick=${onAgain}>
          Again with the next seed
        </button>
        <label class="check">
          <input
            type="checkbox"
            checked=${state.trace}
            onChange=${(event) => act({ type: "patch", changes: { trace: event.currentTarget.checked } })}
          />
          Trace tokens and searches
        </label>
        <label class="check">
          <input
            type="checkbox"
            checked=${state.oneByOne}
            onChange=${(event) => act({ type: "patch", changes: { oneByOne: event.currentTarget.checked } })}
          />
          One after another
        </label>
      </div>
      <details class="composer-more" onInvalidCapture=${(event) => (event.currentTarget.open = true)}>
        <summary>System message and sampling</summary>
        <label class="labelled">
          <span>System message</span>
          <textarea
            rows="2"
            dir="auto"
            value=${state.system}
            onChange=${(event) => act({ type: "patch", changes: { system: event.currentTarget.value } })}
          ></textarea>
        </label>
        <div class="composer-sampling">
          ${SAMPLING.map((field) => html`<${SamplingField} field=${field} state=${state} act=${act} />`)}
        </div>
      </details>
    </form>
  `;
}

function SamplingField({ field, state, act }) {
  const id = `sampling-${field.name}`;
  const change = (event) => {
    const box = event.currentTarget;
    if (!box.validity.valid) return box.reportValidity();
    const value = box.value === "" ? null : Number(box.value);
    return act({ type: "patch", changes: { sampling: { ...state.sampling, [field.name]: value } } });
  };
  return html`
    <div class="labelled">
      <label for=${id}>${field.label}</label>
      <input
        id=${id}
        type="number"
        min=${field.min}
        max=${field.max}
        step=${field.step === 1 ? 1 : "any"}
        value=${state.sampling[field.name] ?? ""}
        aria-describedby=${`${id}-hint`}
        onChange=${change}
      />
      <small id=${`${id}-hint`} class="muted">${field.hint}</small>
    </div>
  `;
}

function isWriting(target) {
  return target.matches("input, textarea, select, [contenteditable]") || target.closest("dialog") !== null;
}
