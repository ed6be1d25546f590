// The conversation, a column for each setting, and what all answers together show.

import { html, useCallback, useEffect, useRef, useState } from "../lib/preact.js";
import { beginnings } from "../model/align.js";
import { wrong } from "../model/decoding.js";
import { MOST_SETTINGS, initial, messages, reduce, restored, shared } from "../model/session.js";
import { rewardSoFar } from "../net/prefixes.js";
import { decode, encode } from "../share/link.js";
import { BranchDialog } from "./branch_dialog.js";
import { Charts } from "./charts.js";
import { Column } from "./column.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { Dialog } from "./dialog.js";
import { Gallery } from "./gallery.js";
import { Header } from "./header.js";
import { Help } from "./help.js";
import { isRunning, useRuns } from "./runs.js";
import { TokenLegend } from "./tokens.js";

const OPENING = ["sample", "best_of_n", "genarm"];

/**
 * @param {{api: import("../net/api.js").Api, catalogue: import("../model/catalogue.js").Catalogue,
 *   onKey: (refused: boolean) => void, onGone: () => void}} props `onKey`: a key is wanted, since one was refused or not;
 *   `onGone`: the server is away
 */
export function Workbench({ api, catalogue, onKey, onGone }) {
  const [state, setState] = useState(() => opening(catalogue));
  const latest = useRef(state);
  const put = (next) => setState((latest.current = next));
  const act = useCallback((action) => put(reduce(latest.current, action)), []);
  const [dialog, setDialog] = useState(/** @type {null | "presets" | "help"} */ (null));
  const [branching, setBranching] = useState(/** @type {null | {run: any, index: number}} */ (null));
  const [told, setTold] = useState("");
  const adding = useRef(null);
  const onEnd = (run) => {
    setTold(spoken(run));
    if (run.error?.kind === "gone" || run.error?.kind === "cut") onGone();
    if (run.error?.status === 401) onKey(api.key !== null);
  };
  const { runs, newest, points, start, stop, remove, clear } = useRuns(api, catalogue, onEnd);
  useStopKey(stop);
  useEffect(() => act({ type: "patch", changes: served(latest.current, catalogue) }), [catalogue]);
  useLink((linked) => {
    clear();
    put(linked);
  }, catalogue);

  const running = Object.values(runs).some(isRunning);
  const done = state.settings.map(({ id }) => runs[id]).filter((run) => run?.phase === "done");
  const adopted = done.find((run) => run.setting.id === state.adopted) ?? done[0] ?? null;
  const go = (next) => {
    put(next);
    start(next, next.settings);
  };
  const ask = (text) => {
    const { turns } = latest.current;
    const answer = adopted && { content: adopted.prefix + adopted.text, label: adopted.label };
    const instead = answer === null && turns.at(-1)?.role === "user"; // of a prompt that nobody has answered
    const action = instead ? { type: "edit-turn", index: turns.length - 1 } : { type: "ask", answer };
    go(reduce(latest.current, { ...action, content: text }));
  };
  const edit = (index, content) => {
    clear();
    go(reduce(latest.current, { type: "edit-turn", index, content }));
  };
  const again = () => {
    const { sampling } = latest.current;
    const seed = (sampling.seed ?? 0) + 1;
    go(reduce(latest.current, { type: "patch", changes: { sampling: { ...sampling, seed } } }));
  };
  const onPick = (preset) => {
    clear();
    setDialog(null);
    const set = reduce(reduce(latest.current, { type: "clear" }), { type: "preset", preset });
    go(reduce(set, { type: "ask", content: preset.prompt, answer: null }));
  };
  const runOne = useCallback(
    (id) => {
      const now = latest.current;
      const setting = now.settings.find((each) => each.id === id);
      if (messages(now).length) start(now, [setting], newest.current[id]?.prefix);
    },
    [catalogue],
  );
  const onChange = useCallback((id, decoding) => act({ type: "change-setting", id, decoding }), []);
  const onAdopt = useCallback((id) => act({ type: "adopt", id }), []);
  const openKey = useCallback(() => onKey(false), []);
  const onRemove = useCallback((id) => {
    remove(id);
    act({ type: "remove-setting", id });
    adding.current.focus(); // the button that was pressed is gone
  }, []);
  const onBranch = useCallback((run, index) => setBranching({ run, index }), []);
  const judge = useCallback((run) => rewardSoFar(api, latest.current.reward, run.asked, beginnings(run)), [api]);
  const branch = (target) => {
    const prefix = beginnings(branching.run)[branching.index];
    setBranching(null);
    const isNew = typeof target !== "string";
    const next = isNew ? reduce(latest.current, { type: "add-setting", decoding: target }) : latest.current;
    put(next);
    const setting = isNew ? next.settings.at(-1) : next.settings.find(({ id }) => id === target);
    start(next, [setting], prefix);
  };

  return html`
    <${Header}
      catalogue=${catalogue}
      state=${state}
      act=${act}
      link=${() => `${location.origin}${location.pathname}#${encode(shared(latest.current))}`}
      onPresets=${() => setDialog("presets")}
      onHelp=${() => setDialog("help")}
      onKey=${openKey}
    />
    <main class="workbench">
      <${Conversation}
        turns=${state.turns}
        running=${running}
        onEdit=${edit}
        onClear=${() => {
          clear();
          act({ type: "clear" });
        }}
      />
      <${Composer}
        state=${state}
        act=${act}
        running=${running}
        answered=${state.turns.length > 0}
        onAsk=${ask}
        onStop=${stop}
        onAgain=${again}
      />
      ${Object.values(runs).some((run) => run.request.decoding.trace) && html`<${TokenLegend} />`}
      <div class="columns">
        ${state.settings.map(
          (setting, index) => html`
            <${Column}
              key=${setting.id}
              number=${index + 1}
              setting=${setting}
              run=${runs[setting.id] ?? null}
              catalogue=${catalogue}
              alone=${state.settings.length === 1}
              adopted=${adopted?.setting.id === setting.id}
              asked=${state.turns.length > 0}
              onChange=${onChange}
              onAdopt=${onAdopt}
              onRun=${runOne}
              onRemove=${onRemove}
              onBranch=${onBranch}
              onKey=${openKey}
            />
          `,
        )}
      </div>
      <button
        ref=${adding}
        type="button"
        class="button columns-add"
        disabled=${state.settings.length >= MOST_SETTINGS}
        onClick=${() => act({ type: "add-setting", decoding: state.settings.at(-1).decoding })}
      >
        Add a column
      </button>
      <${Charts} state=${state} runs=${runs} points=${points} judge=${state.reward ? judge : null} />
    </main>
    <p class="hidden" role="status" aria-live="polite">${told}</p>
    ${
      dialog === "presets" &&
      html`
        <${Dialog} title="Presets" wide onClose=${() => setDialog(null)}>
          <${Gallery} catalogue=${catalogue} onPick=${onPick} />
        <//>
      `
    }
    ${dialog === "help" && html`<${Help} onClose=${() => setDialog(null)} />`}
    ${
      branching &&
      html`
        <${BranchDialog}
          prefix=${beginnings(branching.run)[branching.index]}
          settings=${state.settings}
          catalogue=${catalogue}
          room=${state.settings.length < MOST_SETTINGS}
          onBranch=${branch}
          onClose=${() => setBranching(null)}
        />
      `
    }
  `;
}

/** What the address holds, or a column each for the plain model, a search and a way to steer, as the guides allow. */
function opening(catalogue) {
  const linked = fromAddress(catalogue);
  if (linked) return linked;
  const usable = OPENING.filter((name) => catalogue.missing(name) === null);
  const state = initial(
    catalogue.models,
    usable.map((name) => catalogue.start(name)),
  );
  const reward = state.settings.map(({ decoding }) => decoding.reward).find(Boolean) ?? null;
  return reduce(state, { type: "patch", changes: { reward } });
}

function fromAddress(catalogue) {
  const found = location.hash.length > 1 ? decode(location.hash.slice(1)) : null;
  const isRight = (decoding) => wrong(catalogue, decoding) === null;
  return found && restored({ ...found, settings: found.settings?.filter(isRight) }, catalogue);
}

/** What changes in a state where the server, since it was started again, has other models or guides. */
function served({ model, reward, gold }, catalogue) {
  const judges = catalogue.fitting("scores_answers");
  const guide = (name) => (judges.includes(name) ? name : null);
  const known = catalogue.models.includes(model);
  return { model: known ? model : (catalogue.models[0] ?? ""), reward: guide(reward), gold: guide(gold) };
}

function useLink(onLink, catalogue) {
  useEffect(() => {
    const read = () => {
      const linked = fromAddress(catalogue);
      if (linked) onLink(linked);
    };
    addEventListener("hashchange", read);
    return () => removeEventListener("hashchange", read);
  }, [catalogue]);
}

function useStopKey(stop) {
  useEffect(() => {
    const onKey = (event) =>
      event.key === "Escape" && !event.isComposing && !document.querySelector("dialog[open]") && stop();
    document.addEventListener("keydown", onKey);
    return () => document.removeEventListener("keydown", onKey);
  }, []);
}

function spoken(run) {
  if (run.phase === "failed") return `${run.label}: failed. ${run.error.message}`;
  if (run.phase === "stopped") return `${run.label}: stopped.`;
  const reward = run.rewards.reward === null ? "" : `, reward ${run.rewards.reward.toFixed(2)}`;
  return `${run.label}: finished${reward}.`;
}
