"""A frozen base with a low-rank adapter that is trained (LoRA, arXiv 2106.09685), by PEFT."""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from trimtab.engine.loading import LoadedModel
from trimtab.engine.variants import decoder_layers, find_linears
from trimtab.training.checkpoint import write
from trimtab.training.errors import TrainingError
from trimtab.training.layers import span
from trimtab.training.options import Lora
from trimtab.training.rows import Row


class Adapted:
    """The base under a fresh adapter. Weights stay in the base's dtype, the adapter is float32."""

    def __init__(self, loaded: LoadedModel, options: Lora, seed: int) -> None:
        self.loaded = loaded
        layers = decoder_layers(loaded.model)
        places = {path.rpartition(".")[2] for path in find_linears(layers)}
        modules = sorted(places) if options.modules == "all" else options.modules.split(",")
        if unknown := sorted(set(modules) - places):
            raise TrainingError(f"no linear layer is called {unknown[0]!r}: choose from {', '.join(sorted(places))}")
        torch.manual_seed(seed)
        self.config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha,
            target_modules=modules,
            fan_in_fan_out=any(isinstance(module, Conv1D) for module in layers.modules()),
            layers_to_transform=None if options.layers == "all" else span(options.layers, len(layers)),
        )
        with warnings.catch_warnings():
            # PEFT asks for an attribute that transformers has renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            # In evaluation mode, as it was loaded: some bases have dropout, and the guide is read without.
            self._peft: PeftModel = get_peft_model(loaded.model, self.config).eval()

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The adapter's factors by path."""
        return {name: value for name, value in self._peft.named_parameters() if value.requires_grad}

    def hidden(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return the last normed hidden states (B, T, D) float32 of token rows, padded right, and their mask (B, T)."""
        ids, mask = self.padded(rows)
        with self._mixed():
            states = self.loaded.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return states.float(), mask

    def logprobs(self, rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
        """Return log-probabilities (B, T) float32 of the answers' tokens, 0 elsewhere, and their mask (B, T)."""
        ids, mask = self.padded([row.ids for row in rows])
        starts = torch.tensor([row.start for row in rows], device=ids.device)
        answered = mask * (torch.arange(ids.shape[1], device=ids.device) >= starts[:, None])
        row, column = answered.nonzero(as_tuple=True)  # (N,) each
        with self._mixed(), self._head_reads(row, column - 1):
            logits = self.loaded.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[0]
        told = -cross_entropy(logits.float(), ids[row, column], reduction="none")
        return torch.zeros(ids.shape, device=ids.device).index_put((row, column), told), answered

    def sums(self, rows: Sequence[Row], batch: int, label: str | None = None) -> Tensor:
        """Return the log-probability (B,) of each answer, without a graph; `label` shows a progress bar."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index].ids))
        told = torch.zeros(len(rows))
        with torch.no_grad():
            for at in tqdm(range(0, len(rows), batch), desc=label, unit="batch", disable=label is None):
                part = order[at : at + batch]
                told[part] = self.logprobs([rows[index] for index in part])[0].sum(dim=1).cpu()
        return told

    @contextmanager
    def plain(self) -> Iterator[None]:
        """The base without its adapter, and without a graph."""
        with self._peft.disable_adapter(), torch.no_grad():
            yield

    def padded(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return ids and mask (B, T); causal attention never looks right, so padding there changes nothing."""
        longest, device = max(map(len, rows)), self.loaded.model.device
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.as_tensor(row)
            mask[index, : len(row)] = 1
        return ids.to(device), mask.to(device)

    def save(self, folder: Path, *, task: Literal["SEQ_CLS", "CAUSAL_LM"], head: Tensor | None = None) -> None:
        """Write adapter_config.json and adapter_model.safetensors, float16, as PEFT lays them out.

        `head` (labels, D) is a score head trained along; TrainingError where the disk is full.
        """
        tensors = {
            name: value.detach().to(torch.float16).contiguous()
            for name, value in get_peft_model_state_dict(self._peft, save_embedding_layers=False).items()
        }
        if head is not None:
            tensors["base_model.model.score.weight"] = head.detach().to(torch.float16).contiguous()
        config = self._peft.peft_config["default"]
        config.task_type = task
        config.base_model_name_or_path = self.loaded.source
        config.inference_mode = True
        told = {name: sorted(each) if isinstance(each, set) else each for name, each in config.to_dict().items()}
        write(folder / "adapter_config.json", lambda path: path.write_text(json.dumps(told, indent=2, sort_keys=True)))
        write(folder / "adapter_model.safetensors", lambda path: save_file(tensors, path, {"format": "pt"}))

    @contextmanager
    def _head_reads(self, rows: Tensor, columns: Tensor) -> Iterator[None]:
        """Let the LM head read the hidden states of these places alone, as (1, N, D): a vocabulary costs most there."""
        head = self.loaded.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda module, args: (args[0][rows, columns][None],))
        try:
            yield
        finally:
            hook.remove()

    @contextmanager
    def _mixed(self) -> Iterator[None]:
        """Autocast to the base's dtype where that is not float32; its products then run in that dtype."""
        dtype = self.loaded.dtype
        with torch.autocast(self.loaded.model.device.type, dtype, enabled=dtype != torch.float32):
            yield
