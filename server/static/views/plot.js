// One small chart of curves over the tokens of answers.

import { html, useEffect, useLayoutEffect, useReducer, useRef, useState } from "../lib/preact.js";
import { short } from "../model/ticks.js";

const HEIGHT = 150;
const FONT = "11px system-ui, sans-serif";

/** Dash patterns that tell lines apart without their colours. */
export const DASHES = Object.freeze([[], [7, 4], [2, 3], [9, 3, 2, 3]]);

/**
 * @param {{uPlot: any, title: string, lines: {colour: string, dash: number[]}[], data: (number | null)[][],
 *   isSparse?: boolean}} props `data`: token numbers, then a curve for each line; `isSparse`: gaps are bridged
 */
export function Plot({ uPlot, title, lines, data, isSparse = false }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const chart = useRef(null);
  const newest = useRef(data);
  const [at, setAt] = useState(/** @type {number | null} */ (null));
  const theme = useTheme();
  const drawn = lines.map(({ colour, dash }) => `${colour} ${dash}`).join();
  newest.current = data;

  useLayoutEffect(() => {
    const made = new uPlot(options(uPlot, box.current, lines, isSparse, setAt), newest.current, box.current);
    const resized = new ResizeObserver(() => made.setSize({ width: box.current.clientWidth, height: HEIGHT }));
    resized.observe(box.current);
    chart.current = made;
    return () => {
      resized.disconnect();
      made.destroy();
    };
  }, [uPlot, theme, drawn, isSparse]);
  useLayoutEffect(() => {
    if (chart.current.data !== data) chart.current.setData(data);
  }, [data]);

  return html`
    <figure class="curves-plot">
      <figcaption>${title}</figcaption>
      <div class="curves-canvas" ref=${box} aria-hidden="true"></div>
      <p class="curves-readout" aria-hidden="true">
        ${at !== null && data[0][at] !== undefined && html`<${Readout} lines=${lines} data=${data} at=${at} />`}
      </p>
    </figure>
  `;
}

function Readout({ lines, data, at }) {
  const known = lines
    .map((line, index) => ({ ...line, value: data[index + 1][at] }))
    .filter(({ value }) => value !== null);
  return html`
    <span>token ${data[0][at]}</span>
    ${known.map((line) => html`<span><${Sample} ...${line} /> ${short(Number(line.value.toPrecision(3)))}</span>`)}
  `;
}

/**
 * A piece of a line as the charts draw it.
 * @param {{colour: string, dash: number[]}} props
 */
export function Sample({ colour, dash }) {
  return html`
    <svg class="curves-sample" width="28" height="8" aria-hidden="true" style=${{ color: colour }}>
      <line x1="0" y1="4" x2="28" y2="4" stroke="currentColor" stroke-width="2" stroke-dasharray=${dash.join(" ")} />
    </svg>
  `;
}

/** A number that changes with the theme. */
function useTheme() {
  const [theme, change] = useReducer((count) => count + 1, 0);
  useEffect(() => {
    const system = matchMedia("(prefers-color-scheme: dark)");
    const chosen = new MutationObserver(() => change(null));
    const onChange = () => change(null);
    system.addEventListener("change", onChange);
    chosen.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    return () => {
      system.removeEventListener("change", onChange);
      chosen.disconnect();
    };
  }, []);
  return theme;
}

function options(uPlot, box, lines, isSparse, onCursor) {
  const muted = resolved(box, "var(--muted)");
  const grid = { stroke: resolved(box, "var(--line)"), width: 1 };
  const axis = { stroke: muted, font: FONT, grid, ticks: { ...grid, size: 4 } };
  return {
    width: box.clientWidth,
    height: HEIGHT,
    legend: { show: false },
    cursor: { sync: { key: "tokens" }, drag: { x: false, y: false }, y: false },
    hooks: { setCursor: [(chart) => onCursor(chart.cursor.idx ?? null)] },
    scales: {
      x: { time: false, range: (_, low, high) => [Math.min(1, low ?? 1), Math.max(2, high ?? 2)] },
      y: {
        range: (_, low, high) => (low === high ? [low ?? 0, (low ?? 0) + 1] : uPlot.rangeNum(low, high, 0.1, true)),
      },
    },
    axes: [
      { ...axis, size: 26, space: 40 },
      { ...axis, size: 44, space: 24, values: (_, values) => values.map(short) },
    ],
    series: [
      {},
      ...lines.map(({ colour, dash }) => ({
        stroke: resolved(box, colour),
        dash,
        width: 2,
        spanGaps: isSparse,
        points: { size: 5 }, // of dense curves only those that stand alone
      })),
    ],
  };
}

/** A colour as a canvas understands it. */
function resolved(box, colour) {
  const probe = document.createElement("span");
  probe.style.color = colour;
  box.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}
