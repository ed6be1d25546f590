"""Draws with loops that are really compiled, beside plain ones; in a process of its own, as a server compiles them."""

import torch
from rows import keys, normal, row_params

from trimtab.kernels.compiled import compile_loops
from trimtab.kernels.steer_sample import steer_sample

ROWS = [(1.0, 0, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (0.7, 5, 1.0, 0.0), (1.3, 0, 1.0, 0.05)]

if __name__ == "__main__":
    n, base = len(ROWS), normal(len(ROWS), 1000)
    base[:, ::9] = -torch.inf
    compile_loops(1000)
    for measured in (None, torch.ones(n, dtype=torch.bool)):
        plain, found = (
            steer_sample(base, row_params(*ROWS), keys(n), measured=measured, backend=backend)
            for backend in ("torch", "compiled")
        )
        assert torch.equal(found.token, plain.token)
        for name in ("logprob", "entropy", "kl", "base_entropy", "top1"):
            torch.testing.assert_close(
                getattr(found, name), getattr(plain, name), rtol=1e-5, atol=1e-5, equal_nan=True, msg=name
            )
    print("equal")
