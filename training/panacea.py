"""An adapter whose blocks a preference scales, by request (Panacea, Zhong et al. 2024, arXiv 2402.02030).

The paper writes a layer as W + U diag(sigma, s * lambda) V^T: general singular values, and one for each attribute that
is the attribute's weight times a learned factor of the layer. Here an attribute has a block of rank dimensions, and
sigma and s are part of the factors' lengths: W + B diag(1, ..., 1, lambda_1, ..., lambda_m) A.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Dirichlet

from trimtab.engine.guides.card import Card
from trimtab.engine.guides.folders import BLOCKS
from trimtab.engine.vocabulary import Vocabulary
from trimtab.training.answers import Contrast
from trimtab.training.checkpoint import write
from trimtab.training.data import Preference, digest, numbered, read, split
from trimtab.training.errors import DataError, TrainingError
from trimtab.training.loop import fit
from trimtab.training.lora import Adapted
from trimtab.training.losses import direct_preference
from trimtab.training.metrics import accuracy
from trimtab.training.options import PanaceaOptions
from trimtab.training.rows import answer_row, closing_id
from trimtab.training.run import finish, open_base, open_folder, settings_of


def train_panacea(options: PanaceaOptions) -> Card:
    """Train and write an adapter with a block for each attribute; raises DataError, ModelLoadError, TrainingError.

    The attributes are the files NAME.jsonl of the folder `data`, each with preferences by that attribute alone.
    """
    files = _files(options.data)
    records = {name: read(path, Preference) for name, path in files.items()}
    general = options.lora.rank - len(files) * options.block
    if general < 0:
        raise TrainingError(
            f"{len(files)} attributes of --block {options.block} need --rank {len(files) * options.block} at least"
        )
    open_folder(options)
    loaded = open_base(options)
    vocabulary = Vocabulary(loaded.tokenizer, loaded.embedding_rows)
    eos_id, limit = closing_id(loaded, vocabulary), loaded.context_length

    def contrast(index: int, pair: Preference) -> Contrast:
        chosen, rejected = (
            answer_row(vocabulary, pair.messages, answer, eos_id, limit) for answer in (pair.chosen, pair.rejected)
        )
        prompt = tuple((message["role"], message["content"]) for message in pair.messages)
        return Contrast(index, prompt, chosen, rejected)

    examples = {name: [contrast(index, pair) for index, pair in enumerate(found)] for name, found in records.items()}
    adapted = Adapted(loaded, options.lora, options.schedule.seed)
    blocks = Blocks(adapted, general, len(files), options.block)
    run = settings_of(options) | {f"data.{name}": digest(path) for name, path in files.items()}
    progress = fit(
        _Weighed(adapted, blocks, examples, options), options.schedule, options.out, run=run, label="panacea"
    )
    adapted.save(options.out, task="CAUSAL_LM")
    told = {"general": general, "blocks": dict.fromkeys(files, options.block)}
    write(options.out / BLOCKS, lambda path: path.write_text(json.dumps(told) + "\n", encoding="utf-8"))
    return finish(
        options,
        loaded,
        progress.history[progress.best],
        examples=sum(map(len, examples.values())),
        progress=progress,
    )


class Blocks:
    """The rank dimensions of an adapter: those that all preferences share, then those of each attribute."""

    def __init__(self, adapted: Adapted, general: int, attributes: int, size: int) -> None:
        self._general = general
        self._size = size
        self._factors = torch.ones(general + attributes * size, device=adapted.loaded.model.device)  # (r,)
        for path, module in adapted.loaded.model.named_modules():
            if path.endswith(".lora_A.default"):
                module.register_forward_hook(lambda _, __, output: output * self._factors)

    @contextmanager
    def scaled(self, preference: Tensor) -> Iterator[None]:
        """The adapter under these weights (m,) of the attributes."""
        before, shared = self._factors, self._factors.new_ones(self._general)
        self._factors = torch.cat((shared, preference.to(before).repeat_interleave(self._size)))
        try:
            yield
        finally:
            self._factors = before


class _Weighed:
    """The task of `fit`: the sum of the attributes' DPO losses, by a preference that every step draws anew.

    It is the paper's linear scalarisation. What the plain base says of every answer is computed once, here.
    """

    def __init__(
        self, adapted: Adapted, blocks: Blocks, examples: Mapping[str, Sequence[Contrast]], options: PanaceaOptions
    ) -> None:
        self._adapted = adapted
        self._blocks = blocks
        self._options = options
        self._examples = examples
        self._kept: dict[str, list[int]] = {}
        self._held: dict[str, list[int]] = {}
        self._reference: dict[str, Tensor] = {}
        for name, found in examples.items():
            self._kept[name], self._held[name] = split(
                found, options.held_out, options.schedule.seed, lambda each: each.prompt
            )
            with adapted.plain():
                rows = [row for each in found for row in each[2:]]
                sums = adapted.sums(rows, 2 * options.schedule.batch, f"reference of {name}")
            self._reference[name] = sums.view(-1, 2)

    @property
    def parameters(self) -> dict[str, Tensor]:
        return self._adapted.parameters

    @property
    def lengths(self) -> list[int]:
        steps = range(max(map(len, self._kept.values())))
        return [
            max(len(row.ids) for name, at in self._at([index]).items() for row in self._examples[name][at[0]][2:])
            for index in steps
        ]

    def loss(self, batch: Sequence[int]) -> Tensor:
        preference: Tensor = Dirichlet(torch.full((len(self._examples),), self._options.concentration)).sample()
        at = self._at(batch)
        rows = [row for name, places in at.items() for place in places for row in self._examples[name][place][2:]]
        with self._blocks.scaled(preference):
            logprobs, _ = self._adapted.logprobs(rows)
        sums = logprobs.sum(dim=1).view(len(at), -1, 2)
        losses = [self._loss(name, each, places) for each, (name, places) in zip(sums, at.items(), strict=True)]
        return (preference.to(sums.device) * torch.stack(losses)).sum()

    def evaluate(self) -> dict[str, float]:
        """Loss: the mean over the even preference and those for one attribute alone."""
        told: dict[str, float] = {}
        count = len(self._examples)
        total = 0.0
        for index, (name, held) in enumerate(self._held.items()):
            alone, margins = self._held_out(name, held, torch.eye(count)[index])
            even, shared = self._held_out(name, held, torch.full((count,), 1 / count))
            told |= {
                f"{name}_accuracy": accuracy(margins.tolist()),
                f"{name}_margin": margins.mean().item(),
                f"{name}_margin_even": shared.mean().item(),
            }
            total += (alone + even / count) / (count + 1)
        return {"loss": total, **told}

    def describe(self, batch: Sequence[int]) -> str:
        return "; ".join(f"{name}: {numbered(places)}" for name, places in self._at(batch).items())

    def _at(self, batch: Sequence[int]) -> dict[str, list[int]]:
        """Which examples of each attribute a step reads; the shorter files begin anew."""
        return {name: [kept[index % len(kept)] for index in batch] for name, kept in self._kept.items()}

    def _held_out(self, name: str, held: Sequence[int], preference: Tensor) -> tuple[float, Tensor]:
        """Loss and margins (N,) of an attribute's held-out pairs under a preference."""
        rows = [row for place in held for row in self._examples[name][place][2:]]
        with self._blocks.scaled(preference):
            sums = self._adapted.sums(rows, 2 * self._options.schedule.batch).view(-1, 2)
        moved = sums - self._reference[name][list(held)]
        return self._loss(name, sums, held).item(), self._options.beta * (moved[:, 0] - moved[:, 1])

    def _loss(self, name: str, sums: Tensor, places: Sequence[int]) -> Tensor:
        """`sums` (B, 2), of the chosen answers and of the rejected ones."""
        reference = self._reference[name][list(places)].to(sums.device)
        return direct_preference(sums[:, 0], sums[:, 1], reference[:, 0], reference[:, 1], self._options.beta)


def _files(folder: Path) -> dict[str, Path]:
    """The data of every attribute, by the attribute's name; DataError unless there are at least two."""
    files = {path.stem: path for path in sorted(folder.glob("*.jsonl"))}
    if len(files) < 2:
        raise DataError(
            f"{folder} holds {len(files)} files that end in .jsonl: a preference weighs at least two attributes, "
            "each with a file of its name"
        )
    return files
