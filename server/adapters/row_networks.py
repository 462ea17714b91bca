"""The narrow networks beside the blocks of a step's rows, as compiled code reads them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotshoe.kernels.cpu.network_codes import ACTIVATION_CODES, NETWORK_WIDTH, OUTPUT, RESIDUAL, SUM
from hotshoe.kernels.low_rank_table import UNIT_RANK, units_of
from hotshoe.server.adapters.kept_arrays import KeptArrays
from hotshoe.server.adapters.packed_bottleneck import PackedBottleneck
from hotshoe.server.adapters.placed_adapter import PlacedAdapter
from hotshoe.server.adapters.term_blocks import Segment, term_blocks

PLACES = ("self_attn", "mlp")
_TAPS = {"output": OUTPUT, "residual": RESIDUAL, "sum": SUM}


class RowNetworks:
    """The terms of all rows, and what each adapter has where.

    Attributes:
        addresses: the fields of a job that say so.
    """

    def __init__(self, segments: Sequence[Segment], num_layers: int, kept: KeptArrays) -> None:
        terms = term_blocks(segments, lambda adapter: bool(adapter.bottlenecks))
        self.num_terms = len(terms.rows)
        self.addresses: dict[str, int] = {"num_network_terms": self.num_terms}
        self.shrunk_stride = 0
        if not self.num_terms:
            return
        shape = (len(terms.adapters), num_layers, len(PLACES))
        networks, gains = np.zeros((*shape, NETWORK_WIDTH), np.int64), np.zeros(shape, np.float32)
        for index, adapter in enumerate(terms.adapters):
            _fill(networks[index], gains[index], adapter, kept)
        self.shrunk_stride = units_of(int(networks[..., 4].max())) * UNIT_RANK
        self.addresses |= {
            "num_network_blocks": len(terms.starts) - 1,
            "network_stride": self.shrunk_stride,
            "network_rows": kept.address(terms.rows),
            "network_adapters": kept.address(terms.places),
            "network_weights": kept.address(terms.weights, np.float32),
            "network_blocks": kept.address(terms.starts),
            "networks": kept.address(networks),
            "network_gains": kept.address(gains, np.float32),
            "network_places": kept.address(networks[..., 0].any(axis=0)),
        }


def _fill(networks: NDArray[np.int64], gains: NDArray[np.float32], adapter: PlacedAdapter, kept: KeptArrays) -> None:
    """Puts an adapter's networks into [layers, places, NETWORK_WIDTH], and their gains into [layers, places]."""
    for block, found in adapter.bottlenecks.items():
        assert isinstance(found, PackedBottleneck), "compiled steps' slots hold packed ones"
        rest, place = found.rest, (block.layer, PLACES.index(block.name))
        kept.keep(found.factors)
        networks[place] = (
            found.factors.a.data_ptr(),
            kept.address_of(found.down_bias),
            found.factors.b.data_ptr(),
            kept.address_of(rest.up_bias),
            found.width,
            _TAPS[rest.taps],
            ACTIVATION_CODES[rest.activation],
        )
        gains[place] = rest.residual_gain
