"""Control vectors: directions that are planted in a tiny model are found, written and steer as they should."""

import json
from itertools import combinations
from pathlib import Path
from typing import Literal

import pytest
import torch
from gguf import GGUFReader
from tiny import tiny_folder
from torch import Tensor
from toy import byte_tokenizer
from transformers import AutoModelForCausalLM

from trimtab.engine.guides.vectors import load_vectors
from trimtab.engine.loading import load_causal_lm
from trimtab.engine.sampling import SamplingParams
from trimtab.engine.settings import EngineSettings
from trimtab.llm import LLM
from trimtab.training.errors import DataError, TrainingError
from trimtab.training.options import VectorOptions
from trimtab.training.rows import Row
from trimtab.training.vector import last_states, mean, principal, train_vector

WIDTH, LAYERS = 48, 3
GOOD, BAD, SAID = "abcdefgh", "stuvwxyz", "!"
PROMPTS = ("One", "Two", "Three", "Four")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model whose layers do nothing, so that their output is the embedding of the last token.

    A direction is planted: good letters lie to one side of it, bad ones to the other, and `!` is said along it.
    """
    folder = tiny_folder(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()
        for letters, sign in ((GOOD, 1.0), (BAD, -1.0)):
            model.model.embed_tokens.weight[byte_tokenizer().encode(letters)] += sign * planted()
        model.lm_head.weight[byte_tokenizer().encode(SAID)] = planted() * 3.0
    model.save_pretrained(folder)
    return folder


def planted() -> Tensor:
    direction = torch.randn(WIDTH, generator=torch.Generator().manual_seed(7))
    return 3.0 * direction / direction.norm()


def data(folder: Path, *, turned: bool = False) -> Path:
    """Pairs of answers that end in a good and in a bad letter."""
    lines = []
    for prompt in PROMPTS:
        for good, bad in zip(GOOD, BAD, strict=True):
            chosen, rejected = (bad, good) if turned else (good, bad)
            lines.append({"prompt": prompt, "chosen": f"So {chosen}", "rejected": f"So {rejected}"})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def options(folder: Path, base: Path, method: Literal["pca", "mean"] = "mean", layers: str = "all") -> VectorOptions:
    return VectorOptions(out=folder / "guide", data=data(folder), base=str(base), method=method, layers=layers)


@pytest.mark.parametrize("method", ["pca", "mean"])
def test_a_planted_direction_is_found(tmp_path: Path, base: Path, method: Literal["pca", "mean"]) -> None:
    card = train_vector(options(tmp_path, base, method))
    found = load_vectors(tmp_path / "guide" / "control_vector.gguf", WIDTH, LAYERS)
    assert found.keys() == {1, 2}, "as repeng and llama.cpp have it, without layer 0"
    for direction in found.values():
        assert direction.norm().item() == pytest.approx(1.0, abs=1e-5)
        assert torch.cosine_similarity(direction, planted(), dim=0) > 0.9
    assert card.metrics["accuracy"] == card.metrics["best_accuracy"] == 1.0
    assert card.metrics["best_layer"] == 1
    assert card.training["method"] == method


def test_both_sides_of_the_planted_direction(tmp_path: Path, base: Path) -> None:
    """In the engine, the vector makes the model say what lies along it, and against it never."""
    train_vector(options(tmp_path, base))
    guides = {"mood": {"role": "vector", "model": str(tmp_path / "guide")}}
    settings = EngineSettings.model_validate({"model": str(base), "guides": guides, "pool_tokens": 512})
    sampling = SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    said = {}
    with LLM(settings=settings) as llm:
        for coeff in (-40.0, 0.0, 40.0):
            decoding = {"strategy": "control_vector", "vector": "mood", "coeff": coeff}
            (result,) = llm.chat([[{"role": "user", "content": "Hi"}]], sampling, decoding=decoding, progress=False)
            said[coeff] = result.choices[0].text
    assert said[40.0] == SAID * 4
    assert SAID not in said[-40.0]
    assert said[0.0] not in (said[40.0], said[-40.0])


def test_the_same_file_twice_and_only_the_layers_that_are_asked_for(tmp_path: Path, base: Path) -> None:
    file = tmp_path / "guide" / "control_vector.gguf"
    train_vector(options(tmp_path, base, "pca", "2"))
    first = file.read_bytes()
    train_vector(options(tmp_path, base, "pca", "2"))
    assert file.read_bytes() == first
    reader = GGUFReader(file)
    assert [tensor.name for tensor in reader.tensors] == ["direction.2"]
    told = {name: reader.get_field(f"controlvector.{name}").contents() for name in ("model_hint", "layer_count")}
    assert told == {"model_hint": "llama", "layer_count": 1}


def test_the_held_out_pairs_are_not_fitted(tmp_path: Path, base: Path) -> None:
    """Another part of them, or a larger one, leaves others to fit."""
    told = options(tmp_path, base, "mean", "1")
    found = []
    for change in ({}, {"seed": 1}, {"held_out": 0.5}):
        train_vector(told.model_copy(update=change))
        found.append(load_vectors(tmp_path / "guide" / "control_vector.gguf", WIDTH, LAYERS)[1])
    assert not any(torch.equal(*pair) for pair in combinations(found, 2))


def test_turned_pairs_give_the_opposite_direction(tmp_path: Path, base: Path) -> None:
    file = tmp_path / "guide" / "control_vector.gguf"
    for method in ("pca", "mean"):
        train_vector(options(tmp_path, base, method))
        there = load_vectors(file, WIDTH, LAYERS)
        turned = VectorOptions(out=tmp_path / "guide", data=data(tmp_path, turned=True), base=str(base), method=method)
        train_vector(turned)
        back = load_vectors(file, WIDTH, LAYERS)
        assert all(torch.allclose(there[layer], -back[layer], atol=1e-6) for layer in there)


def test_the_principal_direction_is_the_top_eigenvector_to_the_side_of_most() -> None:
    differences = torch.tensor([[3.0, 1.0], [3.0, -1.0], [3.0, 0.5], [-9.0, 0.0]])
    values, vectors = torch.linalg.eigh(differences.T @ differences)
    expected = vectors[:, values.argmax()]
    expected = expected if expected[0] > 0 else -expected  # three of the four lie there, the mean does not
    assert torch.allclose(principal(differences), expected, atol=1e-6)
    assert torch.allclose(mean(differences[:3]), torch.tensor([9.0, 0.5]) / torch.tensor([9.0, 0.5]).norm())


def test_states_are_what_each_layer_puts_out_at_the_last_token(tmp_path: Path) -> None:
    """Whatever is padded beside it; that of the last layer is what the final norm reads."""
    loaded = load_causal_lm(str(tiny_folder(tmp_path / "plain")))
    rows = [Row([5, 9, 3, 8, 1], 2), Row([7, 2], 1), Row([4, 4, 6], 1)]
    states = last_states(loaded, rows, [1, 2])
    for row, (first, last) in zip(rows, states, strict=True):
        with torch.no_grad():
            told = loaded.model.model(torch.tensor([row.ids]), output_hidden_states=True)
            normed = loaded.model.model.norm(last)
        assert torch.allclose(first, told.hidden_states[2][0, -1], atol=1e-5)
        assert torch.allclose(normed, told.last_hidden_state[0, -1], atol=1e-5)


@pytest.mark.parametrize("layers", ["0-2", "2-1", "1-3", "one", "-1"])
def test_layers_that_are_not_there_are_refused(tmp_path: Path, base: Path, layers: str) -> None:
    with pytest.raises(TrainingError, match=f"layers '{layers}': write them as 1-2"):
        train_vector(options(tmp_path, base, layers=layers))


def test_pairs_without_a_difference_are_told(tmp_path: Path, base: Path) -> None:
    chosen = VectorOptions(out=tmp_path / "guide", data=tmp_path / "same.jsonl", base=str(base), method="pca")
    lines = [{"prompt": each, "chosen": "one a", "rejected": "two a"} for each in PROMPTS]
    chosen.data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TrainingError, match="the states of layer 1 are the same in every pair: leave it out"):
        train_vector(chosen)
    chosen.data.write_text(json.dumps(lines[0]))
    with pytest.raises(DataError, match="1 examples are too few to hold out"):
        train_vector(chosen)
