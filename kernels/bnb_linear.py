"""NF4 linears through bitsandbytes' own operator, on any device that it supports."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hotshoe.kernels.weights import BLOCK, NF4_VALUES, Nf4Weight


@dataclass(frozen=True, slots=True, eq=False)
class BnbNf4:
    """One or several NF4 weights of one input, their outputs side by side; the scales are no longer nested."""

    shape: tuple[int, int]  # out_features, in_features
    codes: Tensor  # [out · in / 2, 1] uint8
    state: Any  # bitsandbytes' QuantState


def fits(weight: Nf4Weight) -> bool:
    """Whether rows begin with a block, and the values are NF4's: what joining weights and bitsandbytes ask for."""
    return weight.in_features % BLOCK == 0 and torch.allclose(weight.quant_map.cpu(), NF4_VALUES, atol=1e-6)


def pack(parts: Sequence[Nf4Weight], device: torch.device) -> BnbNf4:
    """Joins weights of one input. Each has its own offset of nested scales, so the joined scales are float32."""
    from bitsandbytes.functional import QuantState

    for part in parts:
        if not fits(part) or part.in_features != parts[0].in_features:
            raise ValueError(f"weight: {list(part.shape)} does not fit blocks of {BLOCK} in a row")
    shape = sum(part.out_features for part in parts), parts[0].in_features
    state = QuantState(
        absmax=torch.cat([part.scales() for part in parts]).to(device),
        shape=torch.Size(shape),
        code=NF4_VALUES.to(device),
        blocksize=BLOCK,
        quant_type="nf4",
        dtype=torch.bfloat16,
    )
    return BnbNf4(shape, torch.cat([part.codes for part in parts]).view(-1, 1).to(device), state)


def linear(x: Tensor, weight: BnbNf4) -> Tensor:
    """x [rows, in_features] times the weight's transpose, in x's dtype."""
    from bitsandbytes import matmul_4bit

    out: Tensor = matmul_4bit(x, weight.codes, weight.state)
    return out
