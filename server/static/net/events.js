// Server-sent events of a streamed answer, from the bytes of its body.

import { createParser } from "../lib/eventsource-parser.js";

const DONE = "[DONE]";

/** A stream that cannot be read to its end: `kind` is "garbled" (no JSON object) or "cut" (it ended too early). */
export class StreamError extends Error {
  /**
   * @param {"garbled" | "cut"} kind
   * @param {string} message
   */
  constructor(kind, message) {
    super(message);
    this.name = "StreamError";
    this.kind = kind;
  }
}

/**
 * Yields the JSON objects of a stream's `data:` events in order, up to `[DONE]`.
 *
 * Leaving the loop early cancels the body, and with it the request. Failures of the body itself pass through.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<Record<string, any>, void, void>}
 * @throws {StreamError}
 */
export async function* events(body) {
  /** @type {string[]} */
  const arrived = [];
  const parser = createParser({ onEvent: (event) => arrived.push(event.data) });
  const decoder = new TextDecoder();
  const reader = body.getReader();
  let complete = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new StreamError("cut", "The stream ended before the answer was complete.");
      parser.feed(decoder.decode(value, { stream: true }));
      for (const data of arrived.splice(0)) {
        if (data === DONE) {
          complete = true;
          return;
        }
        yield parsed(data);
      }
    }
  } finally {
    // A body that was read to its end keeps the connection for the next request; nobody waits for either.
    if (complete) drain(reader);
    else reader.cancel().catch(ignore);
  }
}

/** @param {string} data */
function parsed(data) {
  let value;
  try {
    value = JSON.parse(data);
  } catch {
    value = null;
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value;
  throw new StreamError("garbled", `The stream holds something that is no JSON object: ${data.slice(0, 80)}`);
}

/** @param {ReadableStreamDefaultReader<Uint8Array>} reader */
async function drain(reader) {
  try {
    while (!(await reader.read()).done);
  } catch (error) {
    ignore(error);
  }
}

/** Takes a failure behind the last event: the answer is complete, or nobody reads it any more. */
function ignore(_error) {}
