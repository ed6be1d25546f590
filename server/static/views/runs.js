// The answers that run and those that have ended.

import { useLayoutEffect, useReducer, useRef, useState } from "../lib/preact.js";
import { label } from "../model/label.js";
import { messages } from "../model/session.js";
import { Run } from "../net/run.js";
import { body } from "../share/body.js";

const RUNNING = new Set(["waiting", "writing", "judging"]);

/** Whether a run has not ended. */
export function isRunning(run) {
  return run !== null && RUNNING.has(run.phase);
}

/** Draw the calling component again whenever the run changes. */
export function useRun(run) {
  const [, redraw] = useReducer((count) => count + 1, 0);
  useLayoutEffect(() => run?.subscribe(() => redraw(null)), [run]); // before the next frame, in which it may end
}

/**
 * The newest run of each setting (`newest` for who is asked between two drawings), and a point for every one that ended
 * with a reward.
 * @param {import("../net/api.js").Api} api
 * @param {import("../model/catalogue.js").Catalogue} catalogue
 * @param {(run: Run) => void} onEnd
 */
export function useRuns(api, catalogue, onEnd) {
  const [runs, setRuns] = useState(/** @type {Record<string, Run>} */ ({}));
  const [points, setPoints] = useState([]);
  const newest = useRef(runs);
  const queue = useRef(0);
  const put = (changed) => setRuns((newest.current = changed));

  const make = (state, setting, prefix) =>
    new Run(api, {
      setting,
      label: label(setting.decoding),
      request: body({
        model: state.model,
        messages: messages(state),
        setting,
        sampling: state.sampling,
        trace: state.trace ? traced(catalogue, setting.decoding) : null,
        prefix,
      }),
      judges: { reward: state.reward, gold: state.gold },
    });

  const follow = async (run, state, number) => {
    await run.start();
    onEnd(run);
    if (run.phase === "done" && run.rewards.reward !== null) {
      setPoints((known) => [...known, point(run, state, number)]);
    }
    put({ ...newest.current }); // who asks whether something runs is to ask again
  };

  /** Run these settings on the conversation of `state`, together or one after another; they go on with `prefix`. */
  const start = async (state, settings, prefix = "") => {
    const batch = queue.current;
    const made = settings.map((setting) => make(state, setting, prefix));
    for (const setting of settings) newest.current[setting.id]?.stop();
    put({ ...newest.current, ...Object.fromEntries(made.map((run) => [run.setting.id, run])) });
    const numbers = settings.map((setting) => state.settings.findIndex((each) => each.id === setting.id));
    if (!state.oneByOne) return void made.forEach((run, index) => follow(run, state, numbers[index]));
    for (const [index, run] of made.entries()) {
      if (batch !== queue.current) break;
      if (run.phase === "waiting") await follow(run, state, numbers[index]);
    }
  };

  const stop = () => {
    queue.current += 1; // those that wait for their turn have none any more
    Object.values(newest.current).forEach((run) => run.stop());
  };

  /** Forget the answer of a setting. */
  const remove = (id) => {
    const { [id]: removed, ...others } = newest.current;
    removed?.stop();
    put(others);
  };

  /** Forget the answers, not the points. */
  const clear = () => {
    stop();
    put({});
  };
  return { runs, newest, points, start, stop, remove, clear };
}

function traced(catalogue, decoding) {
  const strategy = catalogue.strategy(decoding.strategy ?? "sample");
  return strategy?.kind === "search" && strategy.name !== "sample" ? "both" : "tokens";
}

function point(run, state, number) {
  const tokens = run.usage?.completion_tokens ?? 0;
  const reward = `${state.reward} ${run.rewards.reward.toFixed(3)}`;
  return {
    id: run.id,
    x: run.milliseconds,
    y: run.rewards.reward,
    reward: state.reward,
    label: run.label,
    colour: `var(--column-${number + 1})`,
    title: `${run.label}: ${Math.round(run.milliseconds)} ms, ${reward}, ${tokens} tokens`,
  };
}
