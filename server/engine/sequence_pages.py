"""Sequences' pages in the prefix cache: found when one starts, offered once they are computed."""

from collections.abc import Sequence as Items

from hotshoe.server.engine.kv_blocks import KvBlocks
from hotshoe.server.engine.prefix_cache import chain_seed, joined_key, page_key
from hotshoe.server.engine.sequence import Sequence


class SequencePages:
    """What sequences have in common, by the keys of what they compute.

    Args:
        base_digest: of the model that computes it.
        shared: whether tenants share it, too.
    """

    def __init__(self, blocks: KvBlocks, *, base_digest: str, shared: bool) -> None:
        self._blocks = blocks
        self._base_digest = base_digest
        self._shared = shared

    def find(self, sequence: Sequence) -> tuple[list[int], int | None]:
        """Cached pages of its beginning, and the one in which a sibling left what follows them; None if none did."""
        reusable = sequence.shared_positions // self._blocks.page_tokens
        cached = self._blocks.cache.find(self.keys(sequence, reusable))
        if len(cached) < reusable or not sequence.has_siblings:
            return cached, None
        key = self._tail_key(sequence)
        tails = [] if key is None else self._blocks.cache.find([key])
        return cached, tails[0] if tails else None

    def offer(self, sequence: Sequence) -> None:
        """Its full pages, as far as they are computed, may be shared from now on."""
        full = sequence.computed // self._blocks.page_tokens
        if full <= sequence.offered_pages:
            return
        keys, pages = self.keys(sequence, full), self._pages_of(sequence)
        for page in range(sequence.offered_pages, full):
            self._blocks.cache.insert(keys[page], pages[page])
        sequence.offered_pages = full

    def offer_tail(self, sequence: Sequence) -> None:
        """It has computed what its siblings share: so may the part of that which fills no page."""
        key = self._tail_key(sequence)
        if key is not None:
            page = self._pages_of(sequence)[sequence.shared_positions // self._blocks.page_tokens]
            self._blocks.cache.insert_tail(key, page)

    def keys(self, sequence: Sequence, count: int) -> list[bytes]:
        """The keys of its first `count` pages, which must be full."""
        known, size = sequence.page_keys, self._blocks.page_tokens
        for page in range(len(known), count):
            known.append(self._key(sequence, known, page * size, (page + 1) * size))
        return known[:count]

    def _tail_key(self, sequence: Sequence) -> bytes | None:
        """The key of what siblings share behind their full pages; None if there is nothing."""
        size, end = self._blocks.page_tokens, sequence.shared_positions
        if end % size == 0:
            return None
        return self._key(sequence, self.keys(sequence, end // size), end // size * size, end)

    def _key(self, sequence: Sequence, before: Items[bytes], start: int, end: int) -> bytes:
        """The key of positions start … end−1, chained to the pages before, and to who begins to act in them."""
        uses = list(zip(sequence.request.adapters, sequence.starts, strict=True))
        if before:
            previous = before[-1]
        else:
            acting = [(use.key, use.weight) for use, begin in uses if begin == 0]
            base = f"{self._base_digest} far" if sequence.far else self._base_digest
            previous = chain_seed(base, acting, "" if self._shared else sequence.request.tenant)
        for use, begin in uses:
            if max(start, 1) <= begin < end:
                previous = joined_key(previous, use.key, use.weight, int(begin))
        return page_key(previous, sequence.tokens_at(start, end))

    def _pages_of(self, sequence: Sequence) -> list[int]:
        assert sequence.table is not None, "only running sequences are computed"
        pages: list[int] = self._blocks.pages(sequence.table).tolist()
        return pages
