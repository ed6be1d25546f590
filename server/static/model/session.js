// What the page works on: its state, and the actions that change it.

/**
 * @typedef {{id: string, decoding: Record<string, any>}} Setting one column: `decoding` as the request has it
 * @typedef {{role: "user" | "assistant", content: string, label?: string}} Turn
 * @typedef {Record<"temperature" | "top_p" | "max_tokens" | "seed", number | null>} Sampling
 * @typedef {{model: string, system: string, settings: Setting[], sampling: Sampling, reward: string | null,
 *   gold: string | null, trace: boolean, oneByOne: boolean, turns: Turn[], draft: string, adopted: string | null,
 *   nextId: number}} State `adopted`: the setting whose answer the conversation goes on with
 */

/** Columns of a page. */
export const MOST_SETTINGS = 4;
/** Turns in a link. */
export const MOST_TURNS = 64;
/** Characters of a text in a link. */
export const LONGEST_TEXT = 100_000;

const PATCHED = new Set(["model", "system", "sampling", "reward", "gold", "trace", "oneByOne", "draft"]);
const SAMPLING = { temperature: null, top_p: null, max_tokens: 100, seed: 1 };
const RANGES = { temperature: [0, 2], top_p: [0.01, 1], max_tokens: [1, 100_000], seed: [0, 2 ** 31] };

/**
 * The state of a page that was just opened.
 * @param {string[]} models
 * @param {Record<string, any>[]} settings one to four decoding objects
 * @returns {State}
 */
export function initial(models, settings) {
  const state = {
    model: models[0] ?? "",
    system: "",
    settings: [],
    sampling: { ...SAMPLING },
    reward: null,
    gold: null,
    trace: true,
    oneByOne: false,
    turns: [],
    draft: "",
    adopted: null,
    nextId: 1,
  };
  return { ...state, ...numbered(state, settings) };
}

const ACTIONS = {
  patch(state, { changes }) {
    if (!Object.keys(changes).every((name) => PATCHED.has(name))) return state;
    const sampling = { ...state.sampling, ...changes.sampling };
    return { ...state, ...changes, sampling };
  },

  "add-setting"(state, { decoding }) {
    if (state.settings.length >= MOST_SETTINGS) return state;
    const { settings, nextId } = numbered(state, [decoding]);
    return { ...state, settings: [...state.settings, ...settings], nextId };
  },

  "remove-setting"(state, { id }) {
    const settings = state.settings.filter((setting) => setting.id !== id);
    if (settings.length === 0 || settings.length === state.settings.length) return state;
    return { ...state, settings, adopted: state.adopted === id ? null : state.adopted };
  },

  "change-setting"(state, { id, decoding }) {
    if (!has(state, id)) return state;
    return { ...state, settings: state.settings.map((setting) => (setting.id === id ? { id, decoding } : setting)) };
  },

  adopt(state, { id }) {
    return id === null || has(state, id) ? { ...state, adopted: id } : state;
  },

  ask(state, { content, answer }) {
    if (!content.trim() || (answer && state.turns.at(-1)?.role !== "user")) return state;
    const answered = answer ? [{ role: "assistant", content: answer.content, label: answer.label }] : [];
    return { ...state, turns: [...state.turns, ...answered, { role: "user", content }], draft: "", adopted: null };
  },

  "edit-turn"(state, { index, content }) {
    if (state.turns[index]?.role !== "user" || !content.trim()) return state;
    return { ...state, turns: [...state.turns.slice(0, index), { role: "user", content }], adopted: null };
  },

  preset(state, { preset }) {
    const { system = "", prompt, sampling, settings } = preset;
    if (settings.length === 0 || settings.length > MOST_SETTINGS) return state;
    const given = { system, sampling: { ...SAMPLING, ...sampling }, draft: prompt };
    return { ...state, ...given, ...numbered(state, settings), turns: [], adopted: null };
  },

  load(state, { state: loaded }) {
    return loaded;
  },

  clear(state) {
    return { ...state, turns: [], adopted: null };
  },
};

/**
 * The state after an action; one that may not be leaves it as it is.
 *
 * Actions: `patch` (changes), `add-setting` (decoding), `remove-setting` (id), `change-setting` (id, decoding), `adopt`
 * (id or null), `ask` (content, answer: {content, label} or null: what the conversation goes on with), `edit-turn`
 * (index of a user's turn, content; what follows it goes), `preset` (preset), `load` (state) and `clear`.
 * @param {State} state
 * @param {{type: string, [field: string]: any}} action
 * @returns {State}
 */
export function reduce(state, action) {
  return Object.hasOwn(ACTIONS, action.type) ? ACTIONS[action.type](state, action) : state;
}

/**
 * The conversation as a request has it.
 * @param {State} state
 * @returns {{role: string, content: string}[]}
 */
export function messages(state) {
  const system = state.system.trim() ? [{ role: "system", content: state.system }] : [];
  return [...system, ...state.turns.map(({ role, content }) => ({ role, content }))];
}

/**
 * What a link holds of the state: the end of a conversation that is too long for it, and the beginning of such a text.
 * @param {State} state
 */
export function shared(state) {
  const { model, settings, sampling, reward, gold, trace, oneByOne } = state;
  const recent = state.turns.slice(-MOST_TURNS);
  const turns = recent[0]?.role === "assistant" ? recent.slice(1) : recent;
  return {
    model,
    system: cut(state.system),
    settings: settings.map(({ decoding }) => decoding),
    sampling,
    reward,
    gold,
    trace,
    oneByOne,
    turns: turns.map((turn) => ({ ...turn, content: cut(turn.content) })),
    draft: cut(state.draft),
  };
}

/**
 * The state that a link stands for, as far as this server has what it names.
 * @param {Record<string, any>} link as share/link.js decodes it
 * @param {{models: string[], strategies: {name: string}[], guides: {name: string}[]}} catalogue
 * @returns {State}
 */
export function restored(link, { models, strategies, guides }) {
  const served = (decoding) => strategies.some(({ name }) => name === (decoding.strategy ?? "sample"));
  const guide = (name) => (guides.some((each) => each.name === name) ? name : null);
  const settings = (link.settings ?? []).filter(served).slice(0, MOST_SETTINGS);
  const state = initial(models, settings.length ? settings : [{ strategy: "sample" }]);
  return {
    ...state,
    model: models.includes(link.model) ? link.model : state.model,
    system: link.system ?? "",
    sampling: { ...state.sampling, ...bounded(link.sampling ?? {}) },
    reward: guide(link.reward),
    gold: guide(link.gold),
    trace: link.trace ?? state.trace,
    oneByOne: link.oneByOne ?? state.oneByOne,
    turns: link.turns ?? [],
    draft: link.draft ?? "",
  };
}

function has(state, id) {
  return state.settings.some((setting) => setting.id === id);
}

/** New settings of these decodings, and the number that the next one gets. */
function numbered({ nextId }, decodings) {
  const settings = decodings.map((decoding, index) => ({ id: `s${nextId + index}`, decoding }));
  return { settings, nextId: nextId + settings.length };
}

function bounded(sampling) {
  const inside = ([name, value]) => [name, value === null ? null : clamp(value, ...RANGES[name])];
  return Object.fromEntries(Object.entries(sampling).map(inside));
}

function clamp(value, least, most) {
  return Math.min(most, Math.max(least, value));
}

function cut(text) {
  return text.slice(0, LONGEST_TEXT);
}
