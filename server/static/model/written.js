// Values of fields as text in a box, and back.

import { problem } from "./validate.js";

/**
 * A value as it stands in the field's box.
 * @param {import("./schema.js").Field} field
 * @param {any} value
 * @returns {string}
 */
export function written(field, value) {
  if (value === undefined || value === null) return "";
  if (field.kind === "json") return JSON.stringify(value, null, 2);
  if (field.kind === "list")
    return value.map((each) => (isTexts(field) ? escaped(each) : String(each))).join(separator(field));
  return field.kind === "text" ? escaped(String(value)) : String(value);
}

/**
 * What a text in the field's box means; an empty one is the default.
 * @param {import("./schema.js").Field} field
 * @param {string} text
 * @returns {{value?: any, error: string|null}}
 */
export function read(field, text) {
  if (text.trim() === "" && (field.kind !== "text" || text === "")) {
    return field.required ? { error: "must be given" } : { value: undefined, error: null };
  }
  const value = valueOf(field, text);
  if (value === undefined) return { error: field.kind === "json" ? "is no valid JSON" : "must be a number" };
  return { value, error: problem(field.schema, value, field.definitions) };
}

/** What is separated in the box of a list: texts by lines, numbers by commas. */
export function isTexts(field) {
  return field.item?.type === "string";
}

function separator(field) {
  return isTexts(field) ? "\n" : ", ";
}

function valueOf(field, text) {
  if (field.kind === "json") return parsed(text);
  if (field.kind === "number" || field.kind === "integer") return number(text);
  if (field.kind === "list") return list(field, text);
  return field.kind === "text" ? unescaped(text) : text;
}

function list(field, text) {
  if (isTexts(field))
    return text
      .split("\n")
      .filter((line) => line !== "")
      .map(unescaped);
  const numbers = text
    .split(/[\s,;]+/)
    .filter(Boolean)
    .map(number);
  return numbers.includes(undefined) ? undefined : numbers;
}

function number(text) {
  const value = Number(text);
  return text.trim() === "" || Number.isNaN(value) ? undefined : value;
}

/** The JSON value of a text; undefined where it is none. */
export function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

const ESCAPES = { "\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\" };
const MEANT = Object.fromEntries(Object.entries(ESCAPES).map(([meant, code]) => [code, meant]));

/** One line that shows line ends and tabs as \n and \t, for these are what separators are made of. */
function escaped(text) {
  return text.replace(/[\n\t\r\\]/g, (mark) => ESCAPES[mark]);
}

function unescaped(text) {
  return text.replace(/\\[ntr\\]/g, (code) => MEANT[code]);
}
