"""A line through points: the smallest thing that the training loop can fit."""

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.training.schedule import Schedule

SCHEDULE = Schedule(epochs=3, batch=4, lr=0.1, warmup=0.0)


class Interrupted(Exception):
    """Stands for Ctrl-C."""


class Line:
    """y = a x + b on 20 noisy points, of which the last 4 are held out."""

    def __init__(self, *, stop: int | None = None, poison: int | None = None, held_out: Sequence[float] = ()) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(20, generator=generator)
        self.y = 3.0 * self.x - 1.0 + 0.1 * torch.randn(20, generator=generator)
        if poison is not None:
            self.y[poison] = torch.nan
        self.a, self.b = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
        self.batches: list[list[int]] = []
        """seen so far"""
        self._stop = stop
        self._held_out = list(held_out)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return {"a": self.a, "b": self.b}

    @property
    def lengths(self) -> list[int]:
        return [1] * 16

    def loss(self, batch: Sequence[int]) -> Tensor:
        """`stop` interrupts before that many steps and one."""
        if len(self.batches) == self._stop:
            raise Interrupted
        self.batches.append(list(batch))
        return self._error(list(batch))

    def evaluate(self) -> dict[str, float]:
        """The error on the held-out points, or what `held_out` says of this epoch."""
        return {"loss": self._held_out.pop(0) if self._held_out else self._error(list(range(16, 20))).item()}

    def describe(self, batch: Sequence[int]) -> str:
        return f"points {sorted(batch)}"

    def _error(self, batch: list[int]) -> Tensor:
        return (self.a * self.x[batch] + self.b - self.y[batch]).square().mean()
