"""Strategies that shape the next token. Written by `make docs` from the registry: change it there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from trimtab.clients.decoding.strategy import Steer


@dataclass(frozen=True, slots=True, kw_only=True)
class Args(Steer):
    """`z_base + w * r(h, v)` on the k likeliest tokens; greedy in the paper (temperature 0)."""

    name: ClassVar[str] = "args"

    reward: Annotated[str, "name of the guide that scores candidates"]
    w: Annotated[float | None, "weight of the reward; 1.5 if not given"] = None
    k: Annotated[int | None, "candidates; 10 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates(Steer):
    """Tokens in the base's top k, in its nucleus and with `p >= alpha * max p`; others cannot be drawn."""

    name: ClassVar[str] = "candidates"

    top_k: Annotated[int | None, "likeliest tokens; 0: off; 0 if not given"] = None
    top_p: Annotated[float | None, "mass of the nucleus; 1.0 if not given"] = None
    alpha: Annotated[float | None, "least probability, relative to the likeliest token; 0.0 if not given"] = None
    keep_others: Annotated[bool | None, "others keep the base's score and only get no value; false if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cd(Steer):
    """`z_base + lam * V(h, v)` on all tokens with a head of the whole vocabulary, else on the k likeliest."""

    name: ClassVar[str] = "cd"

    value: Annotated[str, "name of the guide that gives the values"]
    lam: Annotated[float | None, "weight of the value; 1.0 if not given"] = None
    k: Annotated[int | None, "candidates; null: all for a head, 20 for a scorer"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cfg(Steer):
    """`lp_u + gamma * (lp_c - lp_u)`: c reads the system message, u none or a negative one."""

    name: ClassVar[str] = "cfg"

    gamma: Annotated[float | None, "1: no guidance; 0: without the system message; 1.5 if not given"] = None
    negative_prompt: Annotated[str | None, "system message of the other side; null: none"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrastive(Steer):
    """`(1 + beta) * lp_base - beta * lp_amateur` on tokens with p >= alpha * max p."""

    name: ClassVar[str] = "contrastive"

    amateur: Annotated[str, "name of the weaker language model, or `base`"]
    alpha: Annotated[float | None, "least probability under the base, relative to its likeliest token"] = None
    beta: Annotated[float | None, "strength of the contrast; 0.5 if not given"] = None
    amateur_sees_prompt: Annotated[bool | None, "false: the amateur reads the answer alone; true if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlVector(Steer):
    """`h_l += coeff * c_l` in every layer l of the vector, at every token."""

    name: ClassVar[str] = "control_vector"

    vector: Annotated[str, "name of the control vector"]
    coeff: Annotated[float | None, "strength; negative: away from it; 1.0 if not given"] = None
    measure_kl: Annotated[bool | None, "run the plain model beside, so that reports compare with it"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dera(Steer):
    """`lp_ref + lam * (lp_aligned - lp_ref)`: 0 is the reference, 1 the aligned model, more is beyond it."""

    name: ClassVar[str] = "dera"

    aligned: Annotated[str, "name of the aligned language model"]
    reference: Annotated[str | None, "what it was aligned from; base if not given"] = None
    lam: Annotated[float | None, "strength of the alignment; 0.5 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DExperts(Steer):
    """`z_base + alpha * (z_expert - z_antiexpert)` on the base's nucleus of mass p."""

    name: ClassVar[str] = "dexperts"

    expert: Annotated[str, "name of the language model with the attribute, or `base`"]
    antiexpert: Annotated[str, "name of the language model against it"]
    alpha: Annotated[float | None, "weight of the difference; 2.0 if not given"] = None
    p: Annotated[float | None, "mass of the base's nucleus; 0.9 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Eft(Steer):
    """`z_base + w * (z_tuned - z_reference)`: fine-tuning at another scale, emulated."""

    name: ClassVar[str] = "eft"

    tuned: Annotated[str, "name of the fine-tuned language model"]
    reference: Annotated[str | None, "what it was tuned from; base if not given"] = None
    w: Annotated[float | None, "weight of the difference; 1.0 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fudge(Steer):
    """`z_base + lam * log sigmoid(c(h, v))` on the k likeliest tokens, drawn from the `limit` best of them."""

    name: ClassVar[str] = "fudge"

    classifier: Annotated[str, "name of the guide whose logit says that the attribute will hold"]
    lam: Annotated[float | None, "weight of the log-probability of the attribute; 1.0 if not given"] = None
    k: Annotated[int | None, "candidates; 200 if not given"] = None
    limit: Annotated[int | None, "best steered tokens to draw from; 10 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenArm(Steer):
    """`lp_base + sum of alpha_i * lp_arm_i`; several arms are several objectives."""

    name: ClassVar[str] = "genarm"

    arm: Annotated[str | None, "name of the one autoregressive reward model"] = None
    alpha: Annotated[float | None, "weight of the arm; scales all of `arms`; 1.0 if not given"] = None
    arms: Annotated[Mapping[str, float] | None, "several, each with its weight"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ivl(Steer):
    """`z_base + z_value`, by a language model whose raw logits were trained as corrections."""

    name: ClassVar[str] = "ivl"

    value: Annotated[str, "name of the language model to add"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ivo(Steer):
    """`z_base + lam * V(h, v)` as in `cd`, by a value that was fitted on answers it guided itself."""

    name: ClassVar[str] = "ivo"

    value: Annotated[str, "name of the guide that gives the values"]
    lam: Annotated[float | None, "weight of the value; 1.0 if not given"] = None
    k: Annotated[int | None, "candidates; null: all for a head, 20 for a scorer"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixture(Steer):
    """`sum of w_i * z_i`; the base counts 1 unless it is listed."""

    name: ClassVar[str] = "mixture"

    weights: Annotated[Mapping[str, float], "guides, and `base`, with their weights"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mod(Steer):
    """`sum of w_i * lp_i`, the w_i adding up to 1; with alpha, their power mean of probabilities."""

    name: ClassVar[str] = "mod"

    weights: Annotated[Mapping[str, float], "guides, and `base`, with their weights"]
    alpha: Annotated[
        float | None, "divergence of the models' training: 0 reverse KL, 1 forward KL, between them alpha-divergences"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Nudging(Steer):
    """The aligned model speaks while the base's `max p < gamma`, else the base; greedy in the paper (temperature 0)."""

    name: ClassVar[str] = "nudging"

    aligned: Annotated[str, "name of the aligned language model"]
    gamma: Annotated[float | None, "probability of its likeliest token from which the base speaks"] = None
    draft: Annotated[int | None, "tokens that the aligned model drafts at most at a time; 16 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pad(Steer):
    """`(1 - w) * lp_base + w * lp_arm` on the k likeliest tokens, the guide told of the preference."""

    name: ClassVar[str] = "pad"

    arm: Annotated[str, "name of the personalised language model"]
    w: Annotated[float | None, "share of the guide; 1: the base gives candidates alone; 0.5 if not given"] = None
    k: Annotated[int | None, "candidates; 10 if not given"] = None
    preference: Annotated[str | None, "system message of the guide; null: that of the request"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Panacea(Steer):
    """`W + strength * B diag(1, lambda) A`: the base with an adapter that has a block for each attribute."""

    name: ClassVar[str] = "panacea"

    guide: Annotated[str, "name of the adapter"]
    preference: Annotated[
        Mapping[str, float] | None, "lambda: attributes of the adapter with their weights; those left out count 0"
    ] = None
    normalise: Annotated[bool | None, "divide the weights by their sum, as the adapter was trained"] = None
    strength: Annotated[float | None, "how much the whole adapter counts; 0: not at all; 1.0 if not given"] = None
    measure_kl: Annotated[bool | None, "run the plain model beside, so that reports compare with it"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyTuning(Steer):
    """`z_base + alpha * (z_expert - z_antiexpert)`: what tuning taught a small model, given to the base."""

    name: ClassVar[str] = "proxy_tuning"

    expert: Annotated[str, "name of the tuned language model"]
    antiexpert: Annotated[str, "name of the same model before tuning"]
    alpha: Annotated[float | None, "weight of the difference; 1.0 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rad(Steer):
    """`z_base + beta * clamp(r(h, v), 0, 1)` on the k likeliest tokens."""

    name: ClassVar[str] = "rad"

    reward: Annotated[str, "name of the guide that scores candidates"]
    beta: Annotated[float | None, "weight of the reward; 30.0 if not given"] = None
    k: Annotated[int | None, "candidates; 20 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReControl(Steer):
    """`h += lr * dV/dh`, n times, on the last hidden state, before the LM head."""

    name: ClassVar[str] = "re_control"

    value: Annotated[str, "name of the value head with one output"]
    lr: Annotated[float | None, "step size; 1.0 if not given"] = None
    n: Annotated[int | None, "steps; 30 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Value(Steer):
    """`s + weight * transform(V(h, v))` on the candidates, which a part `candidates` names."""

    name: ClassVar[str] = "value"

    guide: Annotated[str, "name of the guide that scores candidates"]
    weight: Annotated[float | None, "weight of the value; 1.0 if not given"] = None
    transform: Annotated[
        Literal["identity", "clamp", "log_sigmoid", "centre"] | None, "centre: minus the mean over the candidates"
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vas(Steer):
    """`z_base + beta * (V(h, v) - mean V)` on the k likeliest tokens, `z_base` on all others."""

    name: ClassVar[str] = "vas"

    value: Annotated[str, "name of the guide that gives the values"]
    beta: Annotated[float | None, "weight of the value; 3.0 if not given"] = None
    k: Annotated[int | None, "candidates; 20 if not given"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wsd(Steer):
    """The aligned model speaks until `(p_1 ... p_window) ** (1 / window) >= threshold` under the base."""

    name: ClassVar[str] = "wsd"

    aligned: Annotated[str, "name of the small aligned language model"]
    window: Annotated[int | None, "tokens of the base whose mean decides; 6 if not given"] = None
    threshold: Annotated[float | None, "geometric mean probability from which the base takes over"] = None
    draft: Annotated[int | None, "tokens that the aligned model drafts at most at a time; 16 if not given"] = None
