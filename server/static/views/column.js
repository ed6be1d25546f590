// One column: a setting, its answer, and what the answer cost.

import { html, useErrorBoundary, useRef, useState } from "../lib/preact.js";
import { label } from "../model/label.js";
import { curl, python } from "../share/snippets.js";
import { CopyButton } from "./copy.js";
import { Measures } from "./measures.js";
import { memo } from "./memo.js";
import { Problem } from "./problem.js";
import { isRunning, useRun } from "./runs.js";
import { SearchView } from "./search.js";
import { StrategyForm } from "./strategy_form.js";
import { TokenText } from "./tokens.js";

const TRIES = 3; // times that a busy server is asked again without being told to

/** Drawn again when its own props change, not with every key in the prompt. */
export const Column = memo(Guarded);

/** The column, or the way out where something in it cannot be drawn: the others stand. */
function Guarded(props) {
  const [error, reset] = useErrorBoundary();
  if (!error) return html`<${ColumnView} ...${props} />`;
  const onAnew = () => {
    props.onChange(props.setting.id, { strategy: "sample" });
    reset();
  };
  return html`
    <section class="column" aria-label=${`Column ${props.number}`}>
      <p role="alert">This column cannot be shown: ${error.message}</p>
      <button type="button" class="button" onClick=${onAnew}>Begin it anew</button>
    </section>
  `;
}

/**
 * @param {{number: number, setting: {id: string, decoding: any}, run: import("../net/run.js").Run | null, catalogue: any,
 *   alone: boolean, adopted: boolean, asked: boolean, onChange: (id: string, decoding: any) => void,
 *   onAdopt: (id: string) => void, onRemove: (id: string) => void, onRun: (id: string) => void,
 *   onBranch: (run: any, index: number) => void, onKey: () => void}} props `adopted`: the next prompt goes on from here;
 *   `asked`: there is a prompt to answer
 */
function ColumnView({ number, setting, run, catalogue, asked, onChange, onRemove, ...others }) {
  const { id, decoding } = setting;
  const colour = `var(--column-${number})`;
  const tries = useRef(0);
  const { alone, onRun } = others;
  return html`
    <section class="column" style=${{ "--column": colour }} aria-label=${`Column ${number}: ${label(decoding)}`}>
      <header class="column-head">
        <h2 class="column-title"><span class="column-number">${number}</span> ${label(decoding)}</h2>
        ${
          !alone &&
          html`
            <button
              type="button"
              class="button button-small"
              aria-label=${`Remove column ${number}`}
              onClick=${() => onRemove(id)}
            >
              Remove
            </button>
          `
        }
      </header>
      <${Settings}
        id=${id}
        decoding=${decoding}
        catalogue=${catalogue}
        onChange=${(changed) => onChange(id, changed)}
      />
      ${
        run
          ? html`
              ${run.label !== label(decoding) && html`<p class="muted">This is the answer of ${run.label}.</p>`}
              <${Answer} key=${run.id} ...${{ number, run, colour, tries, ...others }} />
            `
          : html`
              <p class="column-empty muted">
                ${asked ? "Not run on this conversation yet." : "Ask something above, or take a preset."}
              </p>
              ${asked && html`<button type="button" class="button" onClick=${() => onRun(id)}>Run this column</button>`}
            `
      }
    </section>
  `;
}

/** The form, which is made when it is first opened. */
function Settings({ id, decoding, catalogue, onChange }) {
  const [open, setOpen] = useState(false);
  return html`
    <details class="column-settings" onToggle=${(event) => setOpen(event.currentTarget.open)}>
      <summary>Strategy and parameters</summary>
      ${open && html`<${StrategyForm} catalogue=${catalogue} decoding=${decoding} onChange=${onChange} idPrefix=${id} />`}
    </details>
  `;
}

function Answer({ number, run, colour, tries, alone, adopted, onAdopt, onRun, onBranch, onKey }) {
  useRun(run);
  const running = isRunning(run);
  const { id } = run.setting;
  const onRetry = () => {
    tries.current = 0;
    onRun(id);
  };
  const onAgain = () => {
    tries.current += 1;
    onRun(id);
  };
  return html`
    <div class="column-answer" aria-busy=${running}>
      <${TokenText} run=${run} onBranch=${onBranch} colour=${colour} />
      ${running && html`<p class="column-progress muted">${progress(run)}</p>`}
      ${run.phase === "stopped" && html`<p class="muted">Stopped.</p>`}
      ${
        run.phase === "failed" &&
        html`<${Problem}
          error=${run.error}
          onRetry=${onRetry}
          onKey=${onKey}
          onAgain=${tries.current < TRIES ? onAgain : null}
        />`
      }
    </div>
    <${Measures} run=${run} />
    <div class="row column-ways">
      ${
        running
          ? html`<button type="button" class="button" aria-label=${`Stop column ${number}`} onClick=${() => run.stop()}>
              Stop
            </button>`
          : html`<button type="button" class="button" aria-label=${`Run column ${number} again`} onClick=${onRetry}>
              Run again
            </button>`
      }
      <${CopyButton}
        label="curl"
        what=${`column ${number} as curl`}
        text=${() => curl(run.request, location.origin, hasKey(run))}
      />
      <${CopyButton}
        label="Python"
        what=${`column ${number} as Python`}
        text=${() => python(run.request, location.origin, hasKey(run))}
      />
      ${
        !alone &&
        run.phase === "done" &&
        html`
          <label class="check">
            <input type="radio" name="adopted" checked=${adopted} onChange=${() => onAdopt(id)} />
            The next prompt goes on from here
          </label>
        `
      }
    </div>
    ${run.decoding && html`<${SearchView} run=${run} />`}
  `;
}

function hasKey(run) {
  return run.api.key !== null;
}

function progress(run) {
  if (run.phase === "judging") return "Measuring the answer …";
  const { progress: told } = run;
  if (told === null) return run.phase === "waiting" ? "Waiting …" : "Writing …";
  const best = told.best_reward === null ? "" : `, best reward ${told.best_reward.toFixed(2)}`;
  return `${told.finished} of ${told.candidates} candidates finished${best}`;
}
