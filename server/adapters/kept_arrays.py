"""Arrays that compiled code reads by their addresses."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor


class KeptArrays:
    """Keeps them where they are for as long as it lives."""

    def __init__(self) -> None:
        self._kept: list[object] = []

    def keep(self, thing: object) -> None:
        """Keeps what owns memory whose address is known already."""
        self._kept.append(thing)

    def address(self, array: ArrayLike, dtype: DTypeLike = np.int64) -> int:
        """The address of the array as contiguous numbers of that type."""
        kept: NDArray[Any] = np.ascontiguousarray(array, dtype)
        self._kept.append(kept)
        return kept.ctypes.data

    def address_of(self, tensor: Tensor | None) -> int:
        """The address of a tensor as contiguous float32, 0 of none."""
        if tensor is None:
            return 0
        kept = tensor.to(torch.float32).contiguous()
        self._kept.append(kept)
        return kept.data_ptr()
