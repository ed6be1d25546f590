// Copies a text; where the browser allows no access to the clipboard, shows it, selected.

import { html, useEffect, useRef, useState } from "../lib/preact.js";
import { Dialog } from "./dialog.js";

const TOLD_MS = 1500;

/**
 * @param {{label: string, what: string, text: () => string}} props `what` names it for screen readers; `text` is asked
 *   for when the button is pressed
 */
export function CopyButton({ label, what, text }) {
  const [copied, setCopied] = useState(false);
  const [shown, setShown] = useState(null);
  useEffect(() => {
    if (!copied) return undefined;
    const timer = setTimeout(() => setCopied(false), TOLD_MS);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = async () => {
    const wanted = text();
    try {
      await navigator.clipboard.writeText(wanted);
      setCopied(true);
    } catch {
      setShown(wanted); // no clipboard outside https and localhost
    }
  };
  return html`
    <button type="button" class="button" aria-label=${copied ? `${what}: copied` : `Copy ${what}`} onClick=${copy}>
      ${copied ? "Copied" : label}
    </button>
    ${shown !== null && html`<${Shown} what=${what} text=${shown} onClose=${() => setShown(null)} />`}
  `;
}

function Shown({ what, text, onClose }) {
  const box = useRef(null);
  useEffect(() => box.current.select(), []);
  return html`
    <${Dialog} title=${`Copy ${what}`} wide onClose=${onClose}>
      <textarea ref=${box} class="dialog-text" readonly rows="16" aria-label=${what} value=${text}></textarea>
    <//>
  `;
}
