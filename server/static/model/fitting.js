// Which guides can do what a parameter needs, and which of them suits it best.

const DOES = {
  lm: (guide) => guide.role === "lm",
  reader: (guide) => guide.role === "lm" && guide.vocabulary !== "text only",
  scores_candidates: (guide) => guide.scores_candidates,
  scores_answers: (guide) => guide.scores_answers,
  value_head: (guide) => guide.role === "value" && !guide.scores_candidates && !guide.scores_answers,
  vector: (guide) => guide.role === "vector",
  preference: (guide) => guide.role === "preference",
  embedding: (guide) => guide.role === "embedding",
  attributes: (guide) => Boolean(guide.attributes?.length),
};

const NEEDS = {
  lm: "a language model (role lm)",
  reader: "a language model that shares the base's vocabulary (role lm)",
  scores_candidates: "a guide that scores single tokens (role reward or value)",
  scores_answers: "a guide that scores answers (role reward or program)",
  value_head: "a value head with one output (role value)",
  vector: "a control vector (role vector)",
  preference: "preference weights (role preference)",
  embedding: "an embedding model (role embedding)",
  attributes: "an adapter that has attributes",
};

const AGAINST = /anti|amateur|untuned|negative|worse/;
const KINDS = { arm: "arm", aligned: "expert", expert: "expert", tuned: "expert", dpo: "expert", draft: "expert" };

/**
 * Whether a guide can do what `x-guide` says, or one of the things that it lists.
 * @param {any} guide
 * @param {string|string[]} xGuide
 */
export function fits(guide, xGuide) {
  return [xGuide].flat().some((ability) => DOES[ability]?.(guide));
}

/** What is needed, in words. */
export function needed(xGuide) {
  return [xGuide]
    .flat()
    .map((ability) => NEEDS[ability] ?? `a guide that can do “${ability}”`)
    .join(", or ");
}

/**
 * How well a fitting guide suits a parameter: by its role and the kind on its card, and by what the names say.
 * @param {any} guide
 * @param {import("./schema.js").Field} field
 * @param {string[]} roles those that the strategy asks for
 * @returns {number} more is better
 */
export function suitability(guide, field, roles) {
  const kind = guide.card?.kind ?? guide.role;
  let points = 0;
  if (guide.name === field.name) points += 4;
  else if (guide.name.split(/[^a-z0-9]+/i).includes(field.name)) points += 2;
  if (kind === KINDS[field.name]) points += 2;
  if (roles.includes(guide.role)) points += 1;
  if (guide.role === field.name && !field.expression) points += 2; // of whole answers a reward says more
  if (guide.role === "program") points -= 1; // counts words; a model says more of an answer
  if (guide.role === "value" && !roles.includes("value")) points -= 2; // made for answers that go on
  if (guide.attributes?.length) points -= 2; // it wants to be told of its attributes
  if (AGAINST.test(guide.name)) points += AGAINST.test(field.name) ? 4 : -4;
  if (field.name === "expert" && guide.name.includes("positive")) points += 3; // the other side of an antiexpert
  return points;
}
