"""A kernel that Triton's interpreter runs and its compiler refuses: what the compile gate is there to find."""

import torch
import triton
import triton.language as tl
from launches import Launch
from torch import Tensor


@triton.jit
def halves(x_ptr, out_ptr, count):
    """Half the sum of the first `count` entries, in a variable that starts as an integer."""
    total = 0
    i = 0
    while i < count:
        total += 0.5 * tl.load(x_ptr + i)
        i += 1
    tl.store(out_ptr, total)


def launch(x: Tensor) -> Tensor:
    out = torch.zeros(1, device=x.device)
    halves[(1,)](x, out, len(x))
    return out


LAUNCH = Launch(lambda: launch(torch.zeros(7)))
