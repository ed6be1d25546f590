import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import { Api, ApiError } from "../../../server/static/net/api.js";
import { event, listen, open, sendJson } from "./local_server.js";

const ASK = { model: "demo", messages: [{ role: "user", content: "Rain? 🌧" }], stream: true };

async function failure(promise) {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  return assert.fail("it did not fail");
}

async function all(stream) {
  const got = [];
  for await (const chunk of stream) got.push(chunk);
  return got;
}

/** What the API says of one answer. */
async function refused(t, status, headers, text) {
  const origin = await listen(t, (_, response) => response.writeHead(status, headers).end(text));
  return failure(new Api(origin).get("/v1/models"));
}

test("the key travels as a bearer token, and only if there is one", async (t) => {
  const seen = [];
  const origin = await listen(t, ({ headers }, response) => {
    seen.push(headers.authorization);
    sendJson(response, {});
  });
  const api = new Api(origin);
  await api.get("/v1/models");
  api.key = "secret-1";
  await api.get("/v1/models");
  await api.post("/v1/score", {});
  api.key = null;
  await api.get("/v1/models");
  assert.deepEqual(seen, [undefined, "Bearer secret-1", "Bearer secret-1", undefined]);
});

test("a key that no header can hold is a wrong key, not a server that is gone", async (t) => {
  const origin = await listen(t, (_, response) => sendJson(response, {}));
  const api = new Api(origin);
  for (const key of ["schlüssel", "two words", "new\nline", "🔑"]) {
    api.key = key;
    const error = await failure(api.get("/v1/models"));
    assert.deepEqual([error.kind, error.status], ["http", 401]);
  }
});

test("post sends JSON and reads JSON", async (t) => {
  const origin = await listen(t, ({ path, headers, body }, response) => {
    sendJson(response, { path, type: headers["content-type"], body: JSON.parse(body) });
  });
  const got = await new Api(origin).post("/v1/x", { text: "naïve 🌧" });
  assert.deepEqual(got, { path: "/v1/x", type: "application/json", body: { text: "naïve 🌧" } });
});

test("an error tells what the server says", async (t) => {
  const error = { message: "unknown strategy 'nope'", type: "x", param: "decoding.strategy", code: "invalid_value" };
  const told = await refused(t, 400, { "x-request-id": "abc" }, JSON.stringify({ error }));
  assert.ok(told instanceof ApiError);
  assert.deepEqual(
    { ...told, message: told.message },
    {
      message: "unknown strategy 'nope'",
      name: "ApiError",
      kind: "http",
      status: 400,
      code: "invalid_value",
      param: "decoding.strategy",
      retryAfter: null,
      requestId: "abc",
    },
  );
});

test("Retry-After is seconds or a date", async (t) => {
  const wait = async (value) => (await refused(t, 503, { "retry-after": value }, "{}")).retryAfter;
  assert.equal(await wait("17"), 17);
  const date = await wait(new Date(Date.now() + 60_000).toUTCString());
  assert.ok(date > 50 && date <= 60, `${date}`);
  assert.equal(await wait("Sun, 06 Nov 1994 08:49:37 GMT"), 0);
  assert.equal(await wait("soon"), null);
});

test("an error that is not in the API's form gives what is known", async (t) => {
  const page = await refused(t, 502, {}, `<html>\n  <h1>Bad  Gateway</h1>${"x".repeat(999)}`);
  assert.match(page.message, /status 502: <html> <h1>Bad Gateway<\/h1>x+…$/);
  assert.ok(page.message.length < 300);
  assert.match((await refused(t, 500, {}, "")).message, /status 500$/);
  for (const text of ["null", "[]", '{"error": null}', '{"error": "x"}', '{"error": {"message": 5, "code": []}}']) {
    const told = await refused(t, 418, {}, text);
    assert.equal(told.kind, "http");
    assert.match(told.message, /status 418/);
    assert.equal(told.code, null);
  }
});

test("an answer that is no JSON is garbled", async (t) => {
  const told = await refused(t, 200, {}, "<html>hello");
  assert.equal(told.kind, "garbled");
  assert.match(told.message, /<html>hello/);
});

