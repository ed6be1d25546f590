// Light or dark: as the system has it until somebody chooses, then as chosen, in this browser.

import { html, useState } from "../lib/preact.js";

const STORED = "trimtab-theme";

/** Put the chosen theme on the document; without a choice the system's holds. */
export function applyTheme() {
  const chosen = stored();
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}

/** A button that goes from light to dark and back. */
export function ThemeButton() {
  const [dark, setDark] = useState(isDark());
  const toggle = () => {
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    store(dark ? "light" : "dark");
    setDark(!dark);
  };
  return html`<button type="button" class="button" aria-pressed=${dark} onClick=${toggle}>Dark</button>`;
}

// A browser may keep nothing for anybody: then the choice holds until the page is left.
function stored() {
  try {
    return localStorage.getItem(STORED);
  } catch {
    return null;
  }
}

function store(chosen) {
  try {
    localStorage.setItem(STORED, chosen);
  } catch {
    return;
  }
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
