// Rewards of an answer's beginnings.

const MOST = 32;

/**
 * What a reward guide says of the answer after every few tokens.
 * @param {import("./api.js").Api} api
 * @param {string} guide
 * @param {{role: string, content: string}[]} messages the conversation that is answered
 * @param {string[]} beginnings the answer up to each of its tokens
 * @returns {Promise<{at: number[], rewards: (number | null)[]}>} token counts and rewards, the whole answer last
 */
export async function rewardSoFar(api, guide, messages, beginnings) {
  const step = Math.max(1, Math.ceil(beginnings.length / MOST));
  const at = beginnings.map((_, index) => index + 1).filter((count) => count % step === 0 && count < beginnings.length);
  if (beginnings.length) at.push(beginnings.length);
  const answers = at.map((count) => ({ role: "assistant", content: beginnings[count - 1] }));
  const rewards = await api.score(
    guide,
    answers.map((answer) => [...messages, answer]),
  );
  return { at, rewards };
}
