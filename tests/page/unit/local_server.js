// A server of this test's own, and what it writes.

import { createServer } from "node:http";
import { text } from "node:stream/consumers";

/**
 * Listens until the test ends.
 * @param {import("node:test").TestContext} t
 * @param {(request: {path: string, headers: Record<string, string>, body: string},
 *   response: import("node:http").ServerResponse) => void} handler
 * @returns {Promise<string>} the origin
 */
export async function listen(t, handler) {
  const server = createServer(async (request, response) => {
    const body = await text(request);
    handler({ path: request.url, headers: /** @type {any} */ (request.headers), body }, response);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(null)));
  t.after(() => {
    server.closeAllConnections();
    server.close();
  });
  return `http://127.0.0.1:${/** @type {import("node:net").AddressInfo} */ (server.address()).port}`;
}

/** The text of one event. */
export function event(data) {
  return `data: ${typeof data === "string" ? data : JSON.stringify(data)}\n\n`;
}

/** Begins a stream of events. */
export function open(response, headers = {}) {
  response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8", "x-request-id": "r1", ...headers });
  response.flushHeaders();
}

/** Answers with JSON. */
export function sendJson(response, value, status = 200, headers = {}) {
  response.writeHead(status, { "content-type": "application/json", ...headers });
  response.end(JSON.stringify(value));
}
