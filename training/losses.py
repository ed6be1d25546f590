"""The losses, as formulas over tensors; what is summed and averaged is said, nothing else happens here."""

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """-log sigma(r_w - r_l), the mean over pairs (B,)."""
    return -logsigmoid(chosen - rejected).mean()


def squared_error(scores: Tensor, ratings: Tensor) -> Tensor:
    """(r - rating)^2, the mean over texts (B,)."""
    return (scores - ratings).square().mean()


def prefix_squared_error(scores: Tensor, ratings: Tensor, places: Tensor) -> Tensor:
    """Weighted error of every prefix, sum_t t * (r_t - rating)^2 / sum_t t, the mean over texts.

    `scores` (B, T) at every token, `ratings` (B,), `places` (B, T): t = 1, 2, ... for the tokens of the answer and 0
    for all others. Longer prefixes count more (RAD, Deng and Raffel 2023, arXiv 2310.09520).
    """
    weights = places.to(scores.dtype)
    errors = (scores - ratings[:, None]).square() * weights
    return (errors.sum(dim=1) / weights.sum(dim=1)).mean()


def value_regression(values: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """1/2 sum_t (V(h_t) - target_t)^2, the mean over answers; all (B, T), targets carry no gradient.

    With the answer's reward as every target it is CD-FUDGE (Mudgal et al. 2023, arXiv 2310.17022).
    """
    return 0.5 * ((values - targets.detach()).square() * mask).sum(dim=1).mean()


def autoregressive_reward(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """-log sigma(beta_r (log pi_r(y_w) - log pi_r(y_l))), the mean over pairs (B,) of summed log-probabilities.

    GenARM (Xu et al. 2024, arXiv 2410.08193); there is no reference model.
    """
    return -logsigmoid(beta * (chosen - rejected)).mean()


def direct_preference(
    chosen: Tensor, rejected: Tensor, chosen_reference: Tensor, rejected_reference: Tensor, beta: float
) -> Tensor:
    """-log sigma(beta ((lp - lp_ref)(y_w) - (lp - lp_ref)(y_l))), the mean over pairs (B,) of summed log-probabilities.

    DPO (Rafailov et al. 2023, arXiv 2305.18290).
    """
    return -logsigmoid(beta * ((chosen - chosen_reference) - (rejected - rejected_reference))).mean()


def imitation(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Negative log-likelihood of the masked tokens (B, T), the mean over tokens."""
    return -(logprobs * mask).sum() / mask.sum()


def preference_cross_entropy(log_weights: Tensor, targets: Tensor) -> Tensor:
    """-sum_i target_i log w_i, the mean over prompts; `log_weights` and `targets` (B, k), targets on the simplex."""
    return -(targets * log_weights).sum(dim=-1).mean()
