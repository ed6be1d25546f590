import assert from "node:assert/strict";
import { test } from "node:test";

import { columns, sorted } from "../../../server/static/model/candidate_columns.js";
import { explain } from "../../../server/static/model/candidates.js";
import { chiSquaredChances, softChances } from "../../../server/static/model/chances.js";
import { reported, stopped } from "../../../server/static/model/search_report.js";

function candidate(reward, more = {}) {
  const text = `answer worth ${reward}`;
  return {
    text,
    tokens: 9,
    reward,
    finish_reason: "stop",
    choice: null,
    rewards: { kind: reward },
    value: null,
    ...more,
  };
}

function decoding(candidates, chosen, more = {}) {
  for (const [choice, index] of chosen.entries()) if (index !== null) candidates[index].choice = choice;
  const { spec, ...rest } = more;
  return { spec: { strategy: "best_of_n", ...spec }, candidates, chosen, report: {}, stopped_by: "finished", ...rest };
}

function why(response) {
  return Object.fromEntries(explain(response).map((each) => [each.index, each.why]));
}

test("the choices come first, then rewards from high to low, then values, then what has neither", () => {
  const pool = [candidate(0.1), candidate(null), candidate(0.9), candidate(null, { value: 0.5 }), candidate(0.4)];
  const found = explain(decoding(pool, [4]));
  assert.deepEqual(
    found.map((each) => each.index),
    [4, 2, 0, 3, 1],
  );
  assert.deepEqual(
    found.map((each) => each.rank),
    [1, 2, 3, 4, 5],
  );
  assert.deepEqual(
    found.map((each) => each.chosen),
    [true, false, false, false, false],
  );
});

test("argmax: by how much an answer lost, and that of equal ones the first counts", () => {
  const found = why(decoding([candidate(0.5), candidate(0.19), candidate(0.5, { text: "other" })], [0]));
  assert.equal(found[0], "The highest reward of 3; 2 have the same.");
  assert.equal(found[1], "Reward 0.31 below the chosen answer's (0.19 against 0.5).");
  assert.equal(found[2], "The same reward as the chosen answer's; of equal ones the first counts.");
});

test("argmax with several choices: the lowest of them was the one to beat", () => {
  const found = why(decoding([candidate(0.5), candidate(0.9), candidate(0.4)], [1, 0]));
  assert.equal(found[0], "Number 2 by reward of 3.");
  assert.equal(found[2], "Reward 0.1 below the lowest chosen answer's (0.4 against 0.5).");
});

test("an answer that a guide failed on, and one in the same words as the choice", () => {
  const failed = candidate(null, { rewards: { kind: null, brief: 1 } });
  const found = why(decoding([candidate(0.5), failed, candidate(0.5, { text: "answer worth 0.5" })], [0]));
  assert.equal(found[1], "No reward: guide kind gave no number for it.");
  assert.equal(found[2], "Word for word the chosen answer.");
});

test("a reward above the choice's is never called the reason where the response does not tell one", () => {
  const found = why(decoding([candidate(0.5), candidate(0.7)], [0]));
  assert.equal(found[1], "Not selected by rule argmax. Its reward is 0.2 above the chosen answer's.");
  assert.equal(found[0], "");
});

test("soft tells the chance of each answer, and that a better one was not drawn", () => {
  const select = { rule: "soft", temperature: 1 };
  const found = why(decoding([candidate(0), candidate(Math.log(3))], [0], { spec: { select } }));
  assert.equal(found[0], "Drawn at random; its chance was 25 %.");
  assert.match(found[1], /^Not drawn: rule soft draws at random; its chance was 75 %\. Its reward is 1\.1 above/);
});

test("at temperature 0 soft is argmax, and so is chi2 at beta 0", () => {
  for (const select of [
    { rule: "soft", temperature: 0 },
    { rule: "chi2", beta: 0 },
  ]) {
    const found = why(decoding([candidate(0.5), candidate(0.25)], [0], { spec: { select } }));
    assert.equal(found[1], "Reward 0.25 below the chosen answer's (0.25 against 0.5).");
  }
});

