"""Value heads against a float64 restatement and autograd; files that are no heads are refused."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trimtab.engine.errors import ModelLoadError
from trimtab.engine.guides.heads import FORMAT, LinearHead, ValueHead

HIDDEN, VOCAB = 6, 11
DEPTHS = {1: (), 2: (9,), 3: (9, 5)}


def random_head(depth: int, width: int) -> ValueHead:
    generator = torch.Generator().manual_seed(depth * 100 + width)
    sizes = [HIDDEN, *DEPTHS[depth], width]
    weights = [torch.randn(out, into, generator=generator) for into, out in pairwise(sizes)]
    biases = [torch.randn(out, generator=generator) for out in sizes[1:]]
    return ValueHead(weights, biases)


def states(*shape: int) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(7))


def exact(head: ValueHead, hidden: Tensor) -> Tensor:
    """The MLP in float64, unit by unit."""
    values = hidden.double()
    for index, (weight, bias) in enumerate(zip(head.weights, head.biases, strict=True)):
        values = (values[..., None, :] * weight.double()).sum(-1) + bias.double()
        if index < len(head.weights) - 1:
            values = torch.where(values > 0, values, 0.0)
    return values


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_those_of_the_layers(depth: int, dtype: torch.dtype) -> None:
    hidden = states(2, 3).to(dtype)
    narrow, wide = random_head(depth, 1), random_head(depth, VOCAB)
    torch.testing.assert_close(narrow(hidden).double(), exact(narrow, hidden)[..., 0], rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(wide(hidden).double(), exact(wide, hidden), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("depth", DEPTHS)
def test_values_of_candidates_are_those_of_the_whole_vocabulary(depth: int) -> None:
    head, hidden = random_head(depth, VOCAB), states(4)
    ids = torch.tensor([[0, 10, 3], [5, 5, 1], [9, 8, 7], [2, 0, 10]])
    torch.testing.assert_close(head.at(hidden, ids), head(hidden).gather(1, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("steps", [1, 5])
def test_ascent_follows_the_gradient_that_autograd_finds(depth: int, steps: int) -> None:
    head, hidden = random_head(depth, 1), states(8)
    expected = hidden.double()
    for _ in range(steps):
        leaf = expected.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(exact(head, leaf).sum(), leaf)
        expected = expected + 0.01 * gradient
    with torch.inference_mode():
        got = head.ascend(hidden, rate=0.01, steps=steps)
    torch.testing.assert_close(got.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert (head(got) > head(hidden)).all()
    assert torch.equal(head.ascend(hidden, rate=0.0, steps=steps), hidden)
    assert torch.equal(head.ascend(hidden, rate=1.0, steps=0), hidden)


def test_a_folded_classifier_head_is_the_signed_sum_of_its_logits() -> None:
    weight, hidden = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(0)).bfloat16(), states(3)
    signs, bias = torch.tensor([-1.0, 1.0]), torch.tensor([0.5, 0.25])
    logits = hidden.double() @ weight.double().T  # (3, labels)
    expected = logits[:, 1] - logits[:, 0]
    torch.testing.assert_close(LinearHead.of(signs, weight)(hidden).double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        LinearHead.of(signs, weight, bias)(hidden).double(), expected - 0.25, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("width", [1, VOCAB])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_head_is_loaded_again(tmp_path: Path, width: int, dtype: torch.dtype) -> None:
    head, file = random_head(3, width), tmp_path / "head.safetensors"
    head.save(file, dtype)
    assert {tensor.dtype for tensor in load_file(file).values()} == {dtype}
    again = ValueHead.load(file, HIDDEN, VOCAB)
    assert {tensor.dtype for tensor in (*again.weights, *again.biases)} == {torch.float32}
    rounded = ValueHead([w.to(dtype) for w in head.weights], [b.to(dtype) for b in head.biases])
    assert torch.equal(again(states(4)), rounded(states(4)))
    assert torch.equal(again(states(4)), head(states(4))) == (dtype == torch.float32)


def test_weights_beyond_a_dtype_are_not_saved(tmp_path: Path) -> None:
    head = ValueHead([torch.full((1, HIDDEN), 1e5)], [torch.zeros(1)])
    with pytest.raises(ModelLoadError, match=r"has weights beyond torch\.float16: save it in float32"):
        head.save(tmp_path / "head.safetensors", torch.float16)
    head.save(tmp_path / "head.safetensors")


def stored(changes: dict[str, Tensor | None], metadata: dict[str, str] | None = None) -> Callable[[Path], object]:
    """Writes a good head of two layers with some tensors changed, or taken out."""
    tensors: dict[str, Tensor | None] = {
        "layers.0.weight": torch.ones(4, HIDDEN),
        "layers.0.bias": torch.ones(4),
        "layers.1.weight": torch.ones(1, 4),
        "layers.1.bias": torch.ones(1),
    }
    kept = {name: tensor for name, tensor in (tensors | changes).items() if tensor is not None}
    return lambda file: save_file(kept, file, {"format": FORMAT} if metadata is None else metadata)


DEEP = {
    f"layers.{i}.{part}": torch.ones(shape) for i in (2, 3) for part, shape in {"weight": (1, 1), "bias": 1}.items()
}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (stored({}, {}), "is not a value head: its metadata lacks format 'trimtab-value-head'"),
        (stored({"layers.1.bias": None}), r"layers\.0\.weight \(out, in\)"),
        (stored({"layers.0.weight": None, "layers.0.bias": None}), r"layers\.0\.weight"),
        (stored({"layers.1.bias": torch.ones(4)}), "layers"),
        (stored({"layers.1.weight": torch.ones(1, 3)}), "fit each other"),
        (stored({"layers.0.weight": torch.ones(HIDDEN)}), "layers"),
        (stored(DEEP), "at most 3 layers"),
        (stored({"layers.0.weight": torch.ones(4, 5)}), "states of 5 and the base has 6: fit one on this base"),
        (
            stored({"layers.1.weight": torch.ones(7, 4), "layers.1.bias": torch.ones(7)}),
            "gives 7 values: its last layer needs 1 .* or 11 ",
        ),
        (stored({"layers.0.bias": torch.tensor([0.0, 1.0, torch.nan, 0.0])}), "not finite"),
        (lambda file: file.write_bytes(b"not a head"), r"cannot be read .*: pass a \.safetensors file"),
        (lambda file: None, "cannot be read"),
    ],
)
def test_refusals_name_the_file_and_the_fix(tmp_path: Path, write: Callable[[Path], object], message: str) -> None:
    file = tmp_path / "broken.safetensors"
    write(file)
    with pytest.raises(ModelLoadError, match=message) as caught:
        ValueHead.load(file, HIDDEN, VOCAB)
    assert str(file) in str(caught.value)
