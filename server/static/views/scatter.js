// Latency against reward of many runs, with the line of those that no other beats.

import { html, useLayoutEffect, useMemo, useRef, useState } from "../lib/preact.js";
import { front } from "../model/pareto.js";
import { scale } from "../model/scales.js";
import { short } from "../model/ticks.js";

const EDGE = { top: 26, right: 16, bottom: 42, left: 52 };

/** Outlines around 0, 0; further labels take them again, hollow. */
const SHAPES = [
  "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",
  "M-4.5,-4.5H4.5V4.5H-4.5Z",
  "M0,-6L5.5,4.5H-5.5Z",
  "M0,-6.5L5.5,0L0,6.5L-5.5,0Z",
  "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",
  "M0,6L5.5,-4.5H-5.5Z",
  "M-6,-3.5L-3.5,-6L0,-2.5L3.5,-6L6,-3.5L2.5,0L6,3.5L3.5,6L0,2.5L-3.5,6L-6,3.5L-2.5,0Z",
  "M-3,-6H3L6,0L3,6H-3L-6,0Z",
];

/**
 * @typedef {{id: string, x: number, y: number, label: string, colour: string, title: string}} Point
 * `x`: milliseconds, `y`: reward
 */

/**
 * A scatter plot with a Pareto line, one tab stop for all points, and the same numbers as a table.
 * @param {{points: Point[], rewardName: string}} props
 */
export function Scatter({ points, rewardName }) {
  const box = useRef(null);
  const width = useWidth(box);
  const [active, setActive] = useState(/** @type {string | null} */ (null));
  const sorted = useMemo(() => [...points].sort((a, b) => a.x - b.x || a.y - b.y), [points]);
  const styles = useMemo(() => labelled(points), [points]);
  const best = useMemo(() => front(sorted), [sorted]);
  const shown = sorted.find(({ id }) => id === active) ?? null;
  return html`
    <div class="scatter" ref=${box}>
      ${
        points.length === 0
          ? html`<p class="scatter-empty">
              Each answer that ends with a reward becomes a point here. Fast and good is up and to the left.
            </p>`
          : html`
              <${Legend} styles=${styles} />
              ${
                width > 0 &&
                html`<${Chart} ...${{ width, sorted, best, styles, rewardName, active: shown, onActive: setActive }} />`
              }
              <p class="scatter-readout" aria-hidden="true">
                ${shown ? told(shown, best) : "Point at a mark, or go to it with the arrow keys."}
              </p>
              <${Table} sorted=${sorted} rewardName=${rewardName} />
            `
      }
    </div>
  `;
}

function Chart({ width, sorted, best, styles, rewardName, active, onActive }) {
  const marks = useRef(null);
  const height = Math.round(Math.min(340, Math.max(240, width * 0.5)));
  const x = scale(
    sorted.map((point) => point.x),
    EDGE.left,
    width - EDGE.right,
    Math.max(2, Math.floor(width / 90)),
    "ratio",
  );
  const y = scale(
    sorted.map((point) => point.y),
    height - EDGE.bottom,
    EDGE.top,
    5,
    "difference",
  );
  const stop = Math.max(0, sorted.indexOf(active));
  const onKeyDown = (event) => {
    const aims = { ArrowRight: stop + 1, ArrowLeft: stop - 1, Home: 0, End: sorted.length - 1 };
    const aim = aims[event.key];
    if (aim === undefined || aim < 0 || aim >= sorted.length) return;
    event.preventDefault();
    marks.current.children[aim].focus();
  };
  const desc = `${sorted.length} answers; ${best.length} of them are beaten by no other in both latency and reward.`;
  return html`
    <svg
      class="scatter-chart"
      width=${width}
      height=${height}
      role="group"
      aria-labelledby="scatter-title scatter-desc"
    >
      <title id="scatter-title">Latency in milliseconds against ${rewardName}</title>
      <desc id="scatter-desc">${desc}</desc>
      <g class="scatter-axes" aria-hidden="true">
        ${x.ticks.map(
          (tick) => html`
            <line x1=${x.at(tick)} x2=${x.at(tick)} y1=${EDGE.top} y2=${height - EDGE.bottom} />
            <text x=${x.at(tick)} y=${height - EDGE.bottom + 16} text-anchor="middle">${short(tick)}</text>
          `,
        )}
        ${y.ticks.map(
          (tick) => html`
            <line x1=${EDGE.left} x2=${width - EDGE.right} y1=${y.at(tick)} y2=${y.at(tick)} />
            <text x=${EDGE.left - 8} y=${y.at(tick) + 4} text-anchor="end">${short(tick)}</text>
          `,
        )}
        <text class="scatter-axis" x=${width - EDGE.right} y=${height - 6} text-anchor="end">
          latency, ms${x.isLog && " (logarithmic)"}
        </text>
        <text class="scatter-axis" x="4" y="14">${rewardName}</text>
      </g>
      <path class="scatter-front" d=${steps(best, x, y, width - EDGE.right)} />
      <g ref=${marks} onKeyDown=${onKeyDown} onPointerLeave=${() => onActive(null)}>
        ${sorted.map(
          (point, index) => html`
            <g
              key=${point.id}
              class=${`scatter-point ${point === active ? "scatter-active" : ""}`}
              role="img"
              aria-label=${told(point, best)}
              tabindex=${index === stop ? 0 : -1}
              transform=${`translate(${x.at(point.x)},${y.at(point.y)})`}
              onPointerEnter=${() => onActive(point.id)}
              onFocus=${() => onActive(point.id)}
            >
              <circle class="scatter-reach" r="12" />
              <${Mark} style=${styles.get(point.label)} colour=${point.colour} />
            </g>
          `,
        )}
      </g>
    </svg>
  `;
}

