"""Pages of the key-value cache and the block tables of running sequences, by reference counts.

    page 0         the null page: never handed out, never written, what padding points at
    free           holds nothing
    referenced     stands in the block table of one or more running sequences
    idle           cached (see `PrefixCache`) and unreferenced: evicted when no page is free

A table's positions 0, 1, 2 … lie in its pages in order; position p of table t has the slot
`tables[t, p // page_tokens] · page_tokens + p % page_tokens` of the cache. Knows nothing of tensors.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hotshoe.server.engine.prefix_cache import PrefixCache


class KvBlocks:
    """Who holds which page.

    Attributes:
        tables: [max_sequences, max_table_pages] int32, each row the pages of one sequence in order, 0 past its end.
        cache: the prefix cache over these pages.
    """

    def __init__(self, *, num_pages: int, page_tokens: int, max_sequences: int, max_table_pages: int) -> None:
        self.num_pages = num_pages  # without the null page
        self.page_tokens = page_tokens
        self.tables: NDArray[np.int32] = np.zeros((max_sequences, max_table_pages), dtype=np.int32)
        self.cache = PrefixCache()
        self._max_sequences = max_sequences
        self.clear()

    def clear(self) -> None:
        """Every page free, every table closed, nothing cached."""
        self.tables.fill(0)
        self.cache.clear()
        self._references = np.zeros(self.num_pages + 1, dtype=np.int32)
        self._table_pages = np.zeros(self._max_sequences, dtype=np.int32)
        self._free = np.arange(self.num_pages, 0, -1, dtype=np.int32)  # a stack, taken from its end
        self._num_free = self.num_pages
        self._free_tables = list(range(self._max_sequences - 1, -1, -1))
        self._soiled: list[int] = []

    @property
    def num_available(self) -> int:
        """How many pages can be taken: free ones, and cached ones that nobody references."""
        return self._num_free + self.cache.num_idle

    @property
    def usage(self) -> float:
        """The share of pages that running sequences reference."""
        return 1.0 - self.num_available / self.num_pages

    def pages_for(self, num_positions: int) -> int:
        """How many pages that many positions fill, the last perhaps in part."""
        return -(-num_positions // self.page_tokens)

    def open_table(self, cached_pages: Sequence[int] = ()) -> int:
        """Gives an empty table that begins with pages from the cache; the caller must close it."""
        table = self._free_tables.pop()
        if cached_pages:
            pages = np.asarray(cached_pages, dtype=np.int32)
            for page in pages[self._references[pages] == 0].tolist():
                self.cache.set_busy(page)
            self._append(table, pages)
        return table

    def grow(self, table: int, num_positions: int) -> bool:
        """Makes the table hold that many positions; False, and nothing done, if pages run out."""
        wanted = self.pages_for(num_positions) - int(self._table_pages[table])
        if wanted > self.num_available:
            return False
        if wanted > 0:
            self._append(table, self._take(wanted))
        return True

    def close_table(self, table: int, *, soiled: bool = False) -> None:
        """Gives the table's references back, its last page first, so that a prefix outlives what follows it.

        With `soiled`, pages that go free hold values that must not reach another sequence: `take_soiled` lists them.
        """
        pages = self.pages(table)[::-1]
        self._references[pages] -= 1
        freed: list[int] = []
        for page in pages[self._references[pages] == 0].tolist():
            if soiled and not self.cache.is_full(page):
                self.cache.forget(page)  # what follows its beginning is not fit to be used
            if page in self.cache:
                self.cache.set_idle(page)
            else:
                freed.append(page)
        self._free[self._num_free : self._num_free + len(freed)] = freed
        self._num_free += len(freed)
        if soiled:
            self._soiled += freed
        self.tables[table] = 0
        self._table_pages[table] = 0
        self._free_tables.append(table)

    def pages(self, table: int) -> NDArray[np.int32]:
        """The table's pages in order: a view."""
        return self.tables[table, : self._table_pages[table]]

    def take_soiled(self) -> list[int]:
        """The pages to set to zero before anything else is computed; they are the caller's duty from now on."""
        pages, self._soiled = self._soiled, []
        return pages

    def check_integrity(self) -> None:
        """Raises AssertionError unless free + referenced + idle is all, and the counts are those of the tables."""
        used = np.concatenate([self.pages(table) for table in range(self._max_sequences)])
        counted = np.bincount(used, minlength=self.num_pages + 1)
        if not np.array_equal(counted, self._references):
            raise AssertionError("reference counts differ from the block tables")
        referenced = int((self._references > 0).sum())
        if self._num_free + referenced + self.cache.num_idle != self.num_pages:
            raise AssertionError(
                f"{self._num_free} free + {referenced} referenced + {self.cache.num_idle} idle pages"
                f" are not {self.num_pages}"
            )
        unused = np.concatenate((self._free[: self._num_free], np.array(self.cache.idle_pages, dtype=np.int32)))
        if np.bincount(unused, minlength=1).max() > 1 or self._references[unused].any() or self._references[0]:
            raise AssertionError("a page is both free and in use, or free twice, or the null page is in use")

    def _take(self, count: int) -> NDArray[np.int32]:
        """Pages that nobody holds any more: free ones, then those of the cache."""
        free = min(count, self._num_free)
        self._num_free -= free
        pages = self._free[self._num_free : self._num_free + free][::-1]
        if free == count:
            return pages
        evicted = [self.cache.evict() for _ in range(count - free)]
        return np.concatenate((pages, np.array(evicted, dtype=np.int32)))

    def _append(self, table: int, pages: NDArray[np.int32]) -> None:
        """Puts pages, all different, behind those of a table."""
        first = int(self._table_pages[table])
        self.tables[table, first : first + len(pages)] = pages
        self._table_pages[table] += len(pages)
        self._references[pages] += 1
