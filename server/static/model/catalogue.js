// What the server offers: models, strategies, rules of selection, the budget, rewards and guides.

import { fits } from "./fitting.js";
import { fields } from "./schema.js";
import { missing, parameters } from "./start.js";

/** What `/v1/models`, `/v1/strategies` and `/v1/guides` tell. */
export class Catalogue {
  #fields = new Map();

  /**
   * @param {{models: string[], strategies: any[], rules: any[], budget: any, rewards: string[], guides: any[]}} told
   */
  constructor({ models, strategies, rules, budget, rewards, guides }) {
    this.models = models;
    this.strategies = strategies;
    this.rules = rules;
    this.budget = budget;
    this.rewards = rewards;
    this.guides = guides;
  }

  /**
   * Ask the server, everything at once.
   * @param {{get: (path: string) => Promise<any>}} api
   */
  static async load(api) {
    const paths = ["/v1/models", "/v1/strategies", "/v1/guides"];
    const [models, strategies, guides] = await Promise.all(paths.map((path) => api.get(path)));
    return new Catalogue({
      models: models.data.map((model) => model.id),
      strategies: strategies.data,
      rules: strategies.rules,
      budget: strategies.budget,
      rewards: strategies.rewards,
      guides: guides.data,
    });
  }

  /** The strategy of a name, or undefined. */
  strategy(name) {
    return this.strategies.find((strategy) => strategy.name === name);
  }

  /** The rule of selection of a name, or undefined. */
  rule(name) {
    return this.rules.find((rule) => rule.name === name);
  }

  /** The guide of a name, or undefined. */
  guide(name) {
    return this.guides.find((guide) => guide.name === name);
  }

  /**
   * The fields of a strategy's parameters.
   * @param {string} name
   * @returns {import("./schema.js").Field[]}
   */
  fields(name) {
    if (!this.#fields.has(name)) this.#fields.set(name, fields(this.strategy(name)?.schema ?? {}));
    return this.#fields.get(name);
  }

  /**
   * Names of the guides that can do what an `x-guide` says.
   * @param {string|string[]} xGuide
   * @returns {string[]}
   */
  fitting(xGuide) {
    return this.guides.filter((guide) => fits(guide, xGuide)).map((guide) => guide.name);
  }

  /** What a field that names a guide may hold: the guides that fit, and the base where it may stand in for one. */
  candidates(field) {
    return [...(field.base ? ["base"] : []), ...this.fitting(field.xGuide)];
  }

  /**
   * A valid first decoding object of a strategy.
   * @param {string} name
   * @returns {Record<string, any>}
   */
  start(name) {
    return { strategy: name, ...parameters(this, this.strategy(name)) };
  }

  /**
   * Why a strategy cannot run on this server, or null.
   * @param {string} name
   * @returns {string|null}
   */
  missing(name) {
    return missing(this, this.strategy(name));
  }
}
