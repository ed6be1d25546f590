"""An expert: an adapter that imitates answers, or prefers chosen ones (DPO, arXiv 2305.18290)."""

import math
from collections.abc import Sequence

from torch import Tensor

from trimtab.engine.guides.card import Card
from trimtab.training.answers import Scored, open_answers
from trimtab.training.contrasts import Contrasts
from trimtab.training.data import numbered, split
from trimtab.training.errors import DataError
from trimtab.training.lora import Adapted
from trimtab.training.losses import imitation
from trimtab.training.options import ExpertOptions
from trimtab.training.writer import train_writer


def train_expert(options: ExpertOptions) -> Card:
    """Train and write an expert, or with `keep` worst an anti-expert; raises DataError, ModelLoadError, TrainingError.

    sft imitates the chosen answers of preferences, or a share of a prompt's rated or sampled answers; dpo prefers the
    chosen ones, or the best over the worst.
    """
    answers = open_answers(options)
    if answers.preferences and "share" in options.model_fields_set:
        raise DataError("--share chooses among rated or sampled answers: leave it out for chosen and rejected ones")
    adapted = Adapted(answers.loaded, options.lora, options.schedule.seed)
    task: Contrasts | _Imitation
    if options.method == "dpo":
        task = Contrasts(adapted, answers.contrasts(), options, reference=True)
    else:
        task = _Imitation(adapted, answers.imitated(options.keep, options.share), options)
    return train_writer(adapted, task, answers, options)


class _Imitation:
    """Maximum likelihood of answers, given their prompts."""

    def __init__(self, adapted: Adapted, examples: Sequence[Scored], options: ExpertOptions) -> None:
        self._adapted = adapted
        self._examples = examples
        self._batch = options.schedule.batch
        self._kept, self._held = split(
            examples, options.held_out, options.schedule.seed, lambda each: each.prompt or tuple(each.row.ids)
        )

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self._adapted.parameters

    @property
    def lengths(self) -> list[int]:
        return [len(self._examples[index].row.ids) for index in self._kept]

    def loss(self, batch: Sequence[int]) -> Tensor:
        return imitation(*self._adapted.logprobs([self._examples[self._kept[index]].row for index in batch]))

    def evaluate(self) -> dict[str, float]:
        rows = [self._examples[index].row for index in self._held]
        loss = -self._adapted.sums(rows, self._batch).sum().item() / sum(len(row.ids) - row.start for row in rows)
        return {"loss": loss, "perplexity": math.exp(loss)}

    def describe(self, batch: Sequence[int]) -> str:
        return numbered(self._examples[self._kept[index]].record for index in batch)
