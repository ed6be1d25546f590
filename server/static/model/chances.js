// Chances of rules of selection that draw at random, from the rewards.

/**
 * The chance of each answer to be drawn first by softmax(reward / temperature).
 * @param {(number|null)[]} rewards null: never drawn while others are left
 * @param {number} temperature above 0
 * @returns {number[]}
 */
export function softChances(rewards, temperature) {
  const top = Math.max(...rewards.filter((reward) => reward !== null));
  const weights = rewards.map((reward) => (reward === null ? 0 : Math.exp((reward - top) / temperature)));
  return shares(weights);
}

/**
 * The chance of each answer under chi-squared regularisation (Huang et al. 2025, arXiv 2503.21878).
 *
 * Weights are proportional to relu(r - lambda) with lambda the largest threshold that its own support exceeds.
 * @param {(number|null)[]} rewards null: never drawn while others are left
 * @param {number} beta above 0
 * @returns {number[]}
 */
export function chiSquaredChances(rewards, beta) {
  const falling = rewards.filter((reward) => reward !== null).sort((a, b) => b - a);
  let [total, lambda] = [0, 0];
  for (const [index, reward] of falling.entries()) {
    total += reward;
    const threshold = (total - falling.length * beta) / (index + 1);
    if (reward > threshold) lambda = threshold;
  }
  return shares(rewards.map((reward) => (reward === null ? 0 : Math.max(reward - lambda, 0))));
}

function shares(weights) {
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  return weights.map((weight) => weight / total);
}