test("a server that is not there is gone", async () => {
  const server = createServer();
  await new Promise((resolve) => server.listen(0, "127.0.0.1", () => resolve(null)));
  const { port } = /** @type {import("node:net").AddressInfo} */ (server.address());
  await new Promise((resolve) => server.close(resolve));
  const api = new Api(`http://127.0.0.1:${port}`);
  for (const told of [await failure(api.get("/v1/models")), await failure(all(api.stream(ASK)))]) {
    assert.equal(told.kind, "gone");
    assert.match(told.message, /cannot be reached/);
  }
});

test("a stream yields its chunks", async (t) => {
  let asked;
  const origin = await listen(t, ({ path, body }, response) => {
    asked = { path, body: JSON.parse(body) };
    open(response);
    response.end(event({ a: 1 }) + ": keep-alive\n\n" + event({ b: "🌧" }) + event("[DONE]"));
  });
  assert.deepEqual(await all(new Api(origin).stream(ASK)), [{ a: 1 }, { b: "🌧" }]);
  assert.deepEqual(asked, { path: "/v1/chat/completions", body: ASK });
});

test("an error event, a cut and garbage end a stream in their own ways", async (t) => {
  const error = { message: "the guide 'x' failed", param: null, code: "guide_failed" };
  const ends = { error: event({ error }) + event("[DONE]"), cut: "data: {", garbled: event("{broken") };
  const origin = await listen(t, ({ headers }, response) => {
    open(response);
    response.end(event({ a: 1 }) + ends[headers.authorization.slice("Bearer ".length)]);
  });
  const api = new Api(origin);
  for (const [key, kind] of [
    ["error", "http"],
    ["cut", "cut"],
    ["garbled", "garbled"],
  ]) {
    api.key = key;
    const stream = api.stream(ASK);
    assert.deepEqual((await stream.next()).value, { a: 1 });
    const told = await failure(stream.next());
    assert.ok(told instanceof ApiError);
    assert.deepEqual([told.kind, told.requestId], [kind, "r1"]);
    if (key === "error") assert.deepEqual([told.message, told.code, told.status], [error.message, error.code, null]);
  }
});

test("a connection that breaks in a stream is gone", async (t) => {
  const origin = await listen(t, (_, response) => {
    open(response);
    response.write(event({ a: 1 }), () => response.socket.resetAndDestroy());
  });
  const stream = new Api(origin).stream(ASK);
  const told = await failure(all(stream));
  assert.equal(told.kind, "gone");
  assert.match(told.message, /lost/);
});

test("a stream that is none is garbled", async (t) => {
  const origin = await listen(t, (_, response) => sendJson(response, { choices: [] }));
  const told = await failure(all(new Api(origin).stream(ASK)));
  assert.equal(told.kind, "garbled");
  assert.match(told.message, /application\/json/);
});

test("an abort passes as it is, before the answer and in it", async (t) => {
  const origin = await listen(t, ({ path }, response) => {
    if (path === "/v1/silent") return;
    open(response);
    response.write(event({ a: 1 }));
  });
  const api = new Api(origin);
  const before = new AbortController();
  const silent = api.get("/v1/silent", before.signal);
  setTimeout(() => before.abort(), 20);
  assert.equal((await failure(silent)).name, "AbortError");
  const during = new AbortController();
  const stream = api.stream(ASK, during.signal);
  await stream.next();
  during.abort();
  assert.equal((await failure(stream.next())).name, "AbortError");
});

test("a stream that is left closes the connection", async (t) => {
  let closed;
  const gone = new Promise((resolve) => (closed = resolve));
  const origin = await listen(t, (_, response) => {
    response.on("close", closed);
    open(response);
    response.write(event({ a: 1 }));
  });
  for await (const chunk of new Api(origin).stream(ASK)) {
    assert.deepEqual(chunk, { a: 1 });
    break;
  }
  await gone;
});

test("scores come in order, null where they are no number", async (t) => {
  let asked;
  const origin = await listen(t, ({ path, body }, response) => {
    asked = { path, ...JSON.parse(body) };
    const data = [
      { index: 2, score: 0.5 },
      { index: 0, score: -1 },
      { index: 1, score: null },
      { index: 9, score: 9 },
    ];
    sendJson(response, { data });
  });
  const conversations = ["a", "b", "c", "d"].map((content) => [{ role: "assistant", content }]);
  assert.deepEqual(await new Api(origin).score("positivity", conversations), [-1, null, 0.5, null]);
  assert.deepEqual(asked, { path: "/v1/score", model: "positivity", conversations });
});
