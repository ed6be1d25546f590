// Which part of an answer each of its tokens wrote.

const LOST = "\uFFFD"; // in a token's text: bytes that are only a part of a character
const SHORT = -1;

/**
 * `count` records from `first` on wrote `text.slice(start, end)`; more than one where their ends fall into characters.
 * @typedef {{first: number, count: number, start: number, end: number}} Piece
 */

/**
 * As far as the pieces that were found reach.
 * @typedef {{record: number, at: number}} Found
 */

/**
 * Nothing has been found yet.
 * @type {Found}
 */
export const NOTHING = Object.freeze({ record: 0, at: 0 });

/**
 * Find the text of the records behind `found`. What depends on text or records to come is left to a later call.
 *
 * The bytes of a token that cuts characters are unknown: so every place of the text where it may end is followed, and a
 * token's end is certain where one place alone is left.
 * @param {{text: string}[]} records
 * @param {string} text
 * @param {Found} [found]
 * @param {boolean} [ended] no more text or records come
 * @returns {{pieces: Piece[], found: Found}}
 */
export function align(records, text, found = NOTHING, ended = false) {
  // after each token, the places that may be reached and where each was reached from
  const reached = [new Map([[place(found.at, 0), /** @type {number[]} */ ([])]])];
  for (let index = found.record; index < records.length; index++) {
    const next = step([...reached.at(-1).keys()], records[index].text, text, ended);
    if (next === null) break;
    reached.push(next);
  }
  const pieces = [];
  let { record, at } = found;
  for (const [count, places] of possible(reached, ended ? place(text.length, 0) : -1).entries()) {
    const [only] = places;
    if (count === 0 || places.size > 1 || need(only) > 0) continue;
    const [next, end] = [found.record + count, position(only)];
    pieces.push({ first: record, count: next - record, start: at, end });
    [record, at] = [next, end];
  }
  return { pieces, found: { record, at } };
}

/**
 * The answer up to the end of each of its tokens, with what it continues; for a token that ends inside a character, up
 * to that character.
 * @param {{prefix: string, text: string, tokens: {text: string}[]}} run
 * @returns {string[]}
 */
export function beginnings({ prefix, text, tokens }) {
  const { pieces, found } = align(tokens, text, NOTHING, true);
  const open = { count: tokens.length - found.record + 1, start: found.at, end: found.at }; // and one that is left out
  const each = [...pieces, open].flatMap(({ count, start, end }) => [...new Array(count - 1).fill(start), end]);
  return each.slice(0, tokens.length).map((end) => prefix + text.slice(0, end));
}

// A place is a position in the text and the bytes that its character still needs there, in one number.
function place(position, need) {
  return position * 4 + need;
}

function position(place) {
  return Math.floor(place / 4);
}

function need(place) {
  return place % 4;
}

/** The places behind one more token, each with those before it; null: the text does not reach so far yet. */
function step(places, token, text, ended) {
  const next = new Map();
  const short = [];
  for (const from of places) {
    for (const to of behind(from, token, text)) {
      if (to === SHORT) short.push(from);
      else next.set(to, [...(next.get(to) ?? []), from]);
    }
  }
  if (short.length > 0 && !ended) return null;
  if (next.size > 0) return next;
  if (short.length > 0) return new Map([[place(text.length, 0), short]]); // cut by a stop string, or an end token
  for (const from of places) next.set(place(position(from), 0), [from]); // not shown, as the marks of turns are not
  return next;
}

/** The places behind one token from one place, `SHORT` among them where the text may end first. */
function behind(from, token, text) {
  const drops = from === 0 && text !== "" && !text.startsWith(" ");
  const characters = [...(drops && token.startsWith(" ") ? token.slice(1) : token)];
  let places = [from];
  for (const [index, character] of characters.entries()) {
    const isLast = index === characters.length - 1;
    places = [...new Set(places.flatMap((each) => (each === SHORT ? SHORT : read(each, character, isLast, text))))];
  }
  return places;
}

/** The places behind one character of a token. */
function read(from, character, isLast, text) {
  const [at, needed] = [position(from), need(from)];
  if (needed > 0) {
    if (character !== LOST) return [];
    return [needed > 1 ? from - 1 : place(at + String.fromCodePoint(text.codePointAt(at)).length, 0)];
  }
  const stays = character === LOST && text[at - 1] === LOST ? [from] : []; // several tokens may share a lost character
  if (at >= text.length) return [...stays, SHORT];
  if (text.startsWith(character, at)) return [...stays, place(at + character.length, 0)];
  if (character !== LOST || !isLast) return stays;
  const missing = [1, 2, 3].slice(0, bytes(text.codePointAt(at)) - 1);
  return [...stays, ...missing.map((count) => place(at, count))];
}

/** Of each step the places that lie on a way to the last step, and there to `goal` where it was reached. */
function possible(reached, goal) {
  const last = reached.at(-1);
  let ways = new Set(last.has(goal) ? [goal] : last.keys());
  const backwards = [ways];
  for (const step of reached.slice(1).reverse())
    backwards.push((ways = new Set([...ways].flatMap((to) => step.get(to)))));
  return backwards.reverse();
}

/** Bytes of a character in UTF-8. */
function bytes(codePoint) {
  if (codePoint < 0x80) return 1;
  if (codePoint < 0x800) return 2;
  return codePoint < 0x10000 ? 3 : 4;
}
