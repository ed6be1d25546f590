import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { align, beginnings, NOTHING } from "../../../server/static/model/align.js";
import { difference, EDGES, heat, isForced, isForeign, total, visible } from "../../../server/static/model/heat.js";

/** Records of these tokens, given as bytes or text, and the text that they write. */
function records(...tokens) {
  const bytes = tokens.map((token) =>
    typeof token === "string" ? new TextEncoder().encode(token) : Uint8Array.from(token),
  );
  return bytes.map((each) => ({ text: new TextDecoder("utf-8", { ignoreBOM: true }).decode(each) }));
}

/** `text` cut into tokens of the given numbers of bytes, the rest in one. */
function cut(text, ...sizes) {
  const bytes = [...new TextEncoder().encode(text)];
  const tokens = sizes.map((size) => bytes.splice(0, size));
  return records(...tokens, ...(bytes.length ? [bytes] : []));
}

/** Pieces as [number of records, text]. */
function shown(records, text) {
  return align(records, text, NOTHING, true).pieces.map(({ count, start, end }) => [count, text.slice(start, end)]);
}

test("whole tokens have a piece each", () => {
  assert.deepEqual(shown(records("I", "'m", " so", "\n", "  glad"), "I'm so\n  glad"), [
    [1, "I"],
    [1, "'m"],
    [1, " so"],
    [1, "\n"],
    [1, "  glad"],
  ]);
});

test("tokens of parts of a character share one piece, those beside it keep theirs", () => {
  const text = "a 🌳b é";
  assert.deepEqual(shown(cut(text, 1, 2, 1, 2, 1, 1, 1), text), [
    [1, "a"],
    [3, " 🌳"],
    [1, "b"],
    [1, " "],
    [2, "é"],
  ]);
});

test("characters that follow each other in parts are told apart where their bytes leave one way only", () => {
  assert.deepEqual(shown(cut("éñü", 1, 1, 1, 1, 1, 1), "éñü"), [
    [2, "é"],
    [2, "ñ"],
    [2, "ü"],
  ]);
  assert.deepEqual(shown(cut("日本", 1, 1, 1, 1, 1, 1), "日本"), [
    [3, "日"],
    [3, "本"],
  ]);
  assert.deepEqual(shown(cut("日本x", 2, 1, 2, 1, 1), "日本x"), [
    [2, "日"],
    [2, "本"],
    [1, "x"],
  ]);
});

test("bytes that lie in one token and make a character would have been shown as one", () => {
  assert.deepEqual(shown(cut("日😁", 2, 1, 1, 3), "日😁"), [
    [2, "日"],
    [2, "😁"],
  ]);
});

test("characters whose parts could belong to either share a piece", () => {
  // three tokens for the one and two for the other, or the other way round
  assert.deepEqual(shown(cut("😁👩!", 3, 1, 2, 1, 1, 1), "😁👩!"), [
    [5, "😁👩"],
    [1, "!"],
  ]);
});

test("a token that ends one character and begins the next belongs to both", () => {
  assert.deepEqual(shown(cut("éñ.", 1, 2, 1, 1), "éñ."), [
    [3, "éñ"],
    [1, "."],
  ]);
});

test("every cut of every text into tokens of up to four bytes gives all of the text and all of the records back", () => {
  let state = 7;
  const random = (below) => (state = (state * 48271) % 2147483647) % below;
  for (const text of [
    "a🌳é",
    "👩‍👩‍👧 family",
    "日本語。テキスト",
    "مرحبا بالعالم",
    "na\uFFFDive ☃\uFFFD\uFFFDx",
    "\r\n\t🙂🙂🙂",
  ]) {
    const size = new TextEncoder().encode(text).length;
    for (let round = 0; round < 50; round++) {
      const made = cut(text, ...Array.from({ length: size }, () => 1 + random(4))).filter(
        (record) => record.text !== "",
      );
      const { pieces, found } = align(made, text, NOTHING, true);
      assert.equal(pieces.map(({ start, end }) => text.slice(start, end)).join(""), text);
      assert.equal(found.record, made.length);
      for (const piece of pieces)
        assert.ok(!/^[\uDC00-\uDFFF]|[\uD800-\uDBFF]$/.test(text.slice(piece.start, piece.end)));
    }
  }
});

test("text and records that grow give the pieces that they give at once", () => {
  const text = "So 🌳🌲 é日本 now";
  const made = cut(text, 3, 2, 2, 1, 3, 1, 1, 1, 2, 2, 1, 4);
  const whole = align(made, text, NOTHING, true).pieces;
  for (const [records, letters] of [
    [1, 1],
    [1, 3],
    [3, 2],
    [2, 5],
  ]) {
    const pieces = [];
    let found = NOTHING;
    const characters = [...text];
    for (let at = 0; at * records < made.length || at * letters < characters.length; at++) {
      const step = align(made.slice(0, at * records), characters.slice(0, at * letters).join(""), found);
      pieces.push(...step.pieces);
      found = step.found;
    }
    pieces.push(...align(made, text, found, true).pieces);
    const flat = (list) => list.filter(({ start, end }) => end > start).map(({ start, end }) => [start, end]);
    const cuts = new Set(flat(pieces).map(([, end]) => end));
    assert.equal(flat(pieces).at(-1)[1], text.length);
    for (const { end } of whole) assert.ok(cuts.has(end));
  }
});

