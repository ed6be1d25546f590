"""A guard that fails where code would wait for a GPU: where it reads a value of a tensor on the host."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "is_nonzero",
}
_READS = {"tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__"}


class Unread(TorchDispatchMode):
    """Operators whose result depends on values in its shape or on the host are errors, whoever calls them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket._qualified_op_name.partition("::")[2]
        masks = name in ("index", "index_put", "index_put_") and any(
            each is not None and each.dtype in (torch.bool, torch.uint8) for each in args[1]
        )
        if name in _WAITS or masks:
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


class OnDevice(Tensor):
    """A tensor as if on a GPU: reading it, or what comes from it, on the host is an error where no operator shows."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in _READS:
            raise AssertionError(f"{func.__name__} waits for the device")
        return super().__torch_function__(func, types, args, kwargs or {})
