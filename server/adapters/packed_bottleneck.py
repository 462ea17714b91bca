"""A narrow network as compiled steps read it."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hotshoe.kernels.low_rank_table import UNIT_RANK, LowRankTable, units_of
from hotshoe.registry.formats.lowered import Bottleneck


@dataclass(frozen=True, slots=True, eq=False)
class PackedBottleneck:
    """Its matrices as one low-rank update's factors, in units; biases in float32."""

    factors: LowRankTable
    width: int
    down_bias: Tensor | None  # [whole units]
    rest: Bottleneck  # what is neither a factor nor the down bias

    @property
    def network(self) -> Bottleneck:
        """The same as it was packed, in float32: a copy."""
        return replace(
            self.rest,
            down=self.factors.a_of(0, 0, self.width).T.float(),
            down_bias=None if self.down_bias is None else self.down_bias[: self.width],
            up=self.factors.b_of(0, 0, self.width).T.float(),
        )

    @property
    def size_bytes(self) -> int:
        biases = (self.down_bias, self.rest.up_bias)
        return sum(part.nbytes for part in (self.factors.a, self.factors.b, *biases) if part is not None)


def pack_bottleneck(network: Bottleneck, dtype: torch.dtype) -> PackedBottleneck:
    """Rounds a network's matrices to `dtype`; ranks that fill up its last unit are 0."""
    width, hidden = network.down.shape
    units = units_of(width)
    more = units * UNIT_RANK - width
    down = F.pad(network.down.to(dtype), (0, 0, 0, more)).view(units, UNIT_RANK, hidden)
    up = F.pad(network.up.T.to(dtype), (0, 0, 0, more))
    nothing = torch.empty(0)
    return PackedBottleneck(
        factors=LowRankTable(down.transpose(1, 2).contiguous(), up.contiguous(), (hidden,)),
        width=width,
        down_bias=None if network.down_bias is None else F.pad(network.down_bias, (0, more)),
        rest=replace(network, down=nothing, down_bias=None, up=nothing),
    )