test("what is not certain yet waits: a token whose text has not come, a character that may go on", () => {
  assert.deepEqual(align(records("Hello", " there"), "Hello th").pieces.length, 1);
  assert.deepEqual(align(cut("é", 1), "").pieces, []);
  assert.deepEqual(align(cut("a😁👩!", 1, 3, 1, 2).slice(0, 4), "a😁👩").found, { record: 1, at: 1 });
});

test("a stop string cuts the last token, and the end token has no text", () => {
  assert.deepEqual(shown(records("I", " am now", "<|im_end|>"), "I am"), [
    [1, "I"],
    [1, " am"],
    [1, ""],
  ]);
});

test("a mark that is not shown in the middle costs nothing but its own place", () => {
  assert.deepEqual(shown(records("a", "<|mark|>", " b"), "a b"), [
    [1, "a"],
    [1, ""],
    [1, " b"],
  ]);
});

test("the first token's space may be dropped", () => {
  assert.deepEqual(shown(records(" Hello", " you"), "Hello you"), [
    [1, "Hello"],
    [1, " you"],
  ]);
});

test("text behind the records belongs to none", () => {
  assert.deepEqual(align(records("a"), "abc", NOTHING, true).found, { record: 1, at: 1 });
});

test("beginnings go to the end of each token, and not into a character", () => {
  const run = { prefix: "So: ", text: "aé b", tokens: cut("aé b", 1, 1, 1) };
  assert.deepEqual(beginnings(run), ["So: a", "So: a", "So: aé", "So: aé b"]);
  assert.equal(beginnings({ prefix: "", text: "I am", tokens: records("I", " am now", "<|im_end|>") }).at(-1), "I am");
});

const token = (base, steered, source = "steered") => ({ logprob_base: base, logprob_steered: steered, source });

test("a difference is in nats and unknown where either side is", () => {
  assert.equal(difference(token(-2, -0.5)), 1.5);
  assert.equal(difference(token(-2, null)), null);
  assert.equal(difference(token(null, -2)), null);
  assert.equal(total([token(-2, -1), token(-1, -3)]), -1);
  assert.equal(total([token(-2, -1), token(-1, null)]), null);
});

test("classes are symmetric and change at the edges", () => {
  assert.deepEqual(
    [-9, -4, -3.9, -0.1, -0.05, 0, 0.05, 0.1, 0.5, 1, 2, 4].map(heat),
    [-5, -5, -4, -1, 0, 0, 0, 1, 2, 3, 4, 5],
  );
  for (const edge of EDGES) assert.equal(heat(edge), -heat(-edge));
  assert.ok(!Object.is(heat(-0.01), -0));
});

test("tokens of another model and forced ones are marked, sure ones of a sure base are not", () => {
  assert.deepEqual(
    ["base", "steered", "nudge", "draft"].map((source) => isForeign(token(-1, -1, source))),
    [false, false, true, true],
  );
  assert.equal(isForced(token(-3, -0.0001)), true);
  assert.equal(isForced(token(-0.01, -0.0001)), false);
  assert.equal(isForced(token(-3, -0.1)), false);
  assert.equal(isForced(token(-3, null)), false);
});

test("white space is made visible", () => assert.equal(visible(" a\n\t\r"), "␣a↵⇥␍"));

/** Relative luminance of #rrggbb as WCAG 2.2 defines it. */
function luminance(colour) {
  const [red, green, blue] = [1, 3, 5].map((at) => {
    const share = parseInt(colour.slice(at, at + 2), 16) / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

function contrast(one, other) {
  const [dark, light] = [luminance(one), luminance(other)].sort((a, b) => a - b);
  return (light + 0.05) / (dark + 0.05);
}

test("text is read on every class of colour, light and dark", () => {
  const styles = new URL("../../../server/static/styles/", import.meta.url);
  const pair = (text, name) => text.match(new RegExp(`--${name}: light-dark\\((#\\w{6}), (#\\w{6})\\)`)).slice(1);
  const ink = pair(readFileSync(new URL("base.css", styles), "utf8"), "ink");
  const tokens = readFileSync(new URL("tokens.css", styles), "utf8");
  for (const side of ["less", "more"]) {
    for (const strength of [1, 2, 3, 4, 5]) {
      const shades = pair(tokens, `tokens-${side}-${strength}`);
      shades.forEach((shade, theme) => assert.ok(contrast(shade, ink[theme]) >= 4.5, `${side} ${strength} ${shade}`));
    }
  }
});
