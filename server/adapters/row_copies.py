"""Where a step's rows take the base's product again, as compiled code reads it."""

from collections.abc import Sequence

import numpy as np

from hotshoe.server.adapters.kept_arrays import KeptArrays
from hotshoe.server.adapters.sites import MAX_TARGETS, SITE_INDEX, SITES
from hotshoe.server.adapters.term_blocks import Segment

# How many copies, where their outputs' scales are, how many inputs and outputs; then inputs' of each target.
_FIELDS = 4


def copy_addresses(segments: Sequence[Segment], num_layers: int, kept: KeptArrays) -> dict[str, int]:
    """The fields of a job that say which copies each segment takes at each site, one adapter's behind the other's."""
    stacks = [[(adapter, weight) for adapter, weight in stack if adapter.copies] for *_, stack in segments]
    depth = max(map(len, stacks), default=0)
    if not depth:
        return {"copy_depth": 0}
    table = np.zeros((depth, len(segments), num_layers, len(SITES), _FIELDS + MAX_TARGETS), np.int64)
    for segment, stack in enumerate(stacks):
        for index, (adapter, weight) in enumerate(stack):
            for (layer, site), copies in adapter.copies.items():
                fields = table[index, segment, layer, SITE_INDEX[site]]
                outputs = copies.outputs if weight == 1.0 else weight * copies.outputs
                fields[:_FIELDS] = (
                    len(outputs),
                    kept.address_of(outputs),
                    copies.inputs[0].shape[1],
                    outputs.shape[1],
                )
                for target, inputs in enumerate(copies.inputs):
                    fields[_FIELDS + target] = kept.address_of(inputs)
    flags = table[..., 0].any(axis=(0, 1))
    return {"copy_depth": depth, "copies": kept.address(table), "site_copies": kept.address(flags)}
