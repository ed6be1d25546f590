"""Weights of several rewards by the prompt (Preference Orchestrator, Liu et al. 2025, arXiv 2511.10656).

Where the answer that people chose scores high by one reward, that reward is what counts for its prompt.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from trimtab.engine.guides.card import Card
from trimtab.engine.guides.config import GuideConfigs
from trimtab.engine.guides.folders import PREFERENCE_HEAD
from trimtab.engine.guides.preference import PreferenceHead
from trimtab.engine.loading import LoadedModel
from trimtab.engine.rewards import Pair
from trimtab.engine.settings import EngineSettings
from trimtab.engine.vocabulary import Vocabulary
from trimtab.llm import LLM
from trimtab.training.checkpoint import write
from trimtab.training.data import Preference, numbered, read, split
from trimtab.training.errors import DataError, TrainingError
from trimtab.training.features import read_states
from trimtab.training.loop import fit
from trimtab.training.losses import preference_cross_entropy
from trimtab.training.metrics import accuracy
from trimtab.training.options import PreferenceOptions
from trimtab.training.rows import answer_row
from trimtab.training.run import device_of, finish, open_base, open_folder, settings_of

SCORED = 64
"""answers between two steps of the progress bar"""


def train_preference(options: PreferenceOptions) -> Card:
    """Train and write preference weights; raises DataError, ModelLoadError, TrainingError and GuideError."""
    pairs = read(options.data, Preference)
    rewards = read_rewards(options.rewards)
    open_folder(options)
    scores = _scores(options, rewards, pairs)
    loaded = open_base(options)
    kept, held = split(pairs, options.held_out, options.schedule.seed, lambda pair: pair.prompt)
    told = normalised(scores, kept, tuple(rewards))
    task = PreferenceTask(_prompt_states(loaded, pairs), told, kept, held)
    run = settings_of(options) | {"scores": hashlib.sha256(scores.numpy().tobytes()).hexdigest()}
    progress = fit(task, options.schedule, options.out, run=run, label="preference")
    head = task.head(tuple(rewards))
    write(options.out / PREFERENCE_HEAD, head.save)
    return finish(options, loaded, progress.history[progress.best], examples=len(pairs), progress=progress)


def read_rewards(path: Path) -> GuideConfigs:
    """Read the rewards to weigh from a YAML file; TrainingError unless it names two guides or more."""
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
        rewards = TypeAdapter(GuideConfigs).validate_python(given)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        told = error.errors()[0] if isinstance(error, ValidationError) else None
        reason = " ".join(str(error).split()) if told is None else f"{'.'.join(map(str, told['loc']))}: {told['msg']}"
        raise TrainingError(
            f"cannot read the rewards {path}: {reason}; write lines like helpful: {{role: reward, model: FOLDER}}"
        ) from None
    if len(rewards) < 2:
        raise TrainingError(f"{path} names {len(rewards)} reward: there is something to weigh from 2 on")
    return rewards


def normalised(scores: Tensor, kept: Sequence[int], names: Sequence[str]) -> Tensor:
    """Scores (P, 2, k) less the mean, over the standard deviation, of each reward over all answers of the kept pairs.

    DataError, which names the reward, where it is the same for all.
    """
    known = scores[list(kept)].flatten(0, 1)  # (2 P, k)
    spread = known.std(dim=0, correction=0)
    for name, low, high in zip(names, known.amin(dim=0).tolist(), known.amax(dim=0).tolist(), strict=True):
        if low == high:
            raise DataError(f"reward {name!r} gives every answer {low:g}: leave it out, or add other answers")
    return (scores - known.mean(dim=0)) / spread


class PreferenceTask:
    """A linear map from prompts to weights, and the normalised rewards (P, 2, k) of chosen and rejected answers."""

    def __init__(self, states: Tensor, scores: Tensor, kept: Sequence[int], held: Sequence[int]) -> None:
        """`states` (P, D): the last normed hidden states at the ends of the prompts."""
        self._kept, self._held = list(kept), list(held)
        self._scores = scores.float()
        self._targets = self._scores[:, 0].softmax(dim=-1)  # (P, k)
        self._centre = states[self._kept].mean(dim=0)
        spread = states[self._kept].std(dim=0, correction=0)
        self._spread = torch.where(spread > 0, spread, torch.ones_like(spread))
        self._states = (states - self._centre) / self._spread
        count = scores.shape[-1]
        self._weight = nn.Parameter(torch.zeros(count, states.shape[1]))  # even weights to begin with
        self._bias = nn.Parameter(torch.zeros(count))

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        return {"weight": self._weight, "bias": self._bias}

    @property
    def lengths(self) -> list[int]:
        return [1] * len(self._kept)

    def loss(self, batch: Sequence[int]) -> Tensor:
        indices = [self._kept[index] for index in batch]
        return preference_cross_entropy(self._log_weights(indices), self._targets[indices])

    def evaluate(self) -> dict[str, float]:
        """`even_` is the same by weights that are all alike."""
        log_weights = self._log_weights(self._held)
        margins = self._scores[self._held, 0] - self._scores[self._held, 1]  # (B, k)
        return {
            "loss": preference_cross_entropy(log_weights, self._targets[self._held]).item(),
            "even_loss": math.log(margins.shape[1]),
            "accuracy": accuracy((log_weights.exp() * margins).sum(dim=1).tolist()),
            "even_accuracy": accuracy(margins.mean(dim=1).tolist()),
        }

    def describe(self, batch: Sequence[int]) -> str:
        return numbered(self._kept[index] for index in batch)

    def head(self, rewards: tuple[str, ...]) -> PreferenceHead:
        """The map from hidden states as they are."""
        weight = self._weight.detach() / self._spread
        return PreferenceHead(rewards, weight, self._bias.detach() - weight @ self._centre)

    def _log_weights(self, indices: Sequence[int]) -> Tensor:
        return (self._states[list(indices)] @ self._weight.T + self._bias).log_softmax(dim=-1)


def _scores(options: PreferenceOptions, rewards: GuideConfigs, pairs: Sequence[Preference]) -> Tensor:
    """Scores (P, 2, k) float64 of chosen and rejected answers, as the server would score them."""
    answers = [Pair(pair.messages, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    settings = EngineSettings(model=options.base, dtype=options.dtype, device=device_of(options), guides=rewards)
    columns: list[list[float]] = []
    with (
        LLM(settings=settings) as llm,
        tqdm(total=len(rewards) * len(answers), unit="answer", desc="scores") as bar,
    ):
        for name, config in rewards.items():
            if name not in llm.rewards:
                raise TrainingError(f"guide {name!r} (role {config.role}) scores no answers: name rewards alone")
            columns.append([])
            for at in range(0, len(answers), SCORED):
                columns[-1] += llm.score(name, answers[at : at + SCORED])
                bar.update(min(SCORED, len(answers) - at))
    return torch.tensor(columns, dtype=torch.float64).T.reshape(len(pairs), 2, len(rewards))


def _prompt_states(loaded: LoadedModel, pairs: Sequence[Preference]) -> Tensor:
    """Last normed hidden states (P, D) float32 at the ends of the prompts, on the CPU."""
    vocabulary = Vocabulary(loaded.tokenizer, loaded.embedding_rows)
    rows = [answer_row(vocabulary, pair.messages, "", None, loaded.context_length) for pair in pairs]
    return read_states(loaded, rows).hidden.float().cpu()
