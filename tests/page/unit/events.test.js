import assert from "node:assert/strict";
import { test } from "node:test";

import { StreamError, events } from "../../../server/static/net/events.js";

const SENT = [
  { choices: [{ index: 0, delta: { role: "assistant", content: "" } }] },
  { choices: [{ index: 0, delta: { content: "naïve — 雨 \u2028 שלום" } }] },
  { choices: [{ index: 0, delta: { content: "👩‍👩‍👧 <script>alert('data: x')</script>\r\n\n" } }] },
  { choices: [], progress: { phase: "decode" } },
  { error: { message: "the guide failed", type: "server_error" } },
];
const json = SENT.map((chunk) => JSON.stringify(chunk));
const STREAM = [
  ": keep-alive\n\n",
  `data: ${json[0]}\n\n`,
  `: another comment\r\n\r\ndata: ${json[1]}\r\n\r\n`,
  `id: 7\nevent: chunk\nretry: 10\ndata:${json[2]}\n\n`,
  `data: {"choices":[],\ndata: "progress":{"phase":"decode"}}\n\n`,
  ":\n\n",
  `data: ${json[4]}\r\n\r\n`,
  "data: [DONE]\n\n",
].join("");
const BYTES = new TextEncoder().encode(STREAM);

function bodyOf(...pieces) {
  return new ReadableStream({
    start(controller) {
      for (const piece of pieces) controller.enqueue(piece);
      controller.close();
    },
  });
}

async function all(body) {
  const got = [];
  for await (const chunk of events(body)) got.push(chunk);
  return got;
}

function ofText(text) {
  return bodyOf(new TextEncoder().encode(text));
}

test("a stream cut at every byte gives the same events", async () => {
  for (let at = 0; at <= BYTES.length; at++) {
    assert.deepEqual(await all(bodyOf(BYTES.slice(0, at), BYTES.slice(at))), SENT, `cut at ${at}`);
  }
});

test("a stream that comes byte by byte gives the same events", async () => {
  assert.deepEqual(await all(bodyOf(...[...BYTES].map((byte) => Uint8Array.of(byte)))), SENT);
});

test("a stream that ends anywhere before [DONE] is cut, after the events that were whole", async () => {
  let got = [];
  for (let at = 0; at < BYTES.length - 1; at++) {
    got = [];
    await assert.rejects(
      async () => {
        for await (const chunk of events(bodyOf(BYTES.slice(0, at)))) got.push(chunk);
      },
      (error) => error instanceof StreamError && error.kind === "cut",
      `ends at ${at}`,
    );
    assert.deepEqual(got, SENT.slice(0, got.length));
  }
  assert.equal(got.length, SENT.length);
});

test("what is no JSON object is garbled", async () => {
  for (const data of ["{broken", "", "5", "null", "[1]", '"text"', "[DONE", " [DONE]"]) {
    const garbled = (error) => error instanceof StreamError && error.kind === "garbled";
    await assert.rejects(all(ofText(`data: ${data}\n\ndata: [DONE]\n\n`)), garbled, data);
  }
});

test("the excerpt of a garbled event is short", async () => {
  await assert.rejects(all(ofText(`data: ${"x".repeat(100_000)}\n\n`)), ({ message }) => message.length < 200);
});

test("nothing after [DONE] counts", async () => {
  assert.deepEqual(await all(ofText('data: {"a":1}\n\ndata: [DONE]\n\ndata: {"b":2}\n\ndata: {broken\n\n')), [
    { a: 1 },
  ]);
});

test("the answer is complete at [DONE], though the body never ends", async () => {
  let cancelled = false;
  const body = new ReadableStream({
    start: (controller) => controller.enqueue(new TextEncoder().encode('data: {"a":1}\n\ndata: [DONE]\n\n')),
    cancel: () => void (cancelled = true),
  });
  assert.deepEqual(await all(body), [{ a: 1 }]);
  assert.equal(cancelled, false);
});

test("a reader that is abandoned cancels the body", async () => {
  const reasons = [];
  const body = new ReadableStream({
    start: (controller) => controller.enqueue(new TextEncoder().encode('data: {"a":1}\n\ndata: {"a":2}\n\n')),
    cancel: (reason) => void reasons.push(reason),
  });
  const reader = events(body);
  assert.deepEqual((await reader.next()).value, { a: 1 });
  await reader.return();
  assert.equal(reasons.length, 1);
  assert.equal((await reader.next()).done, true);
});

test("a failure of the body passes through", async () => {
  const failure = new TypeError("terminated");
  const body = new ReadableStream({
    start(controller) {
      controller.enqueue(new TextEncoder().encode('data: {"a":1}\n\n'));
    },
    pull: (controller) => controller.error(failure),
  });
  const reader = events(body);
  await reader.next();
  await assert.rejects(reader.next(), (error) => error === failure);
});
