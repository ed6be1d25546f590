// What went wrong, what it means, and the way on.

import { html, useEffect, useState } from "../lib/preact.js";

/**
 * @param {{error: import("../net/api.js").ApiError, onRetry?: () => void, onKey?: () => void,
 *   onAgain?: (() => void) | null}} props
 *   `onAgain`: where the server says when, what then is done by itself
 */
export function Problem({ error, onRetry, onKey, onAgain = null }) {
  const waiting = Boolean(onAgain && Number.isFinite(error.retryAfter));
  const left = useCountdown(waiting ? Math.max(1, error.retryAfter) : null, onAgain);
  return html`
    <div class="problem">
      <p role="alert"><strong>${title(error)}</strong> <span dir="auto">${error.message}</span></p>
      <p class="problem-ways">
        ${onRetry && html`<button type="button" class="button" onClick=${onRetry}>Try again</button>`}
        ${onKey && error.status === 401 && html`<button type="button" class="button" onClick=${onKey}>Enter a key</button>`}
        ${error.param === "decoding.trace" && html`<span>Switch “Trace tokens and searches” off.</span>`}
        ${waiting && html`<span>again in ${left} s</span>`}
        ${error.requestId && html`<span class="muted">request ${error.requestId}</span>`}
      </p>
    </div>
  `;
}

function title(error) {
  if (error.kind === "gone") return "No connection.";
  if (error.kind === "cut") return "The connection broke off.";
  if (error.kind === "garbled") return "The answer could not be read.";
  if (error.status === 401) return "A key is needed.";
  if (error.status === 503) return "The server is busy.";
  return error.status ? `Error ${error.status}.` : "The server gave up.";
}

function useCountdown(seconds, onEnd) {
  const [left, setLeft] = useState(seconds);
  useEffect(() => {
    if (seconds === null) return undefined;
    const end = performance.now() + seconds * 1000;
    const timer = setInterval(() => {
      const rest = Math.ceil((end - performance.now()) / 1000);
      setLeft(Math.max(0, rest));
      if (rest <= 0) {
        clearInterval(timer);
        onEnd();
      }
    }, 250);
    return () => clearInterval(timer);
  }, [seconds]);
  return left;
}
