"""What adapters add to single rows, in the order in which compiled code computes it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from hotshoe.server.adapters.placed_adapter import PlacedAdapter

Segment = tuple[int, int, tuple[tuple[PlacedAdapter, float], ...]]  # rows start … end−1, and their stack


@dataclass(frozen=True, slots=True)
class TermBlocks:
    """One term for each row and adapter; consecutive ones of one adapter form blocks that are computed together."""

    adapters: tuple[PlacedAdapter, ...]  # the distinct ones
    places: NDArray[np.int64]  # of each term: its adapter's place among them,
    rows: NDArray[np.int64]  # its row,
    weights: NDArray[np.float32]  # and its weight
    starts: list[int]  # where blocks of 4, 2 or 1 terms begin, and where the last one ends


def term_blocks(segments: Sequence[Segment], wanted: Callable[[PlacedAdapter], bool]) -> TermBlocks:
    """The terms of the adapters that are wanted.

    A row's terms keep the order of its stack, whatever the neighbours; rows of one adapter lie together.
    """
    chosen = [(start, end, [(a, weight) for a, weight in stack if wanted(a)]) for start, end, stack in segments]
    place = {adapter: index for index, adapter in enumerate(dict.fromkeys(a for *_, stack in chosen for a, _ in stack))}
    terms = [
        (position, place[adapter], row, weight)
        for start, end, stack in chosen
        for position, (adapter, weight) in enumerate(stack)
        for row in range(start, end)
    ]
    terms.sort(key=itemgetter(0, 1))
    return TermBlocks(
        adapters=tuple(place),
        places=np.array([index for _, index, _, _ in terms], np.int64),
        rows=np.array([row for _, _, row, _ in terms], np.int64),
        weights=np.array([weight for *_, weight in terms], np.float32),
        starts=block_starts([term[:2] for term in terms]),
    )


def row_blocks(segments: Sequence[Segment], num_rows: int) -> tuple[NDArray[np.int64], list[int]]:
    """All rows, those of one stack together, and where blocks of 4, 2 or 1 of one stack begin and the last one ends."""
    number: dict[object, int] = {}
    keys = np.zeros(num_rows, np.int64)  # 0 is the base alone
    for start, end, stack in segments:
        keys[start:end] = number.setdefault(stack, len(number) + 1)
    order = np.argsort(keys, kind="stable")
    return order, block_starts(keys[order].tolist())


def block_starts(keys: Sequence[object]) -> list[int]:
    """Where blocks of 4, 2 or 1 consecutive terms with equal keys begin, and where the last one ends."""
    starts = [0]
    for _, group in groupby(keys):
        left = len(list(group))
        while left:
            size = 4 if left >= 4 else 2 if left >= 2 else 1
            starts.append(starts[-1] + size)
            left -= size
    return starts
