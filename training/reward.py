"""A reward model: an adapter of the base with a score head, from ratings or from preferences."""

from collections.abc import Sequence
from itertools import takewhile
from operator import eq

import torch
from torch import Tensor, nn

from trimtab.engine.guides.card import Card
from trimtab.engine.guides.folders import TEMPLATE
from trimtab.engine.guides.prompts import guide_transcript
from trimtab.engine.loading import LoadedModel
from trimtab.engine.rewards import Pair
from trimtab.engine.templates import read_template
from trimtab.engine.vocabulary import Vocabulary
from trimtab.training.checkpoint import write
from trimtab.training.data import Preference, Rating, check_scores, numbered, read_any, split
from trimtab.training.errors import DataError
from trimtab.training.loop import fit
from trimtab.training.lora import Adapted
from trimtab.training.losses import bradley_terry, prefix_squared_error, squared_error
from trimtab.training.metrics import calibration_error, preference_metrics, spearman
from trimtab.training.options import RewardOptions
from trimtab.training.run import finish, open_base, open_folder, settings_of

EVALUATION_BATCH = 64


def train_reward(options: RewardOptions) -> Card:
    """Train and write a reward guide; raises DataError, ModelLoadError or TrainingError."""
    records = read_any(options.data, (Rating, Preference))
    ratings = [record for record in records if isinstance(record, Rating)]
    pairs = [record for record in records if isinstance(record, Preference)]
    if ratings:
        check_scores(options.data, [rating.score for rating in ratings])
    elif options.prefixes:
        raise DataError("prefixes are learned from ratings: leave --prefixes out for chosen and rejected answers")
    template = read_template(str(options.chat_template)) if options.chat_template else None
    open_folder(options)
    loaded = open_base(options)
    task: _FromRatings | _FromPreferences
    if ratings:
        task = _FromRatings(loaded, options, template, ratings)
    else:
        task = _FromPreferences(loaded, options, template, pairs)
    progress = fit(task, options.schedule, options.out, run=settings_of(options), label="reward")
    task.adapted.save(options.out, task="SEQ_CLS", head=task.head)
    if template is None:
        (options.out / TEMPLATE).unlink(missing_ok=True)  # of an earlier reward in the same folder
    else:
        write(options.out / TEMPLATE, lambda path: path.write_text(template, encoding="utf-8"))
    return finish(options, loaded, progress.history[progress.best], examples=len(records), progress=progress)


class Reader:
    """How the reward reads a conversation: as the engine will, under its own template or the base's."""

    def __init__(self, loaded: LoadedModel, template: str | None) -> None:
        if template is not None:
            loaded.tokenizer.chat_template = template
        self._vocabulary = Vocabulary(loaded.tokenizer, loaded.embedding_rows)
        self._limit = loaded.context_length

    def start(self, pair: Pair, ids: Sequence[int]) -> int:
        """Where the answer begins in the `ids` of `pair`."""
        empty = self.ids(Pair(pair.messages, ""))
        return sum(1 for _ in takewhile(bool, map(eq, ids, empty)))

    def ids(self, pair: Pair) -> list[int]:
        """The ids of a conversation with its answer."""
        return guide_transcript("reward", self._vocabulary, pair.messages, pair.answer, limit=self._limit)


