"""Integers of the host on their way to the device: packed side by side, in one copy that nobody waits for."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Integers = npt.NDArray[np.integer[Any]]

ALIGNED = 128  # bytes between two beginnings: kernels are compiled anew for pointers of another alignment


class Field(NamedTuple):
    """Shape and dtype of one tensor among the packed ones."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * int(np.prod(self.shape))

    @property
    def span(self) -> int:
        """Bytes to the beginning of the next one."""
        return -(-self.nbytes // ALIGNED) * ALIGNED


def place(arrays: Sequence[Integers], device: torch.device) -> list[Tensor]:
    """The arrays on `device`, each in its dtype; on the CPU they share the arrays' memory."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type == "cpu":
        return tensors
    fields = [Field(tuple(tensor.shape), tensor.dtype) for tensor in tensors]
    return unpack(pack(arrays, fields, pinned=True).to(device, non_blocking=True), fields)


def pack(arrays: Sequence[Integers], fields: Sequence[Field], *, pinned: bool) -> Tensor:
    """The arrays one after another on the host, as bytes, each in front in its field and zeros behind it.

    Pinned memory comes from torch's caching allocator, which keeps it until the copies that read it are done.
    """
    packed = torch.zeros(packed_size(fields), dtype=torch.uint8, pin_memory=pinned)
    for view, array in zip(unpack(packed, fields), arrays, strict=True):
        view.numpy()[tuple(map(slice, array.shape))] = array
    return packed


def unpack(packed: Tensor, fields: Sequence[Field]) -> list[Tensor]:
    """Views of the fields that lie side by side in `packed`."""
    views, start = [], 0
    for field in fields:
        views.append(packed[start : start + field.nbytes].view(field.dtype).view(field.shape))
        start += field.span
    return views


def packed_size(fields: Sequence[Field]) -> int:
    """Bytes that the fields take together."""
    return sum(field.span for field in fields)
