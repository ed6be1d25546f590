"""RMS norms of transformers models as one torch call instead of six."""

import inspect

import torch
from torch import Tensor, nn


class FusedRMSNorm(nn.Module):
    """`weight * x / sqrt(mean(x^2) + eps)` over the last axis, in float32 inside and rounded once at the end.

    torch has one CPU kernel for the layer norm and eight for the RMS norm. The row (x, -x) has mean zero, so its
    layer norm is the RMS norm of x in the first half. transformers rounds to bfloat16 before it multiplies by the
    weight: the last bit may differ there.
    """

    doubled: Tensor

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self.size = weight.numel()
        self.register_buffer("doubled", torch.cat((weight.detach(), torch.zeros_like(weight))), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat((x, -x), dim=-1)
        return torch.layer_norm(both, (2 * self.size,), self.doubled, None, self.eps)[..., : self.size]


@torch.no_grad()
def fused_norm(module: nn.Module) -> FusedRMSNorm | None:
    """The fused form of `module`, which shares its weight, if a probe shows that it computes the same.

    Only classes named `...RMSNorm` are tried; another formula under that name, such as Gemma's `(1 + weight)`,
    gives None.
    """
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(weight, nn.Parameter):
        return None
    if weight.device.type != "cpu":  # CUDA has one kernel for it already
        return None
    if not isinstance(eps, float) or len(inspect.signature(module.forward).parameters) != 1:
        return None
    fused = FusedRMSNorm(weight, eps)
    # Rows far below and above eps, so that its place in the formula counts; no random state is touched.
    wave = torch.linspace(1.0, 40.0, weight.numel(), device=weight.device).sin() + 0.1
    scales = torch.tensor([eps**0.5, 1.0, 100.0], device=weight.device)
    probe = (scales[:, None] * wave).to(weight.dtype)
    want, got = module(probe), fused(probe)
    close = 1e-5 if weight.dtype == torch.float32 else torch.finfo(weight.dtype).eps
    same = want.dtype == got.dtype and torch.allclose(got, want, rtol=close, atol=0.0)
    return fused if same else None
