"""Random numbers that depend on a counter and a key alone.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), vectorised in numpy.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_WEYL = np.array([[0x9E3779B9], [0xBB67AE85]], dtype=np.uint64)
_LOW = np.uint64(0xFFFFFFFF)
_WORD = np.uint64(32)
_ROUNDS = 10


class Keys(NamedTuple):
    """What the random number of each row depends on: (B,) int64 each, on the device of the logits."""

    seeds: Tensor
    streams: Tensor
    positions: Tensor  # in [0, 2**32)

    def uniforms(self) -> Tensor:
        """One number per row, (B,) float64 on the keys' device."""
        drawn = uniforms(*(each.cpu().numpy() for each in self))
        return torch.from_numpy(drawn).to(self.seeds.device)


def philox4x32(counter: npt.ArrayLike, key: npt.ArrayLike) -> npt.NDArray[np.uint32]:
    """Return the four random words of each counter, shape (N, 4).

    `counter` is (N, 4) and `key` (N, 2), unsigned 32-bit words in the order of the paper.
    """
    words = np.asarray(counter, dtype=np.uint64).T  # (4, N)
    even, odd = words[0::2], words[1::2]  # (2, N), 32-bit values in 64-bit lanes so that products fit
    subkey = np.asarray(key, dtype=np.uint64).T  # (2, N)
    for _ in range(_ROUNDS):
        product = even * _MULTIPLIERS
        even = (product >> _WORD)[::-1] ^ odd ^ subkey
        odd = (product & _LOW)[::-1]
        subkey = (subkey + _WEYL) & _LOW
    return np.stack((even[0], odd[0], even[1], odd[1]), axis=1).astype(np.uint32)


def uniforms(seeds: npt.ArrayLike, streams: npt.ArrayLike, positions: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return one uniform number per row, shape (B,), strictly between 0 and 1, with 53 random bits.

    `seeds` and `streams` (B,) are signed 64-bit, `positions` (B,) lie in [0, 2**32). The seed is the key, low
    word first. The counter is (0, position, low word of the stream, high word of the stream).
    """
    seed = np.asarray(seeds, dtype=np.int64).view(np.uint64)
    stream = np.asarray(streams, dtype=np.int64).view(np.uint64)
    position = np.asarray(positions, dtype=np.uint64)
    counter = np.stack((np.zeros_like(position), position, stream & _LOW, stream >> _WORD), axis=1)  # (B, 4)
    words = philox4x32(counter, np.stack((seed & _LOW, seed >> _WORD), axis=1)).astype(np.uint64)
    bits = (words[:, 0] << _WORD | words[:, 1]) >> np.uint64(11)
    return np.maximum(bits.astype(np.float64), 0.5) * 2.0**-53
