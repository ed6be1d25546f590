import math

import numpy as np
import pytest
import torch
from device import DEVICE
from torch import Tensor

from trimtab.kernels.philox import uniforms

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")

from trimtab.kernels.ops_triton import key_value, kth_key, sort_key, uniform  # noqa: E402

SMALLEST = torch.iinfo(torch.int32).min


@triton.jit
def _keys(z_ptr, key_ptr, back_ptr, SIZE: tl.constexpr):
    i = tl.arange(0, SIZE)
    key = sort_key(tl.load(z_ptr + i))
    tl.store(key_ptr + i, key)
    tl.store(back_ptr + i, key_value(key))


@triton.jit
def _kth(key_ptr, k_ptr, out_ptr, SIZE: tl.constexpr):
    which = tl.program_id(0)
    keys = tl.load(key_ptr + tl.arange(0, SIZE))
    tl.store(out_ptr + which, kth_key(keys, tl.load(k_ptr + which)))


@triton.jit
def _uniform(seed_ptr, stream_ptr, position_ptr, out_ptr):
    row = tl.program_id(0)
    drawn = uniform(tl.load(seed_ptr + row), tl.load(stream_ptr + row), tl.load(position_ptr + row))
    tl.store(out_ptr + row, drawn)


def keys_of(z: Tensor) -> tuple[Tensor, Tensor]:
    key, back = torch.empty(len(z), dtype=torch.int32, device=DEVICE), torch.empty(len(z), device=DEVICE)
    _keys[(1,)](z.to(DEVICE), key, back, SIZE=len(z))
    return key.cpu(), back.cpu()


def test_keys_have_the_order_of_the_floats() -> None:
    biggest, tiny = torch.finfo(torch.float32).max, 1e-45
    edge = torch.tensor([-math.inf, -biggest, -1.0, -tiny, -0.0, 0.0, tiny, 1.0, 1.0000001, biggest, math.inf])
    z = torch.cat((edge, torch.randn(64 - len(edge), generator=torch.Generator().manual_seed(0))))
    key, back = keys_of(z)
    assert torch.equal(back, z)
    assert torch.equal(key[:, None] < key, z[:, None] < z)
    assert key[4] == key[5] == 0
    assert key.min() > SMALLEST


@pytest.mark.parametrize("case", ["spread", "ties", "absent"])
def test_the_kth_key_is_the_kth_of_the_sorted_keys(case: str) -> None:
    keys = torch.randint(SMALLEST, -SMALLEST, (128,), generator=torch.Generator().manual_seed(1)).int()
    match case:
        case "ties":
            keys = keys % 5 - 2
        case "absent":
            keys[torch.arange(128) % 3 > 0] = SMALLEST
    ks = torch.tensor([1, 2, 7, 42, 43, 44, 100, 127, 128])
    found = torch.empty(len(ks), dtype=torch.int32, device=DEVICE)
    _kth[(len(ks),)](keys.to(DEVICE), ks.int().to(DEVICE), found, SIZE=128)
    assert torch.equal(found.cpu(), keys.sort(descending=True).values[ks - 1])


def test_more_than_there_are_is_the_smallest_key() -> None:
    found = torch.empty(1, dtype=torch.int32, device=DEVICE)
    keys, k = torch.arange(16, dtype=torch.int32, device=DEVICE), torch.tensor([17], dtype=torch.int32, device=DEVICE)
    _kth[(1,)](keys, k, found, SIZE=16)
    assert found.item() == SMALLEST


def test_uniforms_have_the_bits_of_the_numpy_twin() -> None:
    generator = np.random.default_rng(3)
    seeds = np.array([0, -1, 5, 2**62 + 7, -(2**63), *generator.integers(-(2**63), 2**63, 20)])
    streams = np.array([0, -1, 1, 2**40, 2**31, *generator.integers(-(2**63), 2**63, 20)])
    positions = np.array([0, 2**32 - 1, 77, 2**31, 1, *generator.integers(0, 2**32, 20)])
    out = torch.empty(len(seeds), dtype=torch.float64, device=DEVICE)
    columns = [torch.from_numpy(x).to(DEVICE) for x in (seeds, streams, positions)]
    _uniform[(len(seeds),)](*columns, out)
    expected = uniforms(seeds, streams, positions)
    assert np.array_equal(out.cpu().numpy().view(np.int64), expected.view(np.int64))
