"""What an adapter learns from better and worse answers: a reward of its log-probabilities (GenARM), or DPO."""

from collections.abc import Sequence

from torch import Tensor

from trimtab.training.answers import Contrast
from trimtab.training.data import numbered, split
from trimtab.training.lora import Adapted
from trimtab.training.losses import autoregressive_reward, direct_preference
from trimtab.training.metrics import preference_metrics
from trimtab.training.options import ArmOptions, ExpertOptions


class Contrasts:
    """The task of `fit`; answers count by the sum of their tokens' log-probabilities.

    With `reference`, what the plain base says of every answer is computed once, here.
    """

    def __init__(
        self, adapted: Adapted, examples: Sequence[Contrast], options: ArmOptions | ExpertOptions, *, reference: bool
    ) -> None:
        self._adapted = adapted
        self._examples = examples
        self._beta = options.beta
        self._batch = 2 * options.schedule.batch
        self._kept, self._held = split(examples, options.held_out, options.schedule.seed, lambda each: each.prompt)
        self._reference: Tensor | None = None
        if reference:
            with adapted.plain():
                self._reference = self._sums(range(len(examples)), "reference")

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self._adapted.parameters

    @property
    def lengths(self) -> list[int]:
        examples = (self._examples[index] for index in self._kept)
        return [max(len(each.chosen.ids), len(each.rejected.ids)) for each in examples]

    def loss(self, batch: Sequence[int]) -> Tensor:
        indices = [self._kept[index] for index in batch]
        rows = [row for index in indices for row in self._examples[index][2:]]
        logprobs, _ = self._adapted.logprobs(rows)
        return self._loss(logprobs.sum(dim=1).view(-1, 2), indices)

    def evaluate(self) -> dict[str, float]:
        sums = self._sums(self._held)
        margins = sums[:, 0] - sums[:, 1]
        if self._reference is not None:
            margins -= self._reference[self._held, 0] - self._reference[self._held, 1]
        loss = self._loss(sums, self._held).item()
        return {"loss": loss, **preference_metrics((self._beta * margins).tolist())}

    def describe(self, batch: Sequence[int]) -> str:
        return numbered(self._examples[self._kept[index]].record for index in batch)

    def _loss(self, sums: Tensor, indices: Sequence[int]) -> Tensor:
        """`sums` (B, 2), of the chosen answers and of the rejected ones."""
        chosen, rejected = sums.unbind(dim=1)
        if self._reference is None:
            return autoregressive_reward(chosen, rejected, self._beta)
        reference = self._reference[list(indices)].to(sums.device)
        return direct_preference(chosen, rejected, reference[:, 0], reference[:, 1], self._beta)

    def _sums(self, indices: Sequence[int], label: str | None = None) -> Tensor:
        rows = [row for index in indices for row in self._examples[index][2:]]
        return self._adapted.sums(rows, self._batch, label).view(-1, 2)
