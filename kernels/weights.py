"""A linear's weight at rest, before any kernel has arranged it for itself."""

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 64  # weights that share one scale
NESTED_BLOCK = 256  # scales that share one scale of their own
# the 16 values of NormalFloat4, https://arxiv.org/abs/2305.14314 appendix E
NF4_VALUES = torch.tensor(
    [
        -1.0,
        -0.6961928009986877,
        -0.5250730514526367,
        -0.39491748809814453,
        -0.28444138169288635,
        -0.18477343022823334,
        -0.09105003625154495,
        0.0,
        0.07958029955625534,
        0.16093020141124725,
        0.24611230194568634,
        0.33791524171829224,
        0.44070982933044434,
        0.5626170039176941,
        0.7229568362236023,
        1.0,
    ]
)


@dataclass(frozen=True, slots=True, eq=False)
class Nf4Weight:
    """A [out_features, in_features] weight as bitsandbytes stores NF4: row-major blocks of 64 with nested scales.

    The scale of block i is absmax_code[absmax[i]] · nested_absmax[i // 256] + offset.
    """

    out_features: int
    in_features: int
    codes: Tensor  # [out·in / 2] uint8; the high nibble is the even column
    quant_map: Tensor  # [16] float32: what a nibble stands for
    absmax: Tensor  # [⌈out·in / 64⌉] uint8, or float32 if the scales are not nested
    absmax_code: Tensor | None = None  # [256] float32
    nested_absmax: Tensor | None = None  # [⌈blocks / 256⌉] float32
    offset: float = 0.0

    def __post_init__(self) -> None:
        numel = self.out_features * self.in_features
        blocks = -(-numel // BLOCK)
        _require(self.codes.dtype == torch.uint8 and self.codes.shape == (-(-numel // 2),), "codes", self.codes)
        _require(self.quant_map.dtype == torch.float32 and self.quant_map.shape == (16,), "quant_map", self.quant_map)
        nested = self.absmax.dtype == torch.uint8
        _require(nested or self.absmax.dtype == torch.float32, "absmax", self.absmax)
        _require(self.absmax.shape == (blocks,), "absmax", self.absmax)
        if not nested:
            return
        if self.absmax_code is None or self.nested_absmax is None:
            raise ValueError("absmax: nested scales need absmax_code and nested_absmax")
        _require(self.absmax_code.shape == (256,), "absmax_code", self.absmax_code)
        _require(self.nested_absmax.shape == (-(-blocks // NESTED_BLOCK),), "nested_absmax", self.nested_absmax)

    def scales(self) -> Tensor:
        """[blocks] float32: the scale of every block."""
        if self.absmax_code is None or self.nested_absmax is None:
            return self.absmax
        outer = self.nested_absmax.repeat_interleave(NESTED_BLOCK)[: self.absmax.shape[0]]
        return self.absmax_code[self.absmax.long()] * outer + self.offset

    @property
    def shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @property
    def size_bytes(self) -> int:
        tensors = (self.codes, self.quant_map, self.absmax, self.absmax_code, self.nested_absmax)
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _require(condition: bool, name: str, tensor: Tensor) -> None:
    if not condition:
        raise ValueError(f"{name}: shape {list(tensor.shape)} {tensor.dtype} does not fit the weight's shape")
