// The numbers of one answer.

import { html } from "../lib/preact.js";

/**
 * @param {{run: import("../net/run.js").Run}} props
 */
export function Measures({ run }) {
  const { reward, gold } = run.judges;
  const steering = run.decoding?.steering?.[0] ?? null;
  const rows = [
    [reward ?? "reward", decimal(run.rewards.reward, 3), "what the measuring guide says of the answer"],
    gold && [
      `${gold} (gold)`,
      decimal(run.rewards.gold, 3),
      "what a second guide says, which steering need not have seen",
    ],
    ["tokens/s", decimal(run.tokensPerSecond, 1), "tokens of the answer per second of the request"],
    ["seconds", seconds(run), "from the request to the end of the answer, as the server measured it"],
    ["tokens", whole(run.usage?.completion_tokens), "of the answer"],
    ["model tokens", whole(run.cost?.modelTokens), "processed by all models together: the cost"],
    ["forwards", whole(run.cost?.forwards), "passes of all models together"],
    steering && ["KL", decimal(steering.kl, 2), "nats between what tokens were drawn from and the base, summed"],
    steering && ["changed", percent(steering.intervention_rate), "positions whose choice steering changed"],
  ].filter(Boolean);
  return html`
    <dl class="measures">
      ${rows.map(
        ([name, value, meaning]) => html`
          <div class="measure" title=${meaning}>
            <dt>${name}</dt>
            <dd>${value}</dd>
          </div>
        `,
      )}
    </dl>
    ${run.judgeError && html`<p class="muted" role="status">Not measured: ${run.judgeError}</p>`}
  `;
}

const NOTHING = "–";

function decimal(value, digits) {
  return value === null || value === undefined ? NOTHING : value.toFixed(digits);
}

function whole(value) {
  return value === null || value === undefined ? NOTHING : value.toLocaleString("en");
}

function percent(value) {
  return value === null || value === undefined ? NOTHING : `${Math.round(value * 100)} %`;
}

function seconds(run) {
  return run.phase === "done" || run.phase === "judging" ? decimal(run.milliseconds / 1000, 2) : NOTHING;
}