test("no chances are told where candidates may no longer have been in the running", () => {
  const spec = { strategy: "speculative_rejection", schedule: [4], select: { rule: "soft", temperature: 1 } };
  assert.match(
    why(decoding([candidate(0), candidate(1)], [0], { spec }))[1],
    /^Not drawn: rule soft draws at random\. /,
  );
});

test("chances of chi2 are those of its closed form", () => {
  const close = (found, wanted) =>
    found.forEach((each, i) => assert.ok(Math.abs(each - wanted[i]) < 1e-12, `${found}`));
  close(chiSquaredChances([1, 0], 1), [0.75, 0.25]); // lambda = (1 - 2) / 2, so 1.5 to 0.5
  close(chiSquaredChances([5, 0, null], 0.5), [1, 0, 0]);
  close(softChances([0, null, Math.log(16)], 2), [0.2, 0, 0.8]);
});

test("poisson: what came after the first few was not in the running", () => {
  const more = { spec: { select: { rule: "poisson", mu: 1 } }, report: { poisson_n: 2 } };
  const found = why(decoding([candidate(0.5), candidate(0.2), candidate(0.9)], [0], more));
  assert.match(found[0], /^The highest reward of 2, which by chance/);
  assert.equal(found[1], "Reward 0.3 below the chosen answer's (0.2 against 0.5).");
  assert.match(found[2], /^Not in the running: by chance only the first 2 answers counted\. Its reward is 0\.4 above/);
});

test("ensemble goes by the raw rewards of all judges", () => {
  const of = (a, b) => candidate(0, { text: `${a} ${b}`, rewards: { a, b } });
  const told = (aggregate, c) => {
    const response = decoding([of(1, 1), of(4, -2)], [0], { spec: { select: { rule: "ensemble", aggregate, c } } });
    return why(response)[1];
  };
  assert.equal(told("min", null), "Least of the raw rewards 3 below the chosen answer's (−2 against 1).");
  assert.match(told("mean", null), /^The same mean of the raw rewards/);
  assert.match(told("pessimistic", 2), /^Mean of the raw rewards without their variance 18 below/);
});

test("votes: the winning vote is told, and nothing of what others voted for", () => {
  const report = { votes: [{ vote: "12", answers: 2, share: 0.67 }] };
  const spec = { strategy: "self_consistency", reward: null };
  const found = why(
    decoding([candidate(null, { rewards: {} }), candidate(null, { text: "13", rewards: {} })], [0], { spec, report }),
  );
  assert.equal(found[0], "It stands for the winning vote: “12”, 2 answers, 67 % of the votes.");
  assert.equal(found[1], "Not the answer that stands for the winning vote: “12”, 2 answers, 67 % of the votes.");
});

test("a vote without two answers alike says so under majority alone", () => {
  const report = { votes: [{ vote: "12", answers: 1, share: 0.5 }] };
  const told = (reward) => {
    const spec = { strategy: "self_consistency", reward };
    return why(decoding([candidate(0.4), candidate(0.2)], [0], { spec, report }))[1];
  };
  assert.match(told(null), /^No two answers voted alike/);
  assert.match(told("kind"), /^Not the answer that stands for the winning vote: “12”, 1 answer, 50 % of the weight/);
});

