// A finished search: what it reports, its candidates and its tree.

import { html, useMemo, useState } from "../lib/preact.js";
import { explain } from "../model/candidates.js";
import { columns, sorted } from "../model/candidate_columns.js";
import { reported, stopped } from "../model/search_report.js";
import { CandidateTable } from "./candidate_table.js";
import { SearchTree } from "./tree.js";

const FIRST = 32;

/**
 * What a search wrote: what it reports, its candidates with why each lost, and its tree; nothing of a run without them.
 * @param {{run: import("../net/run.js").Run}} props
 */
export function SearchView({ run }) {
  const { decoding } = run;
  const [open, setOpen] = useState(false);
  const searched = decoding?.candidates?.length > 1 && decoding.candidates.some((each) => each.text !== undefined);
  const verdicts = useMemo(() => (open && searched ? explain(decoding) : []), [decoding, searched, open]);
  const ranks = useMemo(() => new Map(verdicts.map(({ index, rank }) => [index, rank])), [verdicts]);
  const branching = decoding?.tree?.nodes.length > 2;
  if (!searched && !branching) return null;
  return html`<details class="search" onToggle=${(event) => setOpen(event.currentTarget.open)}>
    <summary>${searched ? `Candidates (${decoding.candidates.length}) and search tree` : "Search tree"}</summary>
    ${
      open &&
      html`<section class="stack" aria-label=${`Search of ${run.label}`}>
        <${Report} decoding=${decoding} />
        <${Early} text=${stopped(decoding)} />
        ${searched && html`<${Candidates} ...${{ decoding, verdicts }} name=${run.id} />`}
        ${
          decoding.tree &&
          html`<${SearchTree} tree=${decoding.tree} candidates=${decoding.candidates} ranks=${ranks} name=${run.id} />`
        }
      </section>`
    }
  </details>`;
}

function Early({ text }) {
  return text && html`<p class="search-early"><span aria-hidden="true">⚠ </span>${text}</p>`;
}

function Report({ decoding }) {
  const facts = reported(decoding);
  return html`<dl class="search-report">
    <div>
      <dt>search</dt>
      <dd>${decoding.spec?.strategy}</dd>
    </div>
    ${facts.map(
      ({ name, value }) =>
        html`<div key=${name}>
          <dt dir="auto">${name}</dt>
          <dd>${value}</dd>
        </div>`,
    )}
  </dl>`;
}

function Candidates({ decoding, verdicts, name }) {
  const [order, setOrder] = useState({ key: "rank", falling: false });
  const [all, setAll] = useState(false);
  const heads = useMemo(() => columns(decoding), [decoding]);
  const rows = sorted(decoding, verdicts, heads, order);
  const shown = all ? rows : rows.slice(0, FIRST);
  const sort = (key) => setOrder({ key, falling: key === order.key ? !order.falling : key !== "rank" });
  return html`<div class="stack">
    <${CandidateTable} ...${{ decoding, heads, order, rows: shown, onSort: sort, name }} />
    ${
      shown.length < rows.length &&
      html`<button type="button" class="button" onClick=${() => setAll(true)}>
        Show all ${rows.length} candidates
      </button>`
    }
  </div>`;
}
