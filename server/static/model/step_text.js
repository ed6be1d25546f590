// Labels of steps.

const LETTERS = new Intl.Segmenter(undefined, { granularity: "grapheme" });
const SHOWN = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "⏎" };
const WIDE =
  /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60]|\p{Extended_Pictographic}/u;

/**
 * The beginning of a text on one line, cut to a width, with spaces at its ends and line breaks to be seen.
 * @param {string} text
 * @param {number} width in letters; ideographs and emoji count as two
 * @returns {string}
 */
export function beginning(text, width) {
  let [line, used] = ["", 0];
  // A letter may be several code units; what lies far beyond the width need not be taken apart.
  for (const { segment, index } of LETTERS.segment(text.slice(0, width * 16))) {
    const edge = index === 0 || index + segment.length === text.length;
    const shown = segment === " " && !edge ? " " : (SHOWN[segment] ?? segment);
    used += WIDE.test(segment) ? 2 : 1;
    if (used > width) return `${line.trimEnd()}…`;
    line += shown;
  }
  return line;
}
