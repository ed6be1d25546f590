// Draws that are the same in every run.

/**
 * A source of whole numbers: each call gives one below its argument (mulberry32).
 * @param {number} seed
 * @returns {(below: number) => number}
 */
export function numbers(seed) {
  let state = seed;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) % below;
  };
}

const ODD = ["'", '"', "\\", "$", "`", "!", "\n", "\r", "\t", "\0", "\u001b", "\u0085", "\u009b", "\u2028", "\u202e"];
const LETTERS = [
  ..."az09 {}[]()#%&;|<>*?~^=@-",
  "é",
  "ß",
  "雨",
  "ש",
  "👩‍👩‍👧",
  "🌧",
  "\ufeff",
  "\u007f",
  "\\u0027",
  "${HOME}",
];

/** Text of up to `most` pieces that shells, Python, JSON and HTML could take for something else. */
export function oddText(draw, most) {
  const pieces = [...ODD, ...LETTERS];
  return Array.from({ length: draw(most + 1) }, () => pieces[draw(pieces.length)]).join("");
}
