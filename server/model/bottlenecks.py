"""What rows' narrow networks give beside a block of a layer."""

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from hotshoe.registry.formats.activations import activation
from hotshoe.registry.formats.base import BlockId
from hotshoe.registry.formats.lowered import Bottleneck

if TYPE_CHECKING:
    from hotshoe.server.adapters.adapter_batch import AdapterBatch


def add_block(hidden: Tensor, output: Tensor, block: BlockId, adapters: "AdapterBatch | None") -> None:
    """Adds a block's output to hidden in place, and to the rows of adapters that have a network there what that gives.

    hidden, output: [rows, hidden_size]; hidden is the residual that the block has read.
    """
    beside = [
        (start, end, weight * _beside(network, hidden[start:end].float(), output[start:end].float()))
        for start, end, network, weight in (() if adapters is None else adapters.bottlenecks(block))
    ]
    hidden += output
    for start, end, added in beside:
        hidden[start:end] += added.to(hidden.dtype)


def _beside(network: Bottleneck, residual: Tensor, output: Tensor) -> Tensor:
    """residual_gain · r + up φ(down t + down_bias) + up_bias."""
    tapped = output if network.taps == "output" else residual if network.taps == "residual" else residual + output
    narrow = activation(network.activation)(F.linear(tapped, network.down, network.down_bias))
    added = F.linear(narrow, network.up, network.up_bias)
    return added + network.residual_gain * residual if network.residual_gain else added