class _Reward:
    """What both kinds of data train: the adapter and the head that reads its last hidden state."""

    _kept: list[int]
    """examples to train on"""

    def __init__(self, loaded: LoadedModel, options: RewardOptions) -> None:
        self.adapted = Adapted(loaded, options.lora, options.schedule.seed)
        width = loaded.model.config.get_text_config().hidden_size
        self.head = nn.Parameter(torch.zeros(1, width, device=loaded.model.device))

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self.adapted.parameters | {"score": self.head}

    def every(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Scores (B, T) at every token."""
        hidden, _ = self.adapted.hidden(rows)
        return hidden @ self.head[0]

    def last(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Scores (B,) at the last token of each row."""
        hidden, mask = self.adapted.hidden(rows)
        return hidden[torch.arange(len(rows)), mask.sum(dim=1) - 1] @ self.head[0]

    def scores(self, rows: Sequence[Sequence[int]]) -> list[float]:
        """Scores of any number of rows, without a graph."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        told = [0.0] * len(rows)
        for at in range(0, len(order), EVALUATION_BATCH):
            part = order[at : at + EVALUATION_BATCH]
            for index, score in zip(part, self.last([rows[index] for index in part]).tolist(), strict=True):
                told[index] = score
        return told

    def describe(self, batch: Sequence[int]) -> str:
        return numbered(self._kept[index] for index in batch)


class _FromRatings(_Reward):
    """Regression on ratings, at the end of a text or at every prefix of it."""

    def __init__(
        self, loaded: LoadedModel, options: RewardOptions, template: str | None, ratings: Sequence[Rating]
    ) -> None:
        super().__init__(loaded, options)
        reader = Reader(loaded, template)
        self._prefixes = options.prefixes
        self._rows = [reader.ids(rating.pair) for rating in ratings]
        self._starts = [
            reader.start(rating.pair, ids) if options.prefixes else 0
            for rating, ids in zip(ratings, self._rows, strict=True)
        ]
        self._ratings = torch.tensor([rating.score for rating in ratings], device=self.head.device)
        self._kept, self._held = split(
            ratings, options.held_out, options.schedule.seed, lambda rating: rating.prompt or rating.text
        )

    @property
    def lengths(self) -> list[int]:
        return [len(self._rows[index]) for index in self._kept]

    def loss(self, batch: Sequence[int]) -> Tensor:
        indices = [self._kept[index] for index in batch]
        rows, ratings = [self._rows[index] for index in indices], self._ratings[indices]
        if not self._prefixes:
            return squared_error(self.last(rows), ratings)
        scores = self.every(rows)
        starts = torch.tensor([self._starts[index] for index in indices], device=scores.device)
        ends = torch.tensor([len(row) for row in rows], device=scores.device)
        at = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
        places = (at - starts[:, None] + 1).clamp(min=0) * (at < ends[:, None])
        return prefix_squared_error(scores, ratings, places)

    def evaluate(self) -> dict[str, float]:
        scores = torch.tensor(self.scores([self._rows[index] for index in self._held]))
        ratings = self._ratings[self._held].cpu()
        return {
            "loss": squared_error(scores, ratings).item(),
            "spearman": spearman(scores, ratings),
            "calibration_error": calibration_error(scores, ratings),
        }


class _FromPreferences(_Reward):
    """Bradley-Terry on pairs of answers."""

    def __init__(
        self, loaded: LoadedModel, options: RewardOptions, template: str | None, pairs: Sequence[Preference]
    ) -> None:
        super().__init__(loaded, options)
        reader = Reader(loaded, template)
        self._rows = [
            (reader.ids(Pair(each.messages, each.chosen)), reader.ids(Pair(each.messages, each.rejected)))
            for each in pairs
        ]
        self._kept, self._held = split(pairs, options.held_out, options.schedule.seed, lambda pair: pair.prompt)

    @property
    def lengths(self) -> list[int]:
        return [max(map(len, self._rows[index])) for index in self._kept]

    def loss(self, batch: Sequence[int]) -> Tensor:
        pairs = [self._rows[self._kept[index]] for index in batch]
        scores = self.last([row for pair in pairs for row in pair]).view(-1, 2)
        return bradley_terry(scores[:, 0], scores[:, 1])

    def evaluate(self) -> dict[str, float]:
        scores = torch.tensor(self.scores([row for index in self._held for row in self._rows[index]])).view(-1, 2)
        margins = scores[:, 0] - scores[:, 1]
        loss = bradley_terry(scores[:, 0], scores[:, 1]).item()
        return {"loss": loss, **preference_metrics(margins.tolist())}
