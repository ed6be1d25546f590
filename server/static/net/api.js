// Requests to the server, and what goes wrong on the way.

import { StreamError, events } from "./events.js";

/**
 * A request that failed: `kind` is "http" (the server refused it or broke off with an error), "gone" (it cannot be
 * reached), "garbled" or "cut" (what it sent cannot be read).
 */
export class ApiError extends Error {
  /**
   * @param {string} message
   * @param {{kind: "http" | "gone" | "garbled" | "cut", status?: number | null, code?: string | null,
   *   param?: string | null, retryAfter?: number | null, requestId?: string | null}} told
   *   `retryAfter` in seconds
   */
  constructor(message, { kind, status = null, code = null, param = null, retryAfter = null, requestId = null }) {
    super(message);
    this.name = "ApiError";
    this.kind = kind;
    this.status = status;
    this.code = code;
    this.param = param;
    this.retryAfter = retryAfter;
    this.requestId = requestId;
  }
}

/** The server's HTTP API. Requests that are aborted reject with the signal's own reason. */
export class Api {
  /** @param {string} [base] origin of the server; "" is the page's own */
  constructor(base = "") {
    this.base = base;
    /** @type {string | null} the API key, kept here and nowhere else */
    this.key = null;
  }

  /**
   * GETs JSON.
   * @param {string} path
   * @param {AbortSignal} [signal]
   */
  async get(path, signal) {
    return json(await this.#answer(path, { signal }), signal);
  }

  /**
   * POSTs JSON and returns JSON.
   * @param {string} path
   * @param {object} body
   * @param {AbortSignal} [signal]
   */
  async post(path, body, signal) {
    return json(await this.#answer(path, posted(body, signal)), signal);
  }

  /**
   * Streams a chat completion, chunk by chunk; an error event ends it.
   * @param {object} body a request with `stream: true`
   * @param {AbortSignal} [signal]
   * @returns {AsyncGenerator<Record<string, any>, void, void>}
   */
  async *stream(body, signal) {
    const response = await this.#answer("/v1/chat/completions", posted(body, signal));
    const requestId = response.headers.get("x-request-id");
    const type = response.headers.get("content-type") ?? "nothing";
    if (!type.startsWith("text/event-stream") || response.body === null) {
      throw new ApiError(`The server sent ${type} where a stream was expected.`, { kind: "garbled", requestId });
    }
    try {
      for await (const chunk of events(response.body)) {
        if (chunk.error) throw new ApiError(...told(chunk.error, "The server broke off.", { requestId }));
        yield chunk;
      }
    } catch (error) {
      if (error instanceof StreamError) throw new ApiError(error.message, { kind: error.kind, requestId });
      throw unreachable(error, signal, "The connection to the server was lost.", requestId);
    }
  }

  /**
   * What a guide says of conversations that end with an answer, in their order; null where it is no number.
   * @param {string} model name of a guide that scores answers
   * @param {{role: string, content: string}[][]} conversations
   * @param {AbortSignal} [signal]
   * @returns {Promise<(number | null)[]>}
   */
  async score(model, conversations, signal) {
    const { data } = await this.post("/v1/score", { model, conversations }, signal);
    const scores = new Map(Array.isArray(data) ? data.map((entry) => [entry?.index, entry?.score]) : []);
    return conversations.map((_, index) => (Number.isFinite(scores.get(index)) ? scores.get(index) : null));
  }

  /** The response to a request that was not refused. */
  async #answer(path, options) {
    const headers = new Headers(options.headers);
    if (this.key) headers.set("authorization", `Bearer ${checked(this.key)}`);
    let response;
    try {
      response = await fetch(this.base + path, { ...options, headers });
    } catch (error) {
      throw unreachable(error, options.signal, "The server cannot be reached.", null);
    }
    if (!response.ok) throw await refusal(response, options.signal);
    return response;
  }
}

function posted(body, signal) {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body), signal };
}

/** The key as it may stand in a header, where other characters would look like a network failure. */
function checked(key) {
  if (/^[\x21-\x7e]+$/.test(key)) return key;
  throw new ApiError("The API key has characters that no key has.", { kind: "http", status: 401 });
}

/** An aborted request's own reason, or the network's failure in plain words. */
function unreachable(error, signal, message, requestId) {
  if (error instanceof ApiError || signal?.aborted) return error;
  return new ApiError(message, { kind: "gone", requestId });
}

async function json(response, signal) {
  const text = await read(response, signal);
  try {
    return JSON.parse(text);
  } catch {
    const requestId = response.headers.get("x-request-id");
    const message = `The server sent something that is no JSON: ${excerpt(text)}`;
    throw new ApiError(message, { kind: "garbled", status: response.status, requestId });
  }
}

async function read(response, signal) {
  try {
    return await response.text();
  } catch (error) {
    throw unreachable(error, signal, "The connection to the server was lost.", response.headers.get("x-request-id"));
  }
}

async function refusal(response, signal) {
  const text = await read(response, signal);
  let error;
  try {
    error = JSON.parse(text)?.error;
  } catch {
    error = null;
  }
  const says = text.trim() ? `: ${excerpt(text)}` : "";
  return new ApiError(
    ...told(error, `The server answered with status ${response.status}${says}`, {
      status: response.status,
      retryAfter: seconds(response.headers.get("retry-after")),
      requestId: response.headers.get("x-request-id"),
    }),
  );
}

/**
 * An ApiError's arguments from the `error` of a body.
 * @returns {[string, any]}
 */
function told(error, otherwise, known) {
  const text = (value) => (typeof value === "string" ? value : null);
  return [
    text(error?.message) || otherwise,
    { kind: "http", code: text(error?.code), param: text(error?.param), ...known },
  ];
}

/** Seconds that a Retry-After asks to wait: a number, or an HTTP date. */
function seconds(header) {
  if (header === null) return null;
  const wait = /^\s*\d+\s*$/.test(header) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isNaN(wait) ? null : Math.max(0, wait);
}

function excerpt(text) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > 200 ? `${line.slice(0, 200)}…` : line;
}
