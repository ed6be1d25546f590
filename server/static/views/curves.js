// KL, entropy and value or reward along the answers.

import { html, useEffect, useReducer, useRef, useState } from "../lib/preact.js";
import { aligned, extend, joined, series, summary } from "../model/curves.js";
import { fixed } from "../model/figures.js";
import { DASHES, Plot, Sample } from "./plot.js";

const ENDED = new Set(["judging", "done", "stopped", "failed"]);

/**
 * Three charts over the tokens of the answers, and the same numbers as a table.
 * @param {{runs: import("../net/run.js").Run[], colours: string[],
 *   judge?: ((run: any) => Promise<{at: number[], rewards: (number | null)[]}>) | null}} props
 *   `colours`: CSS colours, one for each run
 */
export function Curves({ runs, colours, judge }) {
  const box = useRef(null);
  const known = useRef(/** @type {WeakMap<object, import("../model/curves.js").Series>} */ (new WeakMap()));
  const { measured, isMeasuring, problem, measure } = useMeasured(judge);
  const [wanted, setWanted] = useState(/** @type {"values" | "measured"} */ ("values"));
  useFrames(box, runs);
  const [uPlot, missing] = useChartLibrary(runs.some((run) => run.tokens.length > 0));

  const all = runs.map((run) => {
    if (!known.current.has(run)) known.current.set(run, series());
    const one = known.current.get(run);
    extend(one, run.tokens);
    return one;
  });
  const lines = runs.map((run, index) => ({
    label: run.label,
    colour: colours[index],
    dash: DASHES[index % DASHES.length],
  }));
  const guides = all.map(({ values }) => Object.keys(values)[0] ?? null);
  const named = [...new Set(guides.filter((guide) => guide !== null))];
  const rewards = runs.map((run) => measured[run.id]);
  const isMeasured = rewards.some(Boolean) && (wanted === "measured" || named.length === 0);
  const values = all.map((one, index) => one.values[guides[index]] ?? []);
  const open = runs.filter((run) => ENDED.has(run.phase) && run.tokens.length > 0 && !measured[run.id]);
  const curves = [
    { name: "KL from the base so far", title: "KL from the base so far, nats", each: all.map(({ kl }) => kl) },
    {
      name: "Entropy",
      title: "Entropy of what the token was drawn from, nats",
      each: all.map(({ entropy }) => entropy),
    },
    isMeasured
      ? {
          name: "Reward so far",
          title: "Reward so far, measured",
          each: rewards.map((reward) => reward?.rewards ?? []),
        }
      : { name: "Value so far", title: `Value so far${named.length ? ` by ${named.join(", ")}` : ""}`, each: values },
  ];
  const shows = (index) => curves[index].each.some((curve) => curve.some((value) => value !== null));
  const data = (index) => (index === 2 && isMeasured ? joined(rewards) : aligned(curves[index].each));
  const onMeasure = () => {
    setWanted("measured");
    measure(open);
  };
  return html`
    <div class="curves" ref=${box}>
      <ul class="curves-legend">
        ${lines.map((line) => html`<li><${Sample} ...${line} /> ${line.label}</li>`)}
      </ul>
      ${missing && html`<p class="curves-note" role="alert">The charts could not be loaded: ${missing}</p>`}
      <div class="curves-plots">
        ${curves.map(({ title }, index) =>
          uPlot && shows(index)
            ? html`<${Plot}
                key=${index}
                uPlot=${uPlot}
                title=${title}
                lines=${lines}
                data=${data(index)}
                isSparse=${index === 2}
              />`
            : index < 2 && html`<${Empty} key=${`no ${index}`} title=${title} />`,
        )}
      </div>
      <div class="curves-ways">
        ${
          judge &&
          html`
            <button type="button" class="button" disabled=${isMeasuring || open.length === 0} onClick=${onMeasure}>
              ${isMeasuring ? "Measuring …" : "Measure reward so far"}
            </button>
          `
        }
        ${named.length > 0 && rewards.some(Boolean) && html`<${Choice} wanted=${wanted} onChange=${setWanted} />`}
        <span role="status">${problem}</span>
      </div>
      <${Table} lines=${lines} curves=${curves} />
    </div>
  `;
}

