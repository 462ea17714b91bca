"""Outputs to which rows add others' products, in compiled steps."""

from typing import Any

import numpy as np

from hotshoe.kernels.cpu.decode_job import NUM_SITES, flag_of, segment_of, site_width
from hotshoe.kernels.cpu.jit import compiled, f32, i64


@compiled
def has_swaps(j: Any, layer: int, site: int) -> bool:
    """Whether any row does so at a site."""
    return flag_of(j.site_swaps, layer, site)


@compiled
def _swap(j: Any, index: int, row: int, layer: int, site: int) -> Any:
    """Where the partners of a row's index-th swap are, int64 [columns], and their gains, float32; 0 if it has none."""
    at = ((index * j.num_segments + segment_of(j, row)) * j.num_layers + layer) * NUM_SITES + site
    return i64(j.swaps + 16 * at, 2)


@compiled
def take_partners(j: Any, layer: int, site: int, first: int, last: int) -> None:
    """What columns first … last−1 get of others' products, which all must have been computed."""
    width = site_width(j, site)
    for row in range(j.num_rows):
        if segment_of(j, row) < 0:
            continue
        product, out = f32(j.product + 4 * row * width, width), f32(j.swapped + 4 * row * width, width)
        out[first:last] = np.float32(0.0)
        for index in range(j.swap_depth):
            swap = _swap(j, index, row, layer, site)
            if swap[0] == 0:
                continue
            partners, gains = i64(swap[0], width), f32(swap[1], width)
            for i in range(first, last):
                out[i] += gains[i] * product[partners[i]]


@compiled
def add_partners(j: Any, layer: int, site: int, row: int, first: int, last: int) -> None:
    """product += what was taken for a row, if it has a swap."""
    if segment_of(j, row) < 0 or _swap(j, 0, row, layer, site)[0] == 0:
        return
    at = 4 * (row * site_width(j, site) + first)
    product, taken = f32(j.product + at, last - first), f32(j.swapped + at, last - first)
    for i in range(last - first):
        product[i] += taken[i]
