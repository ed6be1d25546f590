"""Strategies that work on whole answers. Written by `make docs` from the registry: change it there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from trimtab.clients.decoding.objects import Constraint, Reward
from trimtab.clients.decoding.strategy import Search


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSearch(Search):
    """Beam search over sampled steps: the best n / m of n beams go on, m ways each."""

    name: ClassVar[str] = "beam_search"

    n: Annotated[int | None, "beams; 4 if not given"] = None
    m: Annotated[int | None, "ways in which each beam that is kept goes on; 4 if not given"] = None
    value: Annotated[Reward, "what scores the answer after each step"]
    aggregate: Annotated[
        Literal["last", "min", "mean", "product"] | None,
        "of the step's scores, what ranks the beams; product is for scores that are probabilities",
    ] = None
    reward: Annotated[Reward | None, "picks among the final answers; what ranked them if not given"] = None
    separator: Annotated[str | None, "text that ends a step"] = None
    step_tokens: Annotated[int | None, "a step's greatest length; 256 if not given"] = None
    steps: Annotated[int | None, "steps at most; the last one goes to the answer's end; 40 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BestOfN(Search):
    """Draw n answers, return the best by a reward."""

    name: ClassVar[str] = "best_of_n"

    n: Annotated[int | None, "answers to draw; fewer where `budget.max_kl` asks for it; 8 if not given"] = None
    reward: Annotated[Reward | None, "what scores the answers: a reward's name, or an expression over several"] = None
    export: Annotated[
        Literal["best_and_worst"] | None, "best_and_worst: report a preference pair, to train a policy on (BoNBoN, DPO)"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards(Search):
    """Write segment by segment; keep a segment if the reward so far is above a rising threshold."""

    name: ClassVar[str] = "cards"

    reward: Annotated[Reward | None, "what scores the answer"] = None
    value: Annotated[Reward | None, "what scores the answer so far; `reward` if not given"] = None
    target: Annotated[float, "r*: the value that the end of an answer should reach"]
    alpha: Annotated[float | None, "where the threshold begins: 0 at the value of the empty answer, 1 at target"] = None
    beta: Annotated[float | None, "how soft the threshold is, in units of value; 0.7 if not given"] = None
    hard: Annotated[bool | None, "accept what reaches the threshold, and nothing else; false if not given"] = None
    entropy: Annotated[float | None, "nats: of the base, where a segment ends; 3.0 if not given"] = None
    min_segment: Annotated[int | None, "tokens of a segment at least; 4 if not given"] = None
    max_segment: Annotated[int | None, "tokens of a segment at most; 64 if not given"] = None
    length: Annotated[int | None, "T: tokens at which the threshold reaches the target; max_tokens if lower"] = None
    attempts: Annotated[int | None, "rejections after which the best of them is accepted; 20 if not given"] = None
    parallel: Annotated[int | None, "segments drawn at once; the first that is accepted counts; 4 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkBeamSearch(Search):
    """Beam search over sampled chunks, by two small models' log-probability ratio or by a value."""

    name: ClassVar[str] = "cbs"

    w: Annotated[int | None, "W, beams; 4 if not given"] = None
    k: Annotated[int | None, "K, continuations of each beam; 4 if not given"] = None
    chunk: Annotated[int | None, "L, tokens of a continuation; 10 if not given"] = None
    tuned: Annotated[str | None, "language model that was tuned to what is wanted"] = None
    untuned: Annotated[str | None, "the same model before, or `base`; base if not given"] = None
    value: Annotated[Reward | None, "what scores the beams, in place of tuned and untuned"] = None
    reward: Annotated[Reward | None, "picks among the final beams; what scored the beams if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockwiseCD(Search):
    """Best of k blocks, again and again: between plain sampling (k = 1) and best of k (one block for all)."""

    name: ClassVar[str] = "cd_blockwise"

    k: Annotated[int | None, "blocks to draw at each place; 4 if not given"] = None
    block: Annotated[int | None, "tokens of a block; 32 if not given"] = None
    value: Annotated[Reward, "what scores the answer at the end of each block"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Darwin(Search):
    """Answer the instruction and variants of it; every m tokens the worse texts give way to the best."""

    name: ClassVar[str] = "darwin"

    reward: Annotated[Reward | None, "reward of whole answers, for the final choice"] = None
    value: Annotated[Reward | None, "reward of unfinished answers; none: the same as `reward`"] = None
    mutations: Annotated[int | None, "variants of the instruction beside itself; 5 if not given"] = None
    mutator: Annotated[str | None, "name of the language model that writes them; base if not given"] = None
    mutation_tokens: Annotated[int | None, "tokens of a variant at most; a longer one is dropped"] = None
    m: Annotated[int | None, "tokens between replacements; 40 if not given"] = None
    elite: Annotated[int | None, "best texts, which the others give way to; 3 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal(Search):
    """Beam search by log-probability plus a heuristic of a greedy look ahead: a reward, or a constraint on the text."""

    name: ClassVar[str] = "deal"

    reward: Annotated[Reward | None, "heuristic: what the text with its look ahead is worth"] = None
    constraint: Annotated[
        Constraint | None, "heuristic, in place of a reward: the share of these conditions that the text meets"
    ] = None
    lam: Annotated[float | None, "lambda, weight of the heuristic; 1.0 if not given"] = None
    beams: Annotated[int | None, "answers on the frontier; 5 if not given"] = None
    k: Annotated[int | None, "next tokens of a beam; no other can follow; 10 if not given"] = None
    lookahead: Annotated[int | None, "l, tokens to look ahead, greedily; 10 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DTS(Search):
    """Sample answers in proportion to exp(reward / beta) from a tree that remembers what every rollout was worth."""

    name: ClassVar[str] = "dts"

    reward: Annotated[Reward | None, "what scores the answers: a reward's name, or an expression over several"] = None
    beta: Annotated[float | None, "temperature of the reward, 1 / lambda of the paper; 1.0 if not given"] = None
    block: Annotated[int | None, "tokens of a segment; 16 if not given"] = None
    simulations: Annotated[int | None, "answers written on the way, most of them in part; 32 if not given"] = None
    parallel: Annotated[int | None, "simulations side by side, which do not know of each other; 8 if not given"] = None
    width: Annotated[float | None, "C: a node of N visits gets C * N^alpha continuations; 1.0 if not given"] = None
    alpha: Annotated[float | None, "see `width`; 1 with width 1 draws whole answers alone; 0.5 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DTSStar(Search):
    """Search a tree of answers for the highest reward, going on where the soft value of what was found is highest."""

    name: ClassVar[str] = "dts_star"

    reward: Annotated[Reward | None, "what scores the answers: a reward's name, or an expression over several"] = None
    beta: Annotated[float | None, "temperature of the reward, 1 / lambda of the paper; 1.0 if not given"] = None
    block: Annotated[int | None, "tokens of a segment; 16 if not given"] = None
    simulations: Annotated[int | None, "answers written on the way, most of them in part; 32 if not given"] = None
    parallel: Annotated[int | None, "simulations side by side, which do not know of each other; 8 if not given"] = None
    width: Annotated[float | None, "C: a node of N visits gets C * N^alpha continuations; 1.0 if not given"] = None
    alpha: Annotated[float | None, "see `width`; 1 with width 1 draws whole answers alone; 0.5 if not given"] = None
    c: Annotated[float | None, "exploration, in units of the reward; 0 is greedy; 1.0 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DVTS(Search):
    """Beam search in n / m independent trees, each greedy by step."""

    name: ClassVar[str] = "dvts"

    n: Annotated[int | None, "beams; 4 if not given"] = None
    m: Annotated[int | None, "ways in which each beam that is kept goes on; 4 if not given"] = None
    value: Annotated[Reward, "what scores the answer after each step"]
    aggregate: Annotated[
        Literal["last", "min", "mean", "product"] | None,
        "of the step's scores, what ranks the beams; product is for scores that are probabilities",
    ] = None
    reward: Annotated[Reward | None, "picks among the final answers; what ranked them if not given"] = None
    separator: Annotated[str | None, "text that ends a step"] = None
    step_tokens: Annotated[int | None, "a step's greatest length; 256 if not given"] = None
    steps: Annotated[int | None, "steps at most; the last one goes to the answer's end; 40 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedSpeculation(Search):
    """Draw each step from n drafts of a small model, by `beta * reward + log P_base - log P_draft`."""

    name: ClassVar[str] = "gsi"

    draft: Annotated[str, "name of the small language model, of the base's vocabulary; or `base`"]
    value: Annotated[Reward, "reward of the answer up to the end of a step"]
    n: Annotated[int | None, "drafts of each step; 16 if not given"] = None
    beta: Annotated[float | None, "nats that a reward of 1 is worth; 20.0 if not given"] = None
    threshold: Annotated[
        float | None, "tilted reward r~ that a drafted step needs; 0.5 in the paper, for rewards in [0, 1]; none: any"
    ] = None
    separator: Annotated[str | None, "text with which a step ends"] = None
    step_tokens: Annotated[int | None, "tokens of a step at most; 512 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ParticleFilter(Search):
    """Grow n weighted answers step by step and replace light ones by copies of heavy ones."""

    name: ClassVar[str] = "particle_filter"

    n: Annotated[int | None, "particles: answers that grow side by side; 8 if not given"] = None
    reward: Annotated[Reward | None, "what scores whole answers: a reward's name, or an expression over several"] = None
    value: Annotated[Reward | None, "what scores unfinished answers; `reward` if it is not given"] = None
    beta: Annotated[float | None, "weight of the reward: the target is base * exp(beta * r); 1.0 if not given"] = None
    block: Annotated[int | None, "tokens of a step; 16 if not given"] = None
    separator: Annotated[str | None, "text that ends a step, in place of `block`"] = None
    ess: Annotated[
        float | None, "resample when the effective particles are fewer than this share of n; 0 never, 1 always"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoMcts(Search):
    """Tree search over tokens by PUCT with a value model; the most visited token is next (temperature 0)."""

    name: ClassVar[str] = "ppo_mcts"

    value: Annotated[Reward, "V of an unfinished answer; a value head on the base is the cheapest"]
    reward: Annotated[Reward | None, "worth of a finished answer; V if not given"] = None
    simulations: Annotated[
        int | None, "for each token, with those that the subtree kept from the last token has seen"
    ] = None
    k: Annotated[int | None, "next tokens of a node; no other can follow; 10 if not given"] = None
    c: Annotated[float | None, "c_puct, weight of the exploration bonus; 8.0 if not given"] = None
    prior_temperature: Annotated[float | None, "tau_e: divides the scores that the priors come from"] = None
    parallel: Annotated[
        int | None, "simulations at once; those under way count as visits and leave the means alone"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QAlign(Search):
    """Write the end of an answer anew, again and again, and keep each version with a chance that the reward sets."""

    name: ClassVar[str] = "qalign"

    reward: Annotated[Reward | None, "what scores the answers: a reward's name, or an expression over several"] = None
    beta: Annotated[float | None, "temperature of the reward: the target is base * exp(r / beta)"] = None
    steps: Annotated[int | None, "proposals of each chain; 0 is plain sampling; 32 if not given"] = None
    chains: Annotated[int | None, "chains side by side, each of which ends with one answer; 1 if not given"] = None
    burn_in: Annotated[int | None, "states at the start of each chain that a `select` rule does not see"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refine(Search):
    """Let a second model, or the base itself, rewrite the finished answer."""

    name: ClassVar[str] = "refine"

    guide: Annotated[str | None, "the model that rewrites: `base`, steered, or a language-model guide's name"] = None
    rounds: Annotated[int | None, "how often the answer is rewritten; 1 if not given"] = None
    n: Annotated[int | None, "rewrites a round; with more than one, a reward chooses; 1 if not given"] = None
    reward: Annotated[
        Reward | None, "what scores the original and its rewrites; without it, the last rewrite is returned"
    ] = None
    instruction: Annotated[str | None, "what the rewriter is asked, after the answer"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustPreferenceSelection(Search):
    """Answer under preferences near the user's, return the best by the user's own."""

    name: ClassVar[str] = "rps"

    preference: Annotated[
        Mapping[str, float] | None,
        "weight of each attribute, by the name of the reward that measures it; only their ratios count",
    ] = None
    rewards: Annotated[
        Mapping[str, Reward] | None, "what measures attributes, where it is not the reward of the same name"
    ] = None
    directions: Annotated[int | None, "directions to answer under, one answer each; 5 if not given"] = None
    angle: Annotated[float | None, "degrees that a direction may lie off the user's; 30.0 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardGuidedSpeculation(Search):
    """A draft model writes step after step; the base writes those again whose reward is below `delta`."""

    name: ClassVar[str] = "rsd"

    draft: Annotated[str, "name of the small language model; it has the base's vocabulary"]
    value: Annotated[Reward, "reward of the answer up to the end of a step"]
    delta: Annotated[float | None, "reward from which a drafted step is kept; 0.7 if not given"] = None
    accept: Annotated[
        Literal["threshold", "clip"] | None,
        "keep a step from `delta` on, or with its reward, clipped to [0, 1], as probability",
    ] = None
    separator: Annotated[str | None, "text with which a step ends"] = None
    step_tokens: Annotated[int | None, "tokens of a step at most; 512 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample(Search):
    """Draw each choice once, token by token; streams as it decodes."""

    name: ClassVar[str] = "sample"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfConsistency(Search):
    """Draw n answers, return one of those that agree; stop as soon as the vote is clear."""

    name: ClassVar[str] = "self_consistency"

    n: Annotated[int | None, "answers to draw at most; 8 if not given"] = None
    extract: Annotated[Literal["number", "boxed", "last_line", "text"] | None, "how the vote of an answer is read"] = (
        None
    )
    reward: Annotated[Reward | None, "then each vote weighs exp(reward / temperature)"] = None
    vote_temperature: Annotated[float | None, "with a reward: large is majority, small is argmax; 1 if not given"] = (
        None
    )
    least: Annotated[int | None, "votes before the search may stop; n draws all of them; 3 if not given"] = None
    share: Annotated[float | None, "of the votes, or of their weight: enough for one answer to stop"] = None
    confidence: Annotated[
        float | None, "that the first answer is likelier than the second: enough to stop, where no reward weighs"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculativeRejection(Search):
    """Best of n drafts, of which those with the lowest reward so far are dropped early."""

    name: ClassVar[str] = "speculative_rejection"

    n: Annotated[int | None, "drafts to begin with; 16 if not given"] = None
    reward: Annotated[Reward | None, "what scores the whole answers"] = None
    value: Annotated[Reward | None, "what ranks the drafts on their way; `reward` if not given"] = None
    alpha: Annotated[float | None, "share of the drafts that each stage drops; 0 drops none; 0.5 if not given"] = None
    schedule: Annotated[Sequence[int] | None, "lengths of the answer, in tokens, at which drafts are dropped"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferQStar(Search):
    """`z_base + w * r(greedy rollout from h, v)` on the k likeliest tokens; greedy in the paper (temperature 0)."""

    name: ClassVar[str] = "tqstar"

    reward: Annotated[str | None, "name of the guide that scores the text with its rollout"] = None
    w: Annotated[float | None, "weight of the reward; 1.0 if not given"] = None
    k: Annotated[int | None, "candidates; no other token can be drawn; 10 if not given"] = None
    rollout: Annotated[int | None, "tokens to look ahead, greedily; 0 scores the candidate alone"] = None
    baseline_reward: Annotated[
        str | None, "reward that the rolling model is aligned to: then (reward - baseline_reward) / beta counts"
    ] = None
    beta: Annotated[float | None, "strength of the baseline's alignment; 1 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBoN(Search):
    """Best of n over a tree: after each layer the best n / children drafts branch, the others are dropped."""

    name: ClassVar[str] = "treebon"

    n: Annotated[int | None, "N, drafts of a layer; 8 if not given"] = None
    layers: Annotated[int | None, "layers of the tree; 5 if not given"] = None
    children: Annotated[int | None, "branches of each draft that is kept; 4 if not given"] = None
    segment: Annotated[
        int | None, "tokens of a layer, the last of which goes to the end; max_tokens / layers if not given"
    ] = None
    dpo: Annotated[str | None, "language model that was tuned by DPO"] = None
    ref: Annotated[str | None, "the same model before, or `base`; base if not given"] = None
    value: Annotated[Reward | None, "what scores the unfinished drafts, in place of dpo and ref"] = None
    reward: Annotated[Reward | None, "picks among the final answers"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TsLlm(Search):
    """Tree search over sampled sentences by PUCT with a value of unfinished answers; the most visited step is next."""

    name: ClassVar[str] = "ts_llm"

    value: Annotated[Reward, "worth of an unfinished answer"]
    reward: Annotated[Reward | None, "worth of a finished answer; `value` if not given"] = None
    simulations: Annotated[int | None, "for each step; 20 if not given"] = None
    width: Annotated[int | None, "sentences drawn where a node is expanded; 6 if not given"] = None
    step_tokens: Annotated[int | None, "a step is no longer than this; 64 if not given"] = None
    endings: Annotated[Sequence[str] | None, "a step ends with a token that ends in one"] = None
    min_step_tokens: Annotated[int | None, "no ending counts before; 1 if not given"] = None
