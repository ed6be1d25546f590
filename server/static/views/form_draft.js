// A box that keeps what is being typed, also while it is not valid.

import { useState } from "../lib/preact.js";

/**
 * What stands in the box, what is wrong with it, and its handlers. A text counts as long as the value is what it made
 * it: a change from elsewhere replaces it.
 * @param {string} shown the value as text
 * @param {(text: string) => {error: string|null, shown?: string}} commit takes a text over, or says what is wrong with
 *   it; `shown`: how the value that it gave will be shown
 */
export function useDraft(shown, commit) {
  const [draft, setDraft] = useState(/** @type {{text: string, error: string|null, shown: string}|null} */ (null));
  const held = draft?.shown === shown ? draft : null;
  return {
    text: held?.text ?? shown,
    error: held?.error ?? null,
    onInput: (event) => {
      const { value, validity } = event.currentTarget;
      const told = validity?.badInput ? { error: "must be a number" } : commit(value);
      setDraft({ text: value, error: told.error, shown: told.error === null ? told.shown : shown });
    },
    onBlur: () => held?.error === null && setDraft(null),
  };
}
