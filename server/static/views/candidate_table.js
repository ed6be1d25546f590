// The candidates of a search, sorted by the heads of their columns.

import { html, useState } from "../lib/preact.js";
import { plain } from "../model/plain_numbers.js";
import { beginning } from "../model/step_text.js";
import { memo } from "./memo.js";

const WIDTH = 120;

/**
 * Candidates as a table that is sorted by its heads, and as cards where there is no room for one.
 * @param {{decoding: Record<string, any>, heads: import("../model/candidate_columns.js").Column[],
 *   order: {key: string, falling: boolean}, rows: import("../model/candidates.js").Verdict[],
 *   onSort: (key: string) => void, name: string}} props
 */
export function CandidateTable({ decoding, heads, order, rows, onSort, name }) {
  const count = decoding.candidates.length;
  return html`<div class="search-box" role="region" aria-label="Candidates" tabindex="0">
    <table class="search-table" role="table">
      <caption>
        ${count} candidates, ${rows.length < count ? `${rows.length} shown, ` : ""}sorted by ${headed(heads, order)}
      </caption>
      <thead role="rowgroup">
        <tr role="row">
          ${heads.map((head) => html`<${Head} key=${head.key} ...${{ head, order, onSort }} />`)}
        </tr>
      </thead>
      <tbody role="rowgroup">
        ${rows.map(
          (verdict) =>
            html`<${Row}
              key=${verdict.index}
              ...${{ verdict, heads, name }}
              candidate=${decoding.candidates[verdict.index]}
            />`,
        )}
      </tbody>
    </table>
  </div>`;
}

function headed(heads, { key, falling }) {
  return `${heads.find((head) => head.key === key)?.name ?? "Rank"}, ${falling ? "falling" : "rising"}`.toLowerCase();
}

function Head({ head, order, onSort }) {
  const sorted = order.key === head.key;
  const direction = order.falling ? "descending" : "ascending";
  return html`<th scope="col" role="columnheader" aria-sort=${sorted ? direction : "none"}>
    <button type="button" class="search-sort" onClick=${() => onSort(head.key)}>
      ${head.name}<span aria-hidden="true">${sorted ? (order.falling ? "\u00a0↓" : "\u00a0↑") : ""}</span>
    </button>
  </th>`;
}

function Cell({ head, candidate, verdict, toggle }) {
  const value = head.of(candidate, verdict);
  const shown = typeof value === "number" ? plain(value) : (value ?? "–");
  if (head.key === "text") return html`<${Text} text=${candidate.text ?? ""} rank=${verdict.rank} ...${toggle} />`;
  if (head.key === "rank") {
    const choice = candidate.choice > 0 ? `choice ${candidate.choice + 1}` : "chosen";
    return html`<td role="cell" data-head=${head.name} class="search-rank">
      ${shown}
      ${verdict.chosen && html`<strong class="search-mark"><span aria-hidden="true">✓ </span>${choice}</strong>`}
    </td>`;
  }
  const kind = { why: "search-why", ended: "search-ended" }[head.key] ?? "search-number";
  return html`<td role="cell" data-head=${head.name} class=${kind} dir=${head.key === "why" ? "auto" : undefined}>
    ${shown}
  </td>`;
}

function Text({ text, rank, open, whole, onToggle }) {
  return html`<td role="cell" class="search-text">
    <div class="search-cut">
      <button
        type="button"
        class="search-toggle"
        aria-expanded=${open}
        aria-controls=${open ? whole : undefined}
        aria-label=${`Whole text of candidate ${rank}`}
        onClick=${onToggle}
      >
        <span aria-hidden="true">${open ? "▾" : "▸"}</span>
      </button>
      <span class="search-line" dir="auto">${text === "" ? html`<em>empty</em>` : beginning(text, WIDTH)}</span>
    </div>
  </td>`;
}

const Row = memo(({ candidate, verdict, heads, name }) => {
  const [open, setOpen] = useState(false);
  const whole = `candidate-${name}-${verdict.index}`;
  const toggle = { open, whole, onToggle: () => setOpen(!open) };
  const cells = heads.map((head) => html`<${Cell} key=${head.key} ...${{ head, candidate, verdict, toggle }} />`);
  return html`<tr role="row" class=${verdict.chosen ? "search-chosen" : ""}>
      ${cells}
    </tr>
    ${
      open &&
      html`<tr role="row" class="search-open" id=${whole}>
        <td role="cell" colspan=${heads.length} dir="auto" class="search-whole">${candidate.text}</td>
      </tr>`
    }`;
});
