// The page: asks what the server offers, for a key where it wants one, and tells when the server is away.

import { html, useEffect, useRef, useState } from "../lib/preact.js";
import { Catalogue } from "../model/catalogue.js";
import { KeyDialog } from "./key_dialog.js";
import { Problem } from "./problem.js";
import { Workbench } from "./workbench.js";

const PROBE_MS = 2000;

/** @param {{api: import("../net/api.js").Api}} props */
export function App({ api }) {
  const [catalogue, setCatalogue] = useState(null);
  const [error, setError] = useState(null);
  const [asking, setAsking] = useState(false);
  const [refused, setRefused] = useState(false);
  const askForKey = (wasRefused) => {
    setRefused(wasRefused);
    setAsking(true);
  };
  const load = () =>
    Catalogue.load(api).then(
      (found) => {
        setCatalogue(found);
        setError(null);
      },
      (problem) => {
        setError(problem);
        if (problem.status === 401) askForKey(api.key !== null);
      },
    );
  useEffect(() => void load(), []);
  const useKey = (key) => {
    api.key = key;
    setAsking(false);
    load();
  };
  const away = useAway(api, load);
  return html`
    ${away.since && html`<${Away} />`}
    ${
      catalogue
        ? html`<${Workbench} api=${api} catalogue=${catalogue} onKey=${askForKey} onGone=${away.begin} />`
        : html`
            <header class="header"><h1 class="header-name">trimtab</h1></header>
            <main class="page-notice">
              ${
                error
                  ? html`<${Problem} error=${error} onRetry=${load} onKey=${() => askForKey(false)} onAgain=${load} />`
                  : html`<p role="status">Loading what the server offers …</p>`
              }
            </main>
          `
    }
    ${asking && html`<${KeyDialog} refused=${refused} known=${api.key !== null} onKey=${useKey} onClose=${() => setAsking(false)} />`}
  `;
}

function Away() {
  return html`<p class="away" role="alert">
    The server is away. What has arrived stays; the page asks again every two seconds.
  </p>`;
}

/** From `begin` on ask every two seconds whether the server is there again; then call `onBack`. */
function useAway(api, onBack) {
  const [since, setSince] = useState(null);
  const back = useRef(onBack);
  back.current = onBack;
  useEffect(() => {
    if (since === null) return undefined;
    const timer = setInterval(async () => {
      try {
        await api.get("/ready");
      } catch (error) {
        if (error.kind === "gone" || error.status === 503) return;
      }
      setSince(null);
      back.current();
    }, PROBE_MS);
    return () => clearInterval(timer);
  }, [since]);
  return { since, begin: () => setSince((known) => known ?? performance.now()) };
}
