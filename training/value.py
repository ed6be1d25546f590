"""A value head: what the reward of the finished answer will be, read from the base's hidden state."""

import shutil
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from trimtab.engine.guides.card import Card
from trimtab.engine.guides.config import ValueConfig
from trimtab.engine.guides.folders import VALUE_HEAD
from trimtab.engine.loading import LoadedModel
from trimtab.engine.vocabulary import Vocabulary
from trimtab.training.checkpoint import write
from trimtab.training.data import Prompted, Rating, check_scores, numbered, read_any, split
from trimtab.training.errors import DataError
from trimtab.training.features import Expectation, read_states
from trimtab.training.heads import Batch, TextHead, TokenHead, Units, token_directions
from trimtab.training.loop import Progress, fit
from trimtab.training.losses import value_regression
from trimtab.training.metrics import calibration_error, spearman
from trimtab.training.options import ValueOptions
from trimtab.training.rollouts import Rollout, checksum, policy, rollouts
from trimtab.training.rows import Row, answer_row, closing_id
from trimtab.training.run import finish, open_base, open_folder, settings_of
from trimtab.training.targets import expected_next, monte_carlo, td_lambda

GUIDE: Final = "value"
"""name of the last head while it guides the answers of the next iteration"""
EVALUATION_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer behind its prompt, and what it got."""

    row: Row
    reward: float
    example: int
    """of the data, for a person who looks for it"""
    prompt: Hashable
    """answers to one prompt are held out together"""


def train_value(options: ValueOptions) -> Card:
    """Train and write a value head; raises DataError, ModelLoadError, TrainingError and what sampling raises.

    Data are rated answers, or prompts, for which the engine samples answers. Every further of the `iterations` samples
    them from the policy that the last head guides, and fits the head to these answers alone, from where it was: the
    value is then one of the guided policy (IVO, Liu et al. 2025, arXiv 2503.02368).
    """
    records = read_any(options.data, (Rating, Prompted))
    open_folder(options)
    earlier = options.out / "iterations"
    if options.restart:
        shutil.rmtree(earlier, ignore_errors=True)
    ratings = [record for record in records if isinstance(record, Rating)]
    prompts = [record for record in records if isinstance(record, Prompted)]
    if ratings:
        if options.iterations > 1:
            raise DataError(f"{options.data} holds rated answers, and iterations sample their own: give prompts alone")
        check_scores(options.data, [rating.score for rating in ratings])
        loaded = open_base(options)
        task = ValueTask(loaded, options, _rated(loaded, ratings))
        progress = _fit(task, options, options.out, settings_of(options))
        return finish(options, loaded, progress.history[progress.best], examples=len(ratings), progress=progress)
    head: TextHead | TokenHead | None = None
    guide: Path | None = None
    for iteration in range(1, options.iterations + 1):
        found, author = _sampled(options, prompts, iteration, guide)
        loaded = open_base(options)
        task = ValueTask(loaded, options, _answers(options, prompts, found), head)
        folder = options.out if iteration == options.iterations else earlier / str(iteration)
        run = settings_of(options) | {"iteration": iteration, "rollouts": checksum(found)}
        progress = _fit(task, options, folder, run)
        head, guide = task.head, folder / VALUE_HEAD
    card = finish(
        options, loaded, progress.history[progress.best], examples=len(prompts), policy=author, progress=progress
    )
    shutil.rmtree(earlier, ignore_errors=True)
    return card


class ValueTask:
    """A head, the states of answers that it is fitted on, and those of answers that are held out."""

    def __init__(
        self,
        loaded: LoadedModel,
        options: ValueOptions,
        answers: Sequence[Answer],
        head: TextHead | TokenHead | None = None,
    ) -> None:
        """Read the states; `head` is one to go on with."""
        self._method, self._trace = options.method, options.trace
        self._answers = answers
        self._kept, self._held = split(answers, options.held_out, options.schedule.seed, lambda answer: answer.prompt)
        device = loaded.model.device
        directions = token_directions(loaded.model.get_output_embeddings().weight) if options.tokens else None
        expectation = None
        if options.method == "q" and directions is not None:
            expectation = Expectation(directions, options.sampled.temperature)
        self._states = read_states(loaded, [answer.row for answer in answers], expectation)
        self._rewards = torch.tensor([answer.reward for answer in answers], device=device)
        self.head = head or self._fresh(options, directions)

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return self.head.parameters

    @property
    def lengths(self) -> list[int]:
        return [len(self._answers[index].row.ids) - self._answers[index].row.start for index in self._kept]

    def loss(self, batch: Sequence[int]) -> Tensor:
        told = self._batch([self._kept[index] for index in batch])
        values, mask = self.head.values(told)
        if self._method == "td":
            targets = td_lambda(values, told.rewards, mask, self._trace)
        elif self._method == "q":
            assert isinstance(self.head, TokenHead)  # ValueOptions
            targets = expected_next(self.head.expected(told), told.rewards, mask)
        else:
            targets = monte_carlo(told.rewards, mask)
        return value_regression(values, targets, mask)

    def evaluate(self) -> dict[str, float]:
        """The held-out loss is that of CD-FUDGE for every method: all want the mean reward, and only it is not moved.

        The other numbers compare the values half-way through the answers, and at their ends, with their rewards.
        """
        loss, half, end = 0.0, [], []
        for at in range(0, len(self._held), EVALUATION_BATCH):
            told = self._batch(self._held[at : at + EVALUATION_BATCH])
            values, mask = self.head.values(told)
            loss += value_regression(values, monte_carlo(told.rewards, mask), mask).item() * len(values)
            last = mask.sum(dim=1, dtype=torch.long)[:, None] - 1
            end += values.gather(1, last)[:, 0].tolist()
            half += values.gather(1, last // 2)[:, 0].tolist()
        rewards = self._rewards[self._held].tolist()
        return {
            "loss": loss / len(rewards),
            "spearman_half": spearman(half, rewards),
            "spearman_end": spearman(end, rewards),
            "calibration_error": calibration_error(half, rewards),
        }

    def describe(self, batch: Sequence[int]) -> str:
        return numbered(sorted({self._answers[self._kept[index]].example for index in batch}))

    def save(self, path: Path) -> None:
        """Write the head: float16 for one with a value for every token, which is large, else float32."""
        dtype = torch.float16 if isinstance(self.head, TokenHead) else torch.float32
        head = self.head.export()
        write(path, lambda place: head.save(place, dtype))

    def _fresh(self, options: ValueOptions, directions: Tensor | None) -> TextHead | TokenHead:
        states = [self._states.hidden[self._states.of(index)] for index in self._kept]
        units = Units.of(torch.cat(states), self._rewards[self._kept])
        sizes = [self._states.hidden.shape[1], *[options.width] * (options.layers - 1)]
        if directions is None:
            return TextHead(sizes, units, options.schedule.seed)
        return TokenHead(sizes, units, options.schedule.seed, directions)

    def _batch(self, indices: Sequence[int]) -> Batch:
        states, rows = self._states, [self._answers[index].row for index in indices]
        expected = states.expected
        tokens = [torch.tensor(row.ids[row.start :]) for row in rows]
        device = states.hidden.device
        return Batch(
            hidden=pad_sequence([states.hidden[states.of(index)] for index in indices], batch_first=True),
            tokens=pad_sequence(tokens, batch_first=True).to(device),
            expected=None
            if expected is None
            else pad_sequence([expected[states.of(index)] for index in indices], batch_first=True),
            lengths=torch.tensor([len(row) for row in tokens], device=device),
            rewards=self._rewards[list(indices)],
        )


def _fit(task: ValueTask, options: ValueOptions, folder: Path, run: Mapping[str, Any]) -> Progress:
    progress = fit(task, options.schedule, folder, run=run, label="value")
    task.save(folder / VALUE_HEAD)
    return progress


def _rated(loaded: LoadedModel, ratings: Sequence[Rating]) -> list[Answer]:
    vocabulary = Vocabulary(loaded.tokenizer, loaded.embedding_rows)
    closing = closing_id(loaded, vocabulary)
    found = []
    for example, rating in enumerate(ratings):
        pair = rating.pair
        row = answer_row(vocabulary, pair.messages, pair.answer, closing, loaded.context_length)
        found.append(Answer(row, rating.score, example, rating.prompt or rating.text))
    return found


def _sampled(
    options: ValueOptions, prompts: Sequence[Prompted], iteration: int, guide: Path | None
) -> tuple[list[Rollout], str]:
    """The answers of an iteration, and whose they are."""
    decoding: dict[str, Any] | None = None
    if guide is not None and options.tokens:
        decoding = {"strategy": "cd", "value": GUIDE, "lam": options.guidance}
    elif guide is not None:  # one value of a text cannot weigh tokens, but blocks of them
        decoding = {"strategy": "cd_blockwise", "value": GUIDE}
    found = rollouts(
        options,
        options.sampled,
        [record.messages for record in prompts],
        seed=options.schedule.seed + iteration - 1,
        decoding=decoding,
        guides=None if guide is None else {GUIDE: ValueConfig(model=str(guide))},
    )
    rewards = {each.reward for each in found}
    if len(rewards) == 1:
        raise DataError(
            f"all {len(found)} sampled answers got the reward {rewards.pop():g}: give other prompts, or a reward that "
            "tells answers apart"
        )
    return found, policy(options, options.sampled, decoding)


def _answers(options: ValueOptions, prompts: Sequence[Prompted], found: Sequence[Rollout]) -> list[Answer]:
    return [
        Answer(
            Row([*each.prompt_ids, *each.tokens], len(each.prompt_ids)),
            each.reward,
            at // options.sampled.answers,
            prompts[at // options.sampled.answers].prompt,
        )
        for at, each in enumerate(found)
    ]