test("searches that draw their pool claim nothing of answers that may not have competed", () => {
  const told = (strategy, report, select) =>
    why(decoding([candidate(0.4), candidate(0.2)], [0], { spec: { strategy, select }, report }))[1];
  const mbr = { rule: "mbr", similarity: "token_f1" };
  assert.match(told("best_of_n", {}, mbr), /^Another answer is more like all of them, or as much/);
  assert.match(told("dts", {}, mbr), /^Not selected by rule mbr\. /);
  const votes = [{ vote: "12", answers: 1, share: 0.5 }];
  assert.match(told("dts", { votes }, { rule: "majority" }), /^Not the answer that stands for the winning vote/);
  assert.match(told("best_of_n", { votes: [] }, { rule: "majority" }), /^No answer held a vote; /);
  assert.match(told("dts", { votes: [] }, { rule: "majority" }), /^Not selected by rule majority\./);
});

test("abstain: what was below the threshold, and the rule that chose where it was reached", () => {
  const select = { rule: "abstain", tau: 2, then: { rule: "mbr", similarity: "rouge_l" } };
  const refused = { spec: { select }, report: { abstain_tau: 2 }, stopped_by: "abstained" };
  const found = why(decoding([candidate(1), candidate(null)], [null], refused));
  assert.equal(found[0], "Reward 1 is below 2, the least that is worth an answer.");
  assert.equal(found[1], "The search gave no answer.");
  assert.match(why(decoding([candidate(3), candidate(2)], [0], { spec: { select } }))[1], /rouge_l/);
});

test("an early end goes by what each answer seemed to be worth, unless all have rewards", () => {
  const early = { stopped_by: "deadline_ms", spec: { budget: { deadline_ms: 500 } } };
  const pool = () => [candidate(null, { value: 0.5 }), candidate(0.2), candidate(null, { value: 0.9 })];
  const found = why(decoding(pool(), [0], early));
  assert.equal(found[1], "Worth so far 0.3 below the chosen answer's (0.2 against 0.5).");
  assert.equal(found[2], "Not selected when the search was ended early.");
  assert.match(why(decoding([candidate(0.5), candidate(0.4)], [0], early))[1], /^Reward 0\.1 below/);
  assert.equal(
    stopped({ stopped_by: "deadline_ms", spec: early.spec }),
    "Ended early: the deadline of 500 ms had passed.",
  );
  assert.equal(stopped({ stopped_by: "finished" }), null);
});

test("speculative rejection: where an answer was given up, or that it must have been", () => {
  const spec = { strategy: "speculative_rejection", schedule: [4, 8] };
  const dropped = candidate(null, { tokens: 8, value: 0.1, finish_reason: "length", rewards: { kind: 0.1 } });
  const pool = [candidate(0.5), dropped, candidate(0.8)];
  const response = decoding(pool, [0], { spec, report: { kept: [4, 2, 1] } });
  const found = why(response);
  assert.equal(found[1], "Given up after 8 tokens: its value so far, 0.1, was not among the best 1.");
  assert.match(found[2], /^Given up on the way, while others ranked above it\. Its reward is 0\.3 above/);
  assert.equal(explain(response).find((each) => each.index === 1).ended, "not finished");
});

test("beams: one that had not finished, with the number of its steps where there is a tree", () => {
  const spec = { strategy: "beam_search" };
  const open = candidate(null, { value: 0.1, finish_reason: "length", rewards: { kind: 0.1 } });
  const node = (parent, value, end) => ({ parent, value, candidate: end, text: "a", choice: null });
  const tree = { nodes: [node(null, null, null), node(0, 0.3, null), node(1, 0.1, 1)], omitted: 0 };
  const found = why(decoding([candidate(0.5), open], [0], { spec, tree }));
  assert.match(found[1], /^Not finished after 2 steps: /);
});

test("particles: chances only as long as nothing was resampled", () => {
  const told = (resamplings) =>
    why(
      decoding([candidate(0), candidate(Math.log(3))], [0], {
        spec: { strategy: "particle_filter", beta: 1 },
        report: { resamplings },
      }),
    )[1];
  assert.match(told(0), /its chance was 75 %/);
  assert.match(told(1), /by the weights of the particles\./);
});

