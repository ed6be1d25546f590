// An answer as text, each token coloured by how far steering moved it.

import { html, useEffect, useLayoutEffect, useRef, useState } from "../lib/preact.js";
import { EDGES } from "../model/heat.js";
import { TokenCard } from "./token_card.js";
import { TokenList } from "./token_list.js";

const GROWING = new Set(["waiting", "writing"]);
const SHOWS = "tokens-card-shows"; // told to other answers, for one card at a time is enough
const GRACE = 150; // ms for the pointer to get from a token to its card

/**
 * The answer, with a card for the token under the pointer or the focus. Arrow keys go from token to token.
 * @param {{run: import("../net/run.js").Run, onBranch: (run: any, index: number) => void, colour: string}} props
 *   `onBranch` gets the index of the record after which the answer is to go on
 */
export function TokenText(props) {
  return html`<${Answer} key=${props.run.id} ...${props} />`;
}

function Answer({ run, onBranch, colour }) {
  const box = useRef(/** @type {HTMLElement | null} */ (null));
  const list = useRef(/** @type {TokenList | null} */ (null));
  const card = useCard(list, box);
  const id = `tokens-card-${run.id}`;

  useLayoutEffect(() => {
    const tokens = new TokenList(box.current);
    const draw = () => tokens.show(run.tokens, run.text, !GROWING.has(run.phase));
    list.current = tokens;
    draw();
    return run.subscribe(draw);
  }, [run]);

  const { shown } = card;
  const piece = shown && list.current.pieces[shown.at];
  const anchor = shown && list.current.spans[shown.at];
  useEffect(() => {
    if (anchor === null) return;
    anchor.classList.add("tokens-shown");
    anchor.setAttribute("aria-describedby", id);
    return () => {
      anchor.classList.remove("tokens-shown");
      anchor.removeAttribute("aria-describedby");
    };
  }, [anchor, id]);

  const branch = () => shown.part === piece.count - 1 && onBranch(run, piece.first + shown.part);
  const onKeyDown = (event) => {
    if (event.key === "Enter" && shown && list.current.at(event.target) === shown.at) {
      event.preventDefault(); // else the same key presses the first button of the window that opens
      return void branch();
    }
    card.onKeyDown(event);
  };
  return html`
    <div class="tokens">
      <div class="tokens-text" dir="auto">
        ${run.prefix && html`<span class="tokens-prefix">${run.prefix}</span>`}<span
          ref=${box}
          onPointerOver=${card.onPointerOver}
          onPointerLeave=${card.leave}
          onfocusin=${card.onFocusIn}
          onfocusout=${card.hide}
          onClick=${card.onFocusIn}
          onKeyDown=${onKeyDown}
        ></span>
      </div>
      ${
        shown &&
        html`
          <${TokenCard}
            id=${id}
            records=${run.tokens.slice(piece.first, piece.first + piece.count)}
            text=${run.text.slice(piece.start, piece.end)}
            part=${shown.part}
            anchor=${anchor}
            colour=${colour}
            onPart=${(part) => card.show(shown.at, part)}
            onBranch=${branch}
            onEnter=${card.stay}
            onLeave=${card.leave}
          />
        `
      }
    </div>
  `;
}

/** The token whose card is shown, and how pointer, focus and keys change it. */
function useCard(list, box) {
  const [shown, setShown] = useState(/** @type {{at: number, part: number} | null} */ (null));
  const timer = useRef(0);
  const stay = () => clearTimeout(timer.current);
  const show = (at, part = list.current.pieces[at].count - 1) => {
    stay();
    dispatchEvent(new CustomEvent(SHOWS, { detail: box.current }));
    setShown((now) => (now?.at === at && now.part === part ? now : { at, part }));
  };
  const hide = () => {
    stay();
    setShown(null);
  };
  const leave = () => {
    stay();
    timer.current = window.setTimeout(() => {
      const focused = list.current.at(document.activeElement);
      focused === null ? hide() : show(focused);
    }, GRACE);
  };
  const onPointerOver = (event) => {
    const at = list.current.at(event.target);
    at === null ? leave() : show(at);
  };
  const onFocusIn = (event) => {
    const at = list.current.at(event.target);
    if (at === null) return;
    list.current.stopAt(at);
    show(at);
  };
  const go = (at, part) => {
    list.current.focus(at);
    show(at, part);
  };
  const onKeyDown = (event) => {
    const at = list.current.at(event.target);
    if (at === null || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
    const target = aim(event, list.current, at, shown?.at === at ? shown.part : null);
    if (target === null) return;
    event.preventDefault();
    go(...target);
  };

  useEffect(() => {
    if (shown === null) return;
    const onEscape = (event) => {
      if (event.key !== "Escape") return;
      event.preventDefault();
      event.stopPropagation(); // it closes the card and stops nothing else
      hide();
    };
    const onOther = (event) => event.detail !== box.current && hide();
    const onPress = ({ target }) => list.current.at(target) === null && !target.closest(".tokens-card") && hide();
    addEventListener("keydown", onEscape, { capture: true });
    addEventListener("pointerdown", onPress);
    addEventListener(SHOWS, onOther);
    return () => {
      removeEventListener("keydown", onEscape, { capture: true });
      removeEventListener("pointerdown", onPress);
      removeEventListener(SHOWS, onOther);
    };
  }, [shown]);
  useEffect(() => stay, []);
  return { shown, show, hide, stay, leave, onPointerOver, onFocusIn, onKeyDown };
}

/** Where a key leads to from a token and its part, as [token, part]; null where nowhere. */
function aim({ key }, { pieces, box }, at, part) {
  const isForward = (key === "ArrowRight") === (getComputedStyle(box).direction === "ltr");
  const last = pieces.length - 1;
  if (key === "Home") return [0, 0];
  if (key === "End") return [last, pieces[last].count - 1];
  if (key !== "ArrowLeft" && key !== "ArrowRight") return null;
  if (isForward) {
    if (part !== null && part < pieces[at].count - 1) return [at, part + 1];
    return at < last ? [at + 1, 0] : null;
  }
  if (part !== null && part > 0) return [at, part - 1];
  return at > 0 ? [at - 1, pieces[at - 1].count - 1] : null;
}

/** What the colours and lines of tokens mean. */
export function TokenLegend() {
  const less = [...EDGES].reverse();
  const shade = (strength, text) => html`<li class=${`tokens-heat-${strength}`}>${text}</li>`;
  return html`
    <div class="tokens-legend">
      <span>Steered less base log-probability, nats:</span>
      <ul class="tokens-scale">
        ${less.map((edge, index) => shade(index - EDGES.length, `${index === 0 ? "≤ " : ""}−${edge}`))} ${shade(0, "0")}
        ${EDGES.map((edge, index) => shade(index + 1, `${index === EDGES.length - 1 ? "≥ " : ""}${edge}`))}
      </ul>
      <span>less likely ← → more likely</span>
      <span><span class="tokens-foreign">another model’s word</span></span>
      <span><span class="tokens-forced">forced</span></span>
    </div>
  `;
}
