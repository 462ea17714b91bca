"""Dense linears on the CPU, prepacked once for oneDNN where torch lets us, plain otherwise."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class PackedDense:
    """A dense weight in oneDNN's own order; products are computed in its dtype."""

    shape: tuple[int, int]  # out_features, in_features
    weight: Tensor  # opaque
    dtype: torch.dtype


def pack(weight: Tensor, dtype: torch.dtype) -> PackedDense | Tensor:
    """A weight [out_features, in_features] for `linear`; where oneDNN takes no packing, itself in `dtype`."""
    weight = weight.to(dtype).contiguous()
    try:  # private operators of torch: what they promise is that they may go
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        sample = torch.ops.mkldnn._linear_pointwise(weight[:1], packed, None, "none", [], "")
    except (AttributeError, RuntimeError, TypeError):
        return weight
    if sample.shape != (1, weight.shape[0]):
        return weight
    return PackedDense((weight.shape[0], weight.shape[1]), packed, dtype)


def linear(x: Tensor, weight: PackedDense) -> Tensor:
    """x [rows, in_features] times the weight's transpose, in x's dtype."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x.to(weight.dtype), weight.weight, None, "none", [], "")
    return out.to(x.dtype)


def plain_linear(x: Tensor, weight: Tensor) -> Tensor:
    """As `linear`, with a plain weight [out_features, in_features]."""
    return F.linear(x.to(weight.dtype), weight).to(x.dtype)
