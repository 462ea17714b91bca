"""Which cache lines of the low-rank tables each thread of a team reads at each site, in the order in which it does."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hotshoe.kernels.cpu.decode_job import GATE_UP
from hotshoe.kernels.cpu.decode_low_rank import HALVES
from hotshoe.kernels.cpu.factor_fetch import LINE
from hotshoe.kernels.low_rank_table import UNIT_RANK
from hotshoe.server.adapters.sites import SiteShape

if TYPE_CHECKING:
    from hotshoe.server.adapters.row_terms import RowTerms

MOST_ROWS = 32  # with more, what was asked for has left the cache again before it is read
MOST_LINES = 12_000  # of a thread and a site, 768 KB: most of a second-level cache


class FactorFetches:
    """Of one step's terms, for all layers: their tables are alike.

    Attributes:
        address: of int64 [team, sites, 4]: where the lines of A are, how many, and the same of B; int32, from the
            table's own beginning.
    """

    def __init__(self, terms: "RowTerms", shapes: list[SiteShape], starts: NDArray[np.int64]) -> None:
        """`starts`: [sites, team + 1], the first column of each thread; of each half, where the site is gate and up."""
        team = starts.shape[1] - 1
        table = np.zeros((team, len(shapes), 4), np.int64)
        self._kept: list[object] = [table]
        ranks = terms.ranks.max(axis=1, initial=0)  # [adapters, sites, targets]
        firsts = np.array(terms.block_starts[:-1])
        self._folded = terms.term_folded[firsts] != 0
        self._units, self._ranks = terms.term_units[firsts], ranks[terms.term_adapters[firsts]]  # of each block
        for site, shape in enumerate(shapes):
            for thread in range(team):
                a = self._lines_of_a(site, shape, thread, team)[:MOST_LINES]
                b = self._lines_of_b(site, shape, *starts[site, thread : thread + 2])[: MOST_LINES - len(a)]
                table[thread, site] = self._keep(a), len(a), self._keep(b), len(b)
        self.address = table.ctypes.data

    def _keep(self, lines: NDArray[np.int64]) -> int:
        kept = lines.astype(np.int32)
        self._kept.append(kept)
        return kept.ctypes.data

    def _lines_of_a(self, site: int, shape: SiteShape, thread: int, team: int) -> NDArray[np.int64]:
        """Half the inputs of a block's units are contiguous, a quarter if they are folded; tasks go round the team."""
        tasks = np.arange(thread, HALVES * len(self._units), team)
        block, half = tasks // HALVES, tasks % HALVES
        size = shape.in_features // HALVES * len(shape.widths) * UNIT_RANK * 2
        units = -(-self._ranks[block, site].max(axis=1, initial=0) // UNIT_RANK)
        folded = self._folded[block]
        unit = np.arange(units.max(initial=0))
        starts = ((self._units[block, None] + unit) * HALVES + half[:, None]) * size
        whole = _lines(starts[(unit < units[:, None]) & ~folded[:, None]], size)
        quarters = self._units[block] * HALVES * size + half * (size // 2)
        return np.concatenate((whole, _lines(quarters[folded & (units > 0)], size // 2)))

    def _lines_of_b(self, site: int, shape: SiteShape, first: int, last: int) -> NDArray[np.int64]:
        """A rank's columns are contiguous; of several targets, a thread has some of each or some of all together."""
        width, parts = sum(shape.widths), []
        for offset in (0, width // 2) if site == GATE_UP else (0,):
            for target, columns in enumerate(shape.columns):
                begin, end = max(columns.start, offset + first), min(columns.stop, offset + last)
                if begin >= end:
                    continue
                ranks = self._ranks[:, site, target]
                rank = np.arange(ranks.max(initial=0))
                starts = ((self._units[:, None] * UNIT_RANK + rank) * width + begin) * 2
                parts.append(_lines(starts[rank < ranks[:, None]], 2 * (end - begin)))
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _lines(starts: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """The lines of ranges of `size` bytes, one range behind the other."""
    count = -(-(size + int((starts % LINE).max(initial=0))) // LINE)  # a range may begin within a line
    found: NDArray[np.int64] = (starts[:, None] // LINE + np.arange(count)).ravel()
    return found
