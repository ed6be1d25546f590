// The page's state as the fragment of a link.

import { LONGEST_TEXT, MOST_SETTINGS, MOST_TURNS } from "../model/session.js";

const LONGEST_LINK = 2_000_000;
const DEEPEST = 12;
const REFUSED = new Set(["__proto__", "prototype", "constructor"]);

const isText = (value) => typeof value === "string";
const isFlag = (value) => typeof value === "boolean";
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const orNull = (check) => (value) => value === null || check(value);
const isRole = (value) => value === "user" || value === "assistant";
const listOf = (check, least, most) => (value) =>
  Array.isArray(value) && value.length >= least && value.length <= most && value.every(check);
const only = (checks) => (value) =>
  isObject(value) && Object.keys(value).every((name) => Object.hasOwn(checks, name) && checks[name](value[name]));

const isTurn = (value) =>
  only({ role: isRole, content: isText, label: isText })(value) && "role" in value && "content" in value;
const isNumber = orNull(Number.isFinite);
const isWhole = orNull(Number.isSafeInteger);

const isShared = only({
  model: isText,
  system: isText,
  settings: listOf(isObject, 1, MOST_SETTINGS),
  sampling: only({ temperature: isNumber, top_p: isNumber, max_tokens: isWhole, seed: isWhole }),
  reward: orNull(isText),
  gold: orNull(isText),
  trace: isFlag,
  oneByOne: isFlag,
  turns: listOf(isTurn, 0, MOST_TURNS),
  draft: isText,
});

/**
 * The fragment for what `shared` of model/session.js returns: JSON in base64url.
 * @param {object} state
 * @returns {string}
 */
export function encode(state) {
  const bytes = new TextEncoder().encode(JSON.stringify(state, wellFormed));
  let binary = "";
  for (const byte of bytes) binary += String.fromCharCode(byte);
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

/**
 * What a fragment holds, or null where it is no link of this page. Names in it may be unknown to the server.
 * @param {string} fragment without the `#`
 * @returns {Record<string, any> | null}
 */
export function decode(fragment) {
  if (fragment.length > LONGEST_LINK || !/^[\w-]+$/.test(fragment)) return null;
  try {
    const binary = atob(fragment.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (byte) => byte.charCodeAt(0));
    const state = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
    return isBounded(state, DEEPEST) && isShared(state) ? state : null;
  } catch {
    return null;
  }
}

/** Half of a surrogate pair has no bytes in UTF-8. */
function wellFormed(_name, value) {
  return isText(value) ? value.replace(/\p{Surrogate}/gu, "\ufffd") : value;
}

function isBounded(value, depth) {
  if (isText(value)) return value.length <= LONGEST_TEXT;
  if (typeof value !== "object" || value === null) return true;
  return (
    depth > 0 &&
    Object.entries(value).every(
      ([name, part]) => !REFUSED.has(name) && name.length <= LONGEST_TEXT && isBounded(part, depth - 1),
    )
  );
}
