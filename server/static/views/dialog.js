// A modal window: the browser's own, which keeps the focus inside and closes on Escape.

import { html, useLayoutEffect, useRef } from "../lib/preact.js";

/**
 * @param {{title: string, onClose: () => void, wide?: boolean, children?: any}} props
 */
export function Dialog({ title, onClose, wide = false, children }) {
  const box = useRef(null);
  useLayoutEffect(() => {
    const { current } = box;
    current.showModal();
    return () => current.close(); // which gives the focus back
  }, []);
  const onBackdrop = (event) => event.target === box.current && box.current.close();
  return html`
    <dialog
      ref=${box}
      class=${wide ? "dialog dialog-wide" : "dialog"}
      aria-label=${title}
      onClose=${onClose}
      onClick=${onBackdrop}
    >
      <div class="dialog-body">
        <header class="dialog-head">
          <h2>${title}</h2>
          <button type="button" class="button" onClick=${() => box.current.close()}>Close</button>
        </header>
        ${children}
      </div>
    </dialog>
  `;
}
