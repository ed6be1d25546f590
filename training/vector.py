"""A control vector: one direction for each decoder layer, along which opposite answers differ.

Representation engineering (Zou et al. 2023, arXiv 2310.01405), in the conventions of repeng.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from gguf import GGUFWriter
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from trimtab.engine.guides.card import Card
from trimtab.engine.guides.folders import CONTROL_VECTOR
from trimtab.engine.loading import LoadedModel
from trimtab.engine.variants import decoder_layers
from trimtab.engine.vocabulary import Vocabulary
from trimtab.training.checkpoint import write
from trimtab.training.data import Preference, read, split
from trimtab.training.errors import TrainingError
from trimtab.training.features import batches
from trimtab.training.layers import span
from trimtab.training.metrics import accuracy
from trimtab.training.options import VectorOptions
from trimtab.training.rows import Row, answer_row
from trimtab.training.run import finish, open_base

FIRST_LAYER = 1
"""llama.cpp takes no direction of layer 0, and repeng makes none"""


def train_vector(options: VectorOptions) -> Card:
    """Write a control vector that leads from rejected to chosen answers; DataError, ModelLoadError, TrainingError.

    The card says which share of the held-out pairs the directions put in order: the mean over layers, and the best.
    """
    pairs = read(options.data, Preference)
    kept, held = split(pairs, options.held_out, options.seed, lambda pair: pair)
    loaded = open_base(options)
    layers = span(options.layers, len(decoder_layers(loaded.model)), first=FIRST_LAYER)
    vocabulary = Vocabulary(loaded.tokenizer, loaded.embedding_rows)
    answers = [(pair.messages, answer) for pair in pairs for answer in (pair.chosen, pair.rejected)]
    rows = [answer_row(vocabulary, messages, answer, None, loaded.context_length) for messages, answer in answers]
    states = last_states(loaded, rows, layers)  # (2 P, L, D)
    differences = states[0::2] - states[1::2]
    find = principal if options.method == "pca" else mean
    directions = [find(differences[kept, place]) for place in range(len(layers))]
    for layer, direction in zip(layers, directions, strict=True):
        if not direction.isfinite().all():
            raise TrainingError(f"the states of layer {layer} are the same in every pair: leave it out of --layers")
    shares = [accuracy((differences[held, place] @ direction).tolist()) for place, direction in enumerate(directions)]
    model = loaded.model.config.model_type
    write(
        options.out / CONTROL_VECTOR,
        lambda path: export_gguf(path, model, dict(zip(layers, directions, strict=True))),
    )
    best = max(shares)
    metrics = {"accuracy": sum(shares) / len(shares), "best_accuracy": best, "best_layer": layers[shares.index(best)]}
    return finish(options, loaded, metrics, examples=len(pairs))


def principal(differences: Tensor) -> Tensor:
    """First principal direction (D,) of differences (P, D) and their negatives, to the side of most; NaN of zeros.

    It is repeng's `pca_center`: a pair about its own middle. The mean of the differences is part of what it finds.
    """
    if not differences.any():
        return torch.full_like(differences[0], float("nan"))
    direction: Tensor = torch.linalg.svd(differences.double(), full_matrices=False)[2][0].float()
    projections = differences @ direction
    most = (projections > 0).sum() - (projections < 0).sum()
    return direction if (most if most else projections.sum()) >= 0 else -direction


def mean(differences: Tensor) -> Tensor:
    """Mean (D,) of differences (P, D), of length 1; NaN of zeros."""
    total: Tensor = differences.double().mean(dim=0)
    return total.div(total.norm()).float()


@torch.no_grad()
def last_states(loaded: LoadedModel, rows: Sequence[Row], layers: Sequence[int]) -> Tensor:
    """Outputs (N, L, D) float32 of decoder layers at the last tokens of rows, on the CPU."""
    device, width = loaded.model.device, loaded.model.config.get_text_config().hidden_size
    states = torch.empty(len(rows), len(layers), width)
    with _outputs(loaded, layers) as outputs, tqdm(total=len(rows), unit="answer", desc="states") as bar:
        for batch in batches(rows):
            ids = pad_sequence([torch.tensor(rows[index].ids) for index in batch], batch_first=True).to(device)
            loaded.model.base_model(input_ids=ids, use_cache=False)  # causal attention needs no mask
            ends = torch.tensor([len(rows[index].ids) - 1 for index in batch], device=device)
            last = [outputs[layer][torch.arange(len(batch), device=device), ends] for layer in layers]
            states[batch] = torch.stack(last, dim=1).float().cpu()
            bar.update(len(batch))
    return states


def export_gguf(path: Path, model: str, directions: dict[int, Tensor]) -> None:
    """Write directions (D,) float32 by layer as repeng and llama.cpp read them; `model` is the type of the base."""
    writer = GGUFWriter(path, "controlvector")
    writer.add_string("controlvector.model_hint", model)
    writer.add_uint32("controlvector.layer_count", len(directions))
    for layer, direction in directions.items():
        writer.add_tensor(f"direction.{layer}", direction.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@contextmanager
def _outputs(loaded: LoadedModel, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
    """What the layers put out in the last forward, (B, T, D) by layer; the last one's too, before the final norm."""
    outputs: dict[int, Tensor] = {}
    modules = decoder_layers(loaded.model)

    def keep(layer: int, output: Tensor | tuple[Tensor, ...]) -> None:
        outputs[layer] = output[0] if isinstance(output, tuple) else output

    hooks = [
        modules[layer].register_forward_hook(lambda _, __, output, layer=layer: keep(layer, output)) for layer in layers
    ]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()