function Mark({ style: { shape, isHollow }, colour }) {
  return html`<path
    class=${isHollow ? "scatter-hollow" : "scatter-mark"}
    d=${SHAPES[shape]}
    style=${{ color: colour }}
  />`;
}

function Legend({ styles }) {
  return html`
    <ul class="scatter-legend">
      ${[...styles].map(
        ([label, style]) => html`
          <li>
            <svg width="16" height="16" viewBox="-8 -8 16 16" aria-hidden="true">
              <${Mark} style=${style} colour=${style.colour} />
            </svg>
            ${label}
          </li>
        `,
      )}
      <li>
        <svg width="24" height="16" aria-hidden="true"><path class="scatter-front" d="M0,12H12V4H24" /></svg>
        Pareto line
      </li>
    </ul>
  `;
}

function Table({ sorted, rewardName }) {
  const [isOpen, setOpen] = useState(false);
  return html`
    <details onToggle=${(event) => setOpen(event.currentTarget.open)}>
      <summary>The points as a table</summary>
      <div class="scatter-scroll" tabindex="0" role="region" aria-label="The points as a table">
        <table>
          <thead>
            <tr>
              <th scope="col">Strategy</th>
              <th scope="col">Milliseconds</th>
              <th scope="col">${rewardName}</th>
            </tr>
          </thead>
          <tbody>
            ${
              isOpen &&
              sorted.map(
                (point) => html`
                  <tr key=${point.id}>
                    <th scope="row">${point.label}</th>
                    <td>${Math.round(point.x)}</td>
                    <td>${point.y.toFixed(3)}</td>
                  </tr>
                `,
              )
            }
          </tbody>
        </table>
      </div>
    </details>
  `;
}

/** The line through the best points: how good an answer there is by each latency. */
function steps(best, x, y, right) {
  if (best.length === 0) return "";
  const [first, ...rest] = best.map((point) => [x.at(point.x), y.at(point.y)]);
  return `M${first}${rest.map(([across, up]) => `H${across}V${up}`).join("")}H${right}`;
}

function told(point, best) {
  return best.includes(point) ? `${point.title}, on the Pareto line` : point.title;
}

/** Shape and first colour of each label. */
function labelled(points) {
  const styles = new Map();
  for (const { label, colour } of points) {
    const index = styles.size;
    if (!styles.has(label))
      styles.set(label, { shape: index % SHAPES.length, isHollow: index >= SHAPES.length, colour });
  }
  return styles;
}

function useWidth(box) {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const resized = new ResizeObserver(([entry]) => setWidth(Math.floor(entry.contentRect.width)));
    resized.observe(box.current);
    return () => resized.disconnect();
  }, []);
  return width;
}
