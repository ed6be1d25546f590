// What is known of one token, beside it.

import { html, useEffect, useLayoutEffect, useRef, useState } from "../lib/preact.js";
import { fixed, probability, signed } from "../model/figures.js";
import { difference, isForced, visible } from "../model/heat.js";

const DWELL = 400; // ms until the card can be pointed at; before, a pointer that runs over the text passes through it
const MARGIN = 8; // pixels to the edges of the window
const GAP = 4; // pixels to the token

const SOURCES = {
  base: "drawn from the base as it is",
  steered: "drawn from the steered distribution",
  nudge: "spoken by another model",
  draft: "drafted by another model",
};

/**
 * The card of the token `anchor`. Where several tokens wrote its text, `part` is the one told of.
 * @param {{id: string, records: any[], text: string, part: number, anchor: HTMLElement, colour: string,
 *   onPart: (part: number) => void, onBranch: () => void, onEnter: () => void, onLeave: () => void}} props
 */
export function TokenCard({ id, records, text, part, anchor, colour, onPart, onBranch, onEnter, onLeave }) {
  const card = useRef(null);
  const [reached, setReached] = useState(/** @type {HTMLElement | null} */ (null));
  useEffect(() => {
    const timer = setTimeout(() => setReached(anchor), DWELL);
    return () => clearTimeout(timer);
  }, [anchor]);
  useLayoutEffect(() => {
    const move = () => place(card.current, anchor);
    card.current.showPopover?.(); // above everything, whatever clips the column
    move();
    addEventListener("scroll", move, { capture: true, passive: true });
    addEventListener("resize", move);
    return () => {
      removeEventListener("scroll", move, { capture: true });
      removeEventListener("resize", move);
    };
  }, [anchor, part]);
  const record = records[part];
  const isInside = part < records.length - 1;
  const stay = (event) => event.preventDefault(); // the focus stays on the token
  return html`
    <div
      ref=${card}
      id=${id}
      class=${`tokens-card ${reached === anchor ? "" : "tokens-card-through"}`}
      role="tooltip"
      popover="manual"
      style=${{ "--tokens-colour": colour }}
      onPointerEnter=${onEnter}
      onPointerLeave=${onLeave}
      onMouseDown=${stay}
    >
      <p>
        <bdi class="tokens-card-token">${visible(records.length > 1 ? text : record.text)}</bdi>${" "}
        ${SOURCES[record.source] ?? record.source}${isForced(record) && ", forced: no other token was left"}
      </p>
      ${records.length > 1 && html`<${Parts} count=${records.length} part=${part} onPart=${onPart} />`}
      <${Numbers} record=${record} />
      <div class="tokens-card-tops">
        <${Top} title="Top 5 before" best=${record.top_base} chosen=${record.id} />
        <${Top} title="Top 5 after" best=${record.top_steered} chosen=${record.id} />
      </div>
      <p class="tokens-card-note">The lists are before temperature and filters.</p>
      <button
        type="button"
        class="button button-small tokens-card-branch"
        tabindex="-1"
        disabled=${isInside}
        onClick=${onBranch}
      >
        Continue from here with another strategy${!isInside && html` <kbd>Enter</kbd>`}
      </button>
      ${isInside && html`<p class="tokens-card-note">This token ends inside a character.</p>`}
    </div>
  `;
}

function Parts({ count, part, onPart }) {
  const parts = Array.from({ length: count }, (_, index) => index);
  return html`
    <p class="tokens-card-parts">
      <span>Written by ${count} tokens:</span>
      ${parts.map(
        (index) => html`
          <button
            type="button"
            class="button button-small"
            tabindex="-1"
            aria-pressed=${index === part}
            aria-label=${`Token ${index + 1}`}
            onClick=${() => onPart(index)}
          >
            ${index + 1}
          </button>
        `,
      )}
    </p>
  `;
}

function Numbers({ record }) {
  const values = Object.entries(record.values ?? {});
  const moved = difference(record);
  return html`
    <table class="tokens-card-numbers">
      <thead>
        <tr>
          <td></td>
          <th scope="col">before</th>
          <th scope="col">after steering</th>
        </tr>
      </thead>
      <tbody>
        <tr>
          <th scope="row">Probability</th>
          <td>${probability(record.logprob_base)}</td>
          <td>${probability(record.logprob_steered)}</td>
        </tr>
        <tr>
          <th scope="row">Log-probability, nats</th>
          <td>${fixed(record.logprob_base)}</td>
          <td>${fixed(record.logprob_steered)}${moved !== null && ` (${signed(moved)})`}</td>
        </tr>
        <tr>
          <th scope="row">Entropy, nats</th>
          <td>${fixed(record.entropy_base)}</td>
          <td>${fixed(record.entropy)}</td>
        </tr>
        <tr>
          <th scope="row">KL from the base, nats</th>
          <td></td>
          <td>${fixed(record.kl, 3)}</td>
        </tr>
        ${values.map(
          ([name, value]) => html`
            <tr>
              <th scope="row">Value by ${name}</th>
              <td></td>
              <td>${value === null ? "no candidate" : fixed(value, 3)}</td>
            </tr>
          `,
        )}
      </tbody>
    </table>
  `;
}

function Top({ title, best, chosen }) {
  return html`
    <div>
      <h3>${title}</h3>
      ${
        best.length === 0
          ? html`<p class="tokens-card-note">unknown</p>`
          : html`<ol>
              ${best.map((each) => html`<${Likely} ...${each} isChosen=${each.id === chosen} />`)}
            </ol>`
      }
    </div>
  `;
}

function Likely({ text, logprob, isChosen }) {
  const share = logprob === null ? 0 : 100 * Math.exp(logprob);
  return html`
    <li class=${`tokens-top ${isChosen ? "tokens-top-chosen" : ""}`}>
      <bdi class="tokens-top-text">${isChosen && html`<span title="this token">✓ </span>`}${visible(text)}</bdi>
      <span>${probability(logprob)}</span>
      <span class="tokens-top-bar" aria-hidden="true"><span style=${{ width: `${share}%` }}></span></span>
    </li>
  `;
}

/** Put the card below the token, or above where there is no room, inside the window. */
function place(card, anchor) {
  const [token] = anchor.getClientRects();
  if (token === undefined) return;
  const { width, height } = card.getBoundingClientRect();
  const below = token.bottom + GAP;
  const above = token.top - GAP - height;
  const top = below + height + MARGIN <= innerHeight || above < MARGIN ? below : above;
  card.style.left = `${clamp(token.left, innerWidth - width - MARGIN)}px`;
  card.style.top = `${clamp(top, innerHeight - height - MARGIN)}px`;
}

function clamp(wanted, most) {
  return Math.max(MARGIN, Math.min(wanted, most));
}