test("qalign: what was rejected, what was passed through, and where the chains ended", () => {
  const spec = { strategy: "qalign", chains: 2, burn_in: 0 };
  const pool = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6].map((reward) => candidate(reward));
  const report = {
    rewards: [
      [0.1, 0.3, 0.5],
      [0.2, 0.2, 0.6],
    ],
  };
  const found = why(decoding(pool, [4], { spec, report }));
  assert.equal(found[0], "The first state of chain 1, left at step 1.");
  assert.equal(found[2], "Accepted at step 1, left at step 2.");
  assert.match(found[3], /^Rejected at step 1: chain 2 stayed where it was\. Its reward is 0\.2 above/);
  assert.equal(found[5], "Where chain 2 ended; the choice is where another chain did.");
});

test("qalign under another rule: the burn-in was not in the running, and equal rewards tell nothing", () => {
  const spec = { strategy: "qalign", chains: 1, burn_in: 1, select: { rule: "argmax" } };
  const found = why(decoding([candidate(0.9), candidate(0.3)], [1], { spec, report: { rewards: [[0.9, 0.3]] } }));
  assert.equal(found[0], "Left at step 1, before the burn-in of 1 was over.");
  const alike = [candidate(0.3), candidate(0.3, { text: "b" }), candidate(0.4)];
  const response = decoding(alike, [2], {
    spec: { ...spec, select: undefined },
    report: { rewards: [[0.3, 0.3, 0.4]] },
  });
  assert.equal(why(response)[1], "Not where the chain ended. Its reward is 0.1 below the chosen answer's.");
});

test("blocks are compared with the choice that they belong to; rewrites without a reward are counted", () => {
  const of = (value) => candidate(value, { value });
  const spec = { strategy: "cd_blockwise" };
  const found = why(decoding([of(0.9), of(0.8), of(0.2), of(0.1)], [0, 2], { spec }));
  assert.match(found[1], /^Value at the end of the last block 0\.1 below .*\(0\.8 against 0\.9\)\.$/);
  assert.match(found[3], /\(0\.1 against 0\.2\)\.$/);
  const pool = () => ["a", "b", "c"].map((text) => candidate(null, { text, rewards: {} }));
  const rewrites = why(decoding(pool(), [2], { spec: { strategy: "refine" } }));
  assert.match(rewrites[0], /^The original; /);
  assert.match(rewrites[1], /^Rewrite 1; /);
});

test("the columns are those that the response has something for", () => {
  const names = (pool) => columns(decoding(pool, [0])).map((each) => each.key);
  assert.deepEqual(names([candidate(1), candidate(2)]), ["rank", "text", "tokens", "reward", "ended", "why"]);
  const judged = candidate(1, { rewards: { a: 2, b: 3 }, terms: { b: 0.5 }, value: 0 });
  assert.deepEqual(names([judged, judged]), [
    ..."rank,text,tokens,raw a,raw b,term b,reward,value,ended,why".split(","),
  ]);
});

test("sorting by a column leaves what has no number at the end either way", () => {
  const response = decoding([candidate(0.2), candidate(null), candidate(0.9)], [2]);
  const heads = columns(response);
  const order = (falling) =>
    sorted(response, explain(response), heads, { key: "reward", falling }).map((each) => each.index);
  assert.deepEqual(order(false), [0, 2, 1]);
  assert.deepEqual(order(true), [2, 0, 1]);
});

test("a report is told under names, shares as per cent, lists in short, and votes one by one", () => {
  const votes = [{ vote: "12", answers: 3, share: 0.5 }];
  const report = { n: 8, acceptance_rate: 0.25, kept: [16, 8], early: true, odd_name: 1, pair: { chosen: "" }, votes };
  assert.deepEqual(
    reported({ report }).map(({ name, value }) => `${name}: ${value}`),
    ["answers drawn: 8", "accepted: 25 %", "kept: 16, 8", "stopped early: yes", "odd name: 1", "vote “12”: 3 (50 %)"],
  );
});
