"""Searches: what they have the base write, and others read. The docstring of each is the strategy's `cost` in symbols.

A is the length of an answer; steps are those of the longest of answers that grow side by side.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any

from trimtab.bench.capacity.formulas.ask import Ask, Formula, judged, read, staged, written
from trimtab.bench.capacity.work import BASE, Work

KEPT = 0.5
"""share of an answer that is kept where a chain or a tree goes on from its middle, mean"""
DIRECTION, MUTATION, REFINEMENT = 31.0, 63.0, 82.0
"""tokens that strategies add to a prompt: a preference in words, what asks for a variant, what asks for a rewrite"""
REFUSED = 0.5
"""share of drafted steps that are written again, until it is measured"""


def sample(params: Any, ask: Ask) -> Work:
    """A."""
    return written(1, ask.length, tokens=ask.length)


def best_of_n(params: Any, ask: Ask) -> Work:
    """n A, each read once by the judges."""
    return _drafts(params.n, ask) + judged(params.reward, params.n * ask.length)


def self_consistency(params: Any, ask: Ask) -> Work:
    """n A at most; the votes may end it early, which only answers with something to vote on do."""
    scored = judged(params.reward, params.n * ask.length)
    return _drafts(params.n, ask) + scored


def rps(params: Any, ask: Ask) -> Work:
    """directions A, each under a prompt of its own."""
    k = params.directions
    prompts = Work(prefill={BASE: (k - 1) * ask.prompt + k * DIRECTION})
    return _drafts(k, ask) + prompts + judged(params.expressions()["preference"], k * ask.length)


def cd_blockwise(params: Any, ask: Ask) -> Work:
    """k A, judged after each block."""
    return written(params.k, ask.length, tokens=ask.length) + staged(params.value, params.k, ask.length, params.block)


def particle_filter(params: Any, ask: Ask) -> Work:
    """n A, judged after each block."""
    return _drafts(params.n, ask) + staged(params.value or params.reward, params.n, ask.length, params.block)


def beams(params: Any, ask: Ask) -> Work:
    """n A, judged after each step."""
    step = min(params.step_tokens, ask.length)
    return _drafts(params.n, ask) + staged(params.value, params.n, ask.length, step)


def speculative_rejection(params: Any, ask: Ask) -> Work:
    """n answers up to the first length of the schedule, (1 - alpha) times as many up to the next, and so on."""
    work, live, before = Work(), float(params.n), 0.0
    for length in (*(each for each in params.schedule if each < ask.length), ask.length):
        work += written(live, length - before, tokens=length - before)
        work += judged(params.value or params.reward, live * (length - before + 8.0 * bool(before)))
        live, before = max(1.0, ceil(live * (1 - params.alpha))), length
    return work


def cbs(params: Any, ask: Ask) -> Work:
    """w k A; each chunk is read by two models, or judged."""
    width, looks = params.w * params.k, max(1.0, ask.length / params.chunk)
    work = _drafts(width, ask)
    if params.tuned is not None:
        work += read(_others(params.tuned, params.untuned), width * (ask.length + looks), looks)
    return work + staged(params.value, width, ask.length, params.chunk) + judged(params.reward, params.w * ask.length)


def treebon(params: Any, ask: Ask) -> Work:
    """n A; each layer is read by two models, or judged, and the answers by the reward."""
    segment = params.segment or ask.length / params.layers
    work = _drafts(params.n, ask) + judged(params.reward, params.n * ask.length)
    if params.dpo is not None:
        work += read(_others(params.dpo, params.ref), params.n * (ask.length + params.layers), params.layers)
    return work + staged(params.value, params.n, ask.length, segment)


def cards(params: Any, ask: Ask) -> Work:
    """parallel A / (share of rounds in which one is kept); half of them are not, until it is measured."""
    rounds = 1 / (1 - REFUSED)
    segment = (params.min_segment + params.max_segment) / 2
    work = written(params.parallel, ask.length * rounds, tokens=ask.length * rounds)
    return work + staged(params.value or params.reward, params.parallel * rounds, ask.length, segment)


def qalign(params: Any, ask: Ask) -> Work:
    """chains (A + steps A / 2); a round of proposals lasts as long as the longest of c of them, A c / (c + 1)."""
    chains, length = params.chains, ask.length * (1 + params.steps * (1 - KEPT))
    rounds = ask.longest(chains) + params.steps * ask.length * chains / (chains + 1)  # cuts are uniform
    return written(chains, rounds, tokens=length) + judged(params.reward, chains * length, 1 + params.steps)


def dts(params: Any, ask: Ask) -> Work:
    """simulations answers, from their middle on but for the first ones, `parallel` at a time."""
    side = min(params.parallel, params.simulations)
    rounds = ceil(params.simulations / side)
    length = 1 + (rounds - 1) * (1 - KEPT)
    work = written(side, ask.longest(side) * length, tokens=ask.length * length)
    return work + judged(params.reward, side * ask.length * length, rounds)


def darwin(params: Any, ask: Ask) -> Work:
    """Variants of the instruction, then mutations + 1 answers, judged every m tokens."""
    variants, places = params.mutations, params.mutations + 1
    work = written(variants, params.mutation_tokens, model=params.mutator, tokens=params.mutation_tokens)
    work += Work(prefill={params.mutator: variants * MUTATION}) + Work(prefill={BASE: variants * ask.prompt})
    return work + _drafts(places, ask) + staged(params.value or params.reward, places, ask.length, params.m)


def deal(params: Any, ask: Ask) -> Work:
    """For each token beams k looks ahead, which are judged."""
    looks = params.beams * params.k
    work = written(looks, ask.length * params.lookahead, tokens=ask.length * params.lookahead)
    work += written(params.beams, ask.length, tokens=ask.length)
    return work + judged(params.reward, ask.length * looks * (params.lookahead + 8.0), ask.length)


def tqstar(params: Any, ask: Ask) -> Work:
    """For each token k rollouts, which are judged."""
    ahead = ask.length * (params.rollout + 1)
    work = written(params.k, ahead, tokens=ahead) + written(1, ask.length, tokens=ask.length)
    for reward in (params.reward, params.baseline_reward):
        work += judged(reward, ask.length * params.k * (params.rollout + 8.0), ask.length)
    return work


def ppo_mcts(params: Any, ask: Ask) -> Work:
    """For each token up to `simulations` nodes, each a token and a value; a tree that is kept needs fewer."""
    side = min(params.parallel, params.simulations)
    rounds = ask.length * params.simulations / side
    return written(side, rounds, tokens=rounds) + judged(params.value, side * rounds * 8.0, rounds)


def ts_llm(params: Any, ask: Ask) -> Work:
    """For each sentence up to simulations expansions, each `width` sentences side by side."""
    expansions = (1 + params.simulations) * KEPT
    length = ask.length * expansions
    step = min(params.step_tokens, ask.length)
    return written(params.width, length, tokens=length) + staged(params.value, params.width, length, step)


def rsd(params: Any, ask: Ask) -> Work:
    """A of the draft model, what is refused of the base again, a score a step."""
    work = written(1, ask.length, model=params.draft, tokens=ask.length)
    work += written(1, REFUSED * ask.length, tokens=REFUSED * ask.length)
    work += Work(wide={BASE: (1 - REFUSED) * ask.length})
    return work + staged(params.value, 1, ask.length * (1 + REFUSED), min(params.step_tokens, ask.length))


def gsi(params: Any, ask: Ask) -> Work:
    """n A of the draft model, read by the base; what is refused of the base again, n times; a score a step."""
    again = 0.0 if params.threshold is None else REFUSED
    step = min(params.step_tokens, ask.length)
    work = written(params.n, ask.length, model=params.draft, tokens=ask.length)
    work += read((BASE,), params.n * (ask.length + ask.length / step), ask.length / step)
    work += written(params.n, again * ask.length, tokens=again * ask.length)
    return work + staged(params.value, params.n, ask.length * (1 + again), step)


def refine(params: Any, ask: Ask) -> Work:
    """A, then n rewrites a round, each behind the question, the answer and an instruction."""
    work = written(1, ask.length, tokens=ask.length)
    for _ in range(params.rounds):
        prompt = Work(prefill={params.guide: ask.prompt + ask.length + REFINEMENT})
        work += prompt + written(params.n, ask.longest(params.n), model=params.guide, tokens=ask.length)
        work += judged(params.reward, params.n * ask.length)
    return work


def _others(*names: str) -> tuple[str, ...]:
    """Without the base, which knows how likely its own tokens were when it drew them."""
    return tuple(name for name in names if name != BASE)


def _drafts(count: float, ask: Ask) -> Work:
    return written(count, ask.longest(count), tokens=ask.length)


SEARCHES: Mapping[str, Formula] = {
    "sample": sample,
    "best_of_n": best_of_n,
    "self_consistency": self_consistency,
    "rps": rps,
    "cd_blockwise": cd_blockwise,
    "particle_filter": particle_filter,
    "beam_search": beams,
    "dvts": beams,
    "speculative_rejection": speculative_rejection,
    "cbs": cbs,
    "treebon": treebon,
    "cards": cards,
    "qalign": qalign,
    "dts": dts,
    "dts_star": dts,
    "darwin": darwin,
    "deal": deal,
    "tqstar": tqstar,
    "ppo_mcts": ppo_mcts,
    "ts_llm": ts_llm,
    "rsd": rsd,
    "gsi": gsi,
    "refine": refine,
}
