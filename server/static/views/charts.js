// What the answers show together: curves over their tokens, and latency against reward of all that ran in this page.

import { html } from "../lib/preact.js";
import { Curves } from "./curves.js";
import { Scatter } from "./scatter.js";

/**
 * @param {{state: any, runs: Record<string, import("../net/run.js").Run>, points: any[],
 *   judge: (run: any) => Promise<{at: number[], rewards: (number | null)[]}>}} props
 */
export function Charts({ state, runs, points, judge }) {
  const columns = state.settings.map((setting, index) => ({
    run: runs[setting.id],
    colour: `var(--column-${index + 1})`,
  }));
  const traced = columns.filter(({ run }) => run !== undefined && run.request.decoding.trace);
  const measured = points.filter((point) => point.reward === state.reward);
  return html`
    ${
      traced.length > 0 &&
      html`
        <section class="panel" aria-label="Curves over the tokens">
          <h2>Token by token</h2>
          <${Curves}
            key=${state.reward}
            runs=${traced.map(({ run }) => run)}
            colours=${traced.map(({ colour }) => colour)}
            judge=${judge}
          />
        </section>
      `
    }
    <section class="panel" aria-label="Latency versus reward">
      <h2>Latency versus reward of everything run here</h2>
      <${Scatter} points=${measured} rewardName=${state.reward ?? "reward"} />
    </section>
  `;
}
