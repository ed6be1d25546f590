// One streamed answer, from the request to what the judges say of it.

import { ApiError } from "./api.js";

const LATEST_MS = 250;

/** One answer to one setting: it is started once, grows while it streams, and tells its listeners. */
export class Run {
  #abort = new AbortController();
  #listeners = new Set();
  #telling = false;

  /**
   * @param {import("./api.js").Api} api
   * @param {{setting: {id: string, decoding: Record<string, any>}, label: string, request: Record<string, any>,
   *   judges: {reward: string | null, gold: string | null}}} asked
   *   `request` as share/body.js makes it; `judges` name the guides that score the answer
   */
  constructor(api, { setting, label, request, judges }) {
    this.api = api;
    this.id = crypto.getRandomValues(new Uint32Array(2)).join("-");
    this.setting = setting;
    this.label = label;
    this.request = request;
    this.judges = judges;
    /** what the answer continues, or "" */
    this.prefix = request.continue_final_message ? request.messages.at(-1).content : "";
    /** @type {"waiting" | "writing" | "judging" | "done" | "stopped" | "failed"} */
    this.phase = "waiting";
    this.text = "";
    /** @type {Record<string, any>[]} what shaped each token, where it is traced; grows in place */
    this.tokens = [];
    /** @type {string | null} */
    this.finish = null;
    /** @type {Record<string, any> | null} how far a search is */
    this.progress = null;
    /** @type {Record<string, any> | null} */
    this.decoding = null;
    /** @type {Record<string, any> | null} */
    this.usage = null;
    /** @type {{reward: number | null, gold: number | null}} */
    this.rewards = { reward: null, gold: null };
    /** @type {string | null} */
    this.judgeError = null;
    /** @type {ApiError | null} */
    this.error = null;
    /**
     * `performance.now()` of the start, the first and the last text, and the end of the answer, judges aside
     * @type {{began: number | null, first: number | null, last: number | null, ended: number | null}}
     */
    this.timing = { began: null, first: null, last: null, ended: null };
  }

  /** The conversation that is answered, without what the answer continues. */
  get asked() {
    return this.prefix ? this.request.messages.slice(0, -1) : this.request.messages;
  }

  /** Milliseconds of the answer by the server's clock where it told them, else by ours; null before the start. */
  get milliseconds() {
    const total = this.decoding?.milliseconds?.total;
    if (Number.isFinite(total)) return total;
    if (this.timing.began === null) return null;
    return (this.timing.ended ?? performance.now()) - this.timing.began;
  }

  /** Tokens of the answer per second; null where they are not known. */
  get tokensPerSecond() {
    const tokens = this.usage?.completion_tokens;
    const milliseconds = this.milliseconds;
    return Number.isFinite(tokens) && milliseconds > 0 ? (1000 * tokens) / milliseconds : null;
  }

  /** What all models together have done for the answer, or null. */
  get cost() {
    if (!this.decoding?.model_tokens || !this.decoding.forwards) return null;
    return { modelTokens: sum(this.decoding.model_tokens), forwards: sum(this.decoding.forwards) };
  }

  /** Asks for the answer and has it judged; never rejects: what went wrong stands in `error`. */
  async start() {
    if (this.phase !== "waiting" || this.timing.began !== null) return;
    this.timing.began = performance.now();
    try {
      await this.#read();
      await this.#judge();
      this.#turn("done");
    } catch (error) {
      this.timing.ended = performance.now();
      if (this.#abort.signal.aborted) return this.#turn("stopped");
      this.error = error instanceof ApiError ? error : unreadable(error);
      this.#turn("failed");
    }
  }

  /** Stops the answer; what has been written stays. An answer that is being judged is complete, and left unjudged. */
  stop() {
    this.#abort.abort();
    if (this.phase === "waiting" && this.timing.began === null) this.#turn("stopped");
  }

  /**
   * Calls `listener` after changes, once for all that happen within an animation frame.
   * @param {() => void} listener
   * @returns {() => void} ends it
   */
  subscribe(listener) {
    this.#listeners.add(listener);
    return () => this.#listeners.delete(listener);
  }

  async #read() {
    const { signal } = this.#abort;
    for await (const chunk of this.api.stream(this.request, signal)) {
      signal.throwIfAborted(); // what had arrived together with the last text is not wanted any more
      this.#take(chunk);
      this.#changed();
    }
    this.timing.ended = performance.now();
  }

  #take(chunk) {
    for (const choice of chunk.choices ?? []) {
      if (choice.index === 0) this.#grow(choice);
    }
    this.progress = chunk.progress ?? this.progress;
    this.usage = chunk.usage ?? this.usage;
    this.decoding = chunk.decoding ?? this.decoding;
    if (this.tokens.length === 0) append(this.tokens, chunk.decoding?.trace?.[0]);
  }

  #grow(choice) {
    const text = said(choice.delta ?? {});
    if (text) {
      this.text += text;
      this.timing.last = performance.now();
      this.timing.first ??= this.timing.last;
      this.phase = "writing";
    }
    append(this.tokens, choice.trace);
    this.finish = choice.finish_reason ?? this.finish;
  }

  async #judge() {
    const judges = Object.entries(this.judges).filter(([, guide]) => guide);
    if (judges.length === 0) return;
    this.#turn("judging");
    const conversation = [...this.asked, { role: "assistant", content: this.prefix + this.text }];
    await Promise.all(judges.map(([part, guide]) => this.#score(part, guide, conversation)));
  }

  async #score(part, guide, conversation) {
    const { signal } = this.#abort;
    try {
      [this.rewards[part]] = await this.api.score(guide, [conversation], signal);
      this.#changed();
    } catch (error) {
      this.judgeError = signal.aborted ? "stopped before the answer was scored" : `${guide}: ${error.message}`;
    }
  }

  #turn(phase) {
    this.phase = phase;
    this.#changed();
  }

  #changed() {
    if (this.#telling) return;
    this.#telling = true;
    soon(() => {
      this.#telling = false;
      for (const listener of this.#listeners) listener();
    });
  }
}

/** A stream of events that are JSON and yet no chunks. */
function unreadable(error) {
  return new ApiError(`The answer cannot be read: ${error.message}`, { kind: "garbled" });
}

/** What a delta adds to the text; a call of a function is shown as its name and its arguments. */
function said({ content, tool_calls: calls }) {
  const parts = (calls ?? []).map((call) =>
    call.function?.name ? `${call.function.name} ` : call.function?.arguments,
  );
  return (content ?? "") + parts.join("");
}

function append(records, more) {
  for (const record of more ?? []) records.push(record);
}

function sum(numbers) {
  return Object.values(numbers).reduce((total, number) => total + number, 0);
}

/** Calls back at the next frame, or soon where frames stand still, as in a hidden tab; without frames at once. */
function soon(call) {
  if (typeof requestAnimationFrame === "undefined") return queueMicrotask(call);
  const finish = () => {
    cancelAnimationFrame(frame);
    clearTimeout(timer);
    call();
  };
  const frame = requestAnimationFrame(finish);
  const timer = setTimeout(finish, LATEST_MS);
}