function Empty({ title }) {
  return html`
    <figure class="curves-plot">
      <figcaption>${title}</figcaption>
      <p class="curves-empty">Nothing is known yet.</p>
    </figure>
  `;
}

function Choice({ wanted, onChange }) {
  const choice = (value, text) => html`
    <label
      ><input type="radio" name="curves-shown" checked=${wanted === value} onChange=${() => onChange(value)} />
      ${text}</label
    >
  `;
  return html`
    <fieldset class="curves-choice">
      <legend>Third chart</legend>
      ${choice("values", "values of guides")} ${choice("measured", "measured reward")}
    </fieldset>
  `;
}

function Table({ lines, curves }) {
  const [isOpen, setOpen] = useState(false);
  const rows = isOpen
    ? lines.flatMap(({ label }, run) => curves.map(({ name, each }) => [label, name, summary(each[run])]))
    : [];
  return html`
    <details class="curves-table" onToggle=${(event) => setOpen(event.currentTarget.open)}>
      <summary>The curves as a table</summary>
      <div class="curves-scroll" tabindex="0" role="region" aria-label="The curves as a table">
        <table>
          <thead>
            <tr>
              <th scope="col">Answer</th>
              <th scope="col">Curve</th>
              <th scope="col">Least</th>
              <th scope="col">Mean</th>
              <th scope="col">Last</th>
            </tr>
          </thead>
          <tbody>
            ${rows.map(
              ([label, name, numbers]) => html`
                <tr>
                  <th scope="row">${label}</th>
                  <td>${name}</td>
                  <td>${fixed(numbers?.least ?? null)}</td>
                  <td>${fixed(numbers?.mean ?? null)}</td>
                  <td>${fixed(numbers?.last ?? null)}</td>
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
    </details>
  `;
}

/** Draw the calling component again after changes of the runs, once per frame and only while it is in sight. */
function useFrames(box, runs) {
  const [, redraw] = useReducer((count) => count + 1, 0);
  useEffect(() => {
    let [frame, isInSight, isStale] = [0, false, false];
    const draw = () => {
      [frame, isStale] = [0, false];
      redraw(null);
    };
    const mark = () => {
      isStale = true;
      if (isInSight && frame === 0) frame = requestAnimationFrame(draw);
    };
    const sight = new IntersectionObserver(([entry]) => {
      isInSight = entry.isIntersecting;
      if (isStale) mark();
    });
    sight.observe(box.current);
    const ends = runs.map((run) => run.subscribe(mark));
    return () => {
      sight.disconnect();
      cancelAnimationFrame(frame);
      ends.forEach((end) => end());
    };
  }, [runs.map((run) => run.id).join()]);
}

/** The chart library once it is needed, and what kept it away. */
function useChartLibrary(isNeeded) {
  const [library, setLibrary] = useState(/** @type {[any, string | null]} */ ([null, null]));
  useEffect(() => {
    if (!isNeeded) return;
    import("../lib/uplot.js").then(
      (module) => setLibrary([module.default, null]),
      (error) => setLibrary([null, String(error.message)]),
    );
  }, [isNeeded]);
  return library;
}

/** Rewards of beginnings by run, and how to measure more. */
function useMeasured(judge) {
  const [measured, setMeasured] = useState(
    /** @type {Record<string, {at: number[], rewards: (number | null)[]}>} */ ({}),
  );
  const [isMeasuring, setMeasuring] = useState(false);
  const [problem, setProblem] = useState("");
  const measure = async (runs) => {
    setMeasuring(true);
    setProblem("");
    for (const run of runs) {
      try {
        const found = await judge(run);
        setMeasured((known) => ({ ...known, [run.id]: found }));
      } catch (error) {
        setProblem(`The reward of ${run.label} could not be measured: ${error.message}`);
      }
    }
    setMeasuring(false);
  };
  return { measured, isMeasuring, problem, measure };
}
