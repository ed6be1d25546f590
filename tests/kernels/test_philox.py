import numpy as np
import pytest
import torch

from trimtab.kernels.philox import philox4x32, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0, 0, 0, 0], [0, 0], "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers_of_random123(counter: list[int], key: list[int], words: str) -> None:
    assert " ".join(f"{word:08x}" for word in philox4x32([counter], [key])[0]) == words


def test_a_row_does_not_depend_on_its_batch() -> None:
    seeds, streams, positions = (
        np.array([3, -1, 2**62 + 7, 3]),
        np.array([0, 5, -9, 1]),
        np.array([0, 8, 2, 0]),
    )
    batch = uniforms(seeds, streams, positions)
    alone = [uniforms(seeds[i : i + 1], streams[i : i + 1], positions[i : i + 1])[0] for i in range(4)]
    assert batch.tolist() == alone


def test_seed_stream_and_position_are_keyed_in_all_their_bits() -> None:
    # One row at zero and one for each single bit: 64 of the seed, 64 of the stream, 32 of the position.
    bits = (np.uint64(1) << np.arange(64, dtype=np.uint64)).view(np.int64)
    seeds, streams, positions = (np.zeros(161, dtype=np.int64) for _ in range(3))
    seeds[1:65], streams[65:129], positions[129:] = bits, bits, bits[:32]
    assert len(set(uniforms(seeds, streams, positions).tolist())) == 161


def test_uniforms_are_built_from_the_first_two_words() -> None:
    assert uniforms([0], [0], [0])[0] == (0x6627E8D5E169C58D >> 11) / 2**53


def test_uniforms_are_uniform() -> None:
    n = 100_000
    u = uniforms(np.full(n, 11), np.full(n, 4), np.arange(n))
    assert u.min() > 0.0
    assert u.max() < 1.0
    # Kolmogorov-Smirnov: 1.95 / sqrt(n) is the critical distance at p = 0.001.
    rank = np.arange(n) / n
    assert np.abs(np.sort(u) - rank).max() < 1.95 / np.sqrt(n)


@pytest.mark.parametrize("walk", ["positions", "streams", "seeds"])
def test_neighbouring_counters_are_independent(walk: str) -> None:
    n, cells = 40_000, 16
    axes = {name: np.full(n, 7) for name in ("seeds", "streams", "positions")}
    axes[walk] = np.arange(n)
    cell = (uniforms(**axes) * cells).astype(np.int64)
    pairs = np.bincount(cell[:-1] * cells + cell[1:], minlength=cells**2)
    expected = (n - 1) / cells**2
    chi2 = ((pairs - expected) ** 2 / expected).sum()
    p_value = torch.special.gammaincc(torch.tensor((cells**2 - 1) / 2.0), torch.tensor(chi2 / 2)).item()
    assert p_value > 1e-3
