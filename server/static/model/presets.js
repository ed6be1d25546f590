// Comparisons worth seeing, each made of the guides that the server has, or left out where these are missing.

/**
 * @typedef {object} Preset
 * @property {string} title
 * @property {string} summary what to look at
 * @property {string} [system]
 * @property {string} prompt
 * @property {{temperature?: number, top_p?: number, max_tokens?: number, seed?: number}} sampling
 * @property {Record<string, any>[]} settings
 */

const SAMPLE = { strategy: "sample" };
const SAMPLING = { temperature: 0.8, max_tokens: 40, seed: 7 };

/**
 * The comparisons that this server can run.
 * @param {import("./catalogue.js").Catalogue} catalogue
 * @returns {Preset[]}
 */
export function presets(catalogue) {
  const start = (name, changes = {}) => (isUsable(catalogue, name) ? { ...catalogue.start(name), ...changes } : null);
  return PRESETS.map((make) => make(start))
    .filter((preset) => preset.settings.every((setting) => setting !== null))
    .map((preset) => ({ ...preset, sampling: { ...SAMPLING, ...preset.sampling } }));
}

function isUsable(catalogue, name) {
  return catalogue.strategy(name) !== undefined && catalogue.missing(name) === null;
}

const RULES = ["argmax", { rule: "soft", temperature: 0.2 }, "mbr", { rule: "rbon", alpha: 0.02 }];
const WISH = "I like short and cheerful answers.";
const VOICES = {
  shoppers: { system: "You speak for people who shop at weekends." },
  "shop workers": { system: "You speak for people who work in shops and want a free day." },
};

/**
 * Strengths are those that move the demo's guides well without breaking the text.
 * @type {((start: (name: string, changes?: object) => Record<string, any> | null) => any)[]}
 */
const PRESETS = [
  (start) => ({
    title: "The best of eight",
    summary: "Eight answers are drawn and the reward picks one. Open the candidates to see the seven that lost.",
    prompt: "Tell me about the day your neighbour moved away.",
    settings: [SAMPLE, start("best_of_n", { n: 8 })],
  }),
  (start) => ({
    title: "Weak, medium, strong",
    summary: "One small model leans on the base with more and more weight. The colours show which words it changed.",
    prompt: "Describe a long wait at the airport.",
    settings: [0.3, 1, 2].map((alpha) => start("genarm", { alpha })),
  }),
  (start) => ({
    title: "Who speaks when",
    summary:
      "The aligned model speaks where the base is unsure. Its words are underlined: more of them with a higher gamma.",
    prompt: "My bus was late again. What should I make of it?",
    sampling: { temperature: 0 },
    settings: [0.2, 0.4, 0.7].map((gamma) => start("nudging", { gamma })),
  }),
  (start) => ({
    title: "A direction in the hidden state",
    summary: "One vector is added in the layers of the base: away from it, not at all, towards it.",
    prompt: "How was your holiday?",
    settings: [-3, 0, 3].map((coeff) => start("control_vector", { coeff })),
  }),
  (start) => ({
    title: "Scores of every token",
    summary: "A value head guesses how the answer will end; a reward model reads each candidate. Compare the time.",
    prompt: "Describe a traffic jam in the rain.",
    settings: [SAMPLE, start("cd", { lam: 50, k: 20 }), start("args", { w: 12 })],
  }),
  (start) => ({
    title: "The same reward for less",
    summary: "Both start sixteen answers. One drops the worse half early: look at the tokens that it spends.",
    prompt: "Write two sentences about an old dog.",
    settings: [start("best_of_n", { n: 16 }), start("speculative_rejection", { n: 16, schedule: [8, 16, 24] })],
  }),
  (start) => ({
    title: "Trees",
    summary: "Beams, a tree of drafts and a tree of sampled blocks: open the search to see which branches were cut.",
    prompt: "Write three short sentences about a lake in autumn.",
    settings: [
      start("beam_search", { m: 2, separator: ".", step_tokens: 12 }),
      start("treebon", { layers: 3, children: 2 }),
      start("dts_star", { simulations: 16, block: 10 }),
    ],
  }),
  (start) => ({
    title: "One adapter, several wishes",
    summary: "The adapter has a block for each attribute. The request says how much each of them counts.",
    prompt: "What should I cook tonight?",
    settings: wishes(start("panacea")),
  }),
  (start) => ({
    title: "Many voices",
    summary: "Several communities comment before the answer is written, or one of them shapes it.",
    prompt: "Should shops be open on Sundays?",
    settings: [
      SAMPLE,
      start("pluralism", { mode: "overton", communities: VOICES, max_tokens: 40 }),
      start("pluralism", { mode: "steerable", communities: VOICES, choose: "shop workers", max_tokens: 40 }),
    ],
  }),
  (start) => ({
    title: "Ask for it, or steer towards it",
    summary: "The same wish: in the system message, by a guide at every token, and both.",
    prompt: "I failed my driving test.",
    settings: [
      SAMPLE,
      start("persona", { text: WISH }),
      start("genarm"),
      start("genarm", { prompt: [{ method: "persona", text: WISH }] }),
    ],
  }),
  (start) => ({
    title: "Hard and soft choices",
    summary:
      "The same eight answers, chosen from by four rules: highest reward, by chance, by likeness, by likelihood too.",
    prompt: "Give my garden a name and say why.",
    settings: RULES.map((select) => start("best_of_n", { n: 8, select })),
  }),
  (start) => ({
    title: "In a hurry",
    summary: "Thirty-two answers if there is time. The deadline ends the search with the best so far.",
    prompt: "Tell me something good about Mondays.",
    settings: [1000, 3000, 10000].map((deadline_ms) => start("best_of_n", { n: 32, budget: { deadline_ms } })),
  }),
];

/** All weight on each attribute of an adapter in turn, and the same on all; at most four. */
function wishes(setting) {
  if (setting === null) return [null];
  const names = Object.keys(setting.preference).slice(0, 3);
  if (names.length < 2) return [null];
  const alone = names.map((name) => ({ ...setting, preference: { [name]: 1 } }));
  return [...alone, setting];
}
