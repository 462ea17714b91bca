"""Which page of the key-value cache holds which tokens, so that equal prefixes are computed once.

A page's key is a SHA-256 hash chain over everything that its keys and values depend on:

    seed  = H(base digest, adapter stack as (key, weight)…, tenant)
    key_0 = H(seed, tokens of page 0),   key_i = H(key_{i−1}, tokens of page i)

so that no two adapters, tasks, weights or tenants can share a page, and a page is only found behind those before it.
An adapter that acts from some position on is not in the seed, but joins the chain at that position's page: the pages
before are the base's own. A base that turns far sequences otherwise is another base to them.

Several answers to one prompt, or several choices, also share the prompt's end that does not fill a page: it is cached
as a tail, under the key of just those tokens, and copied by who finds it, for each goes on in it by its own.
"""

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

VIRTUAL_TOKEN = -1  # stands in a key for a position that a soft prompt fills; the seed says with what


def chain_seed(base_digest: str, adapters: Sequence[tuple[str, float]], tenant: str) -> bytes:
    """The start of a hash chain: every field length-prefixed, so that no two lists of fields read the same."""
    state = hashlib.sha256(b"hotshoe.prefix.v1")
    state.update(struct.pack("<I", len(adapters)))
    for text in (base_digest, tenant, *(key for key, _ in adapters)):
        encoded = text.encode()
        state.update(struct.pack("<Q", len(encoded)) + encoded)
    for _, weight in adapters:
        state.update(struct.pack("<d", weight))
    return state.digest()


def joined_key(previous: bytes, adapter: str, weight: float, position: int) -> bytes:
    """`previous`, where an adapter acts from a position of the next page on."""
    return hashlib.sha256(previous + struct.pack("<qd", position, weight) + adapter.encode()).digest()


def page_key(previous: bytes, token_ids: Sequence[int]) -> bytes:
    """The key of a page that holds `token_ids`, behind the page (or the seed) with key `previous`."""
    return hashlib.sha256(previous + np.asarray(token_ids, dtype="<i8").tobytes()).digest()


class PrefixCache:
    """Keys and pages, one to one, and the pages among them that no sequence references, least recently used first.

    Knows nothing of reference counts: `KvBlocks` tells it when a page is no longer, or again, referenced.
    """

    def __init__(self) -> None:
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._tails_of: dict[int, list[bytes]] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._page_of)

    def __contains__(self, page: int) -> bool:
        return page in self._key_of or page in self._tails_of

    def is_full(self, page: int) -> bool:
        """Whether a page is cached as a whole, not only by its beginning."""
        return page in self._key_of

    @property
    def num_idle(self) -> int:
        """How many cached pages no sequence references."""
        return len(self._idle)

    @property
    def idle_pages(self) -> tuple[int, ...]:
        return tuple(self._idle)

    def find(self, keys: Sequence[bytes]) -> list[int]:
        """The pages of the longest leading run of `keys` that is cached."""
        pages: list[int] = []
        for key in keys:
            page = self._page_of.get(key)
            if page is None:
                break
            pages.append(page)
        return pages

    def insert(self, key: bytes, page: int) -> None:
        """Remembers that a referenced page holds what `key` says; the first page with a key keeps it."""
        if key in self._page_of or page in self._key_of:
            return
        self._page_of[key] = page
        self._key_of[page] = key

    def insert_tail(self, key: bytes, page: int) -> None:
        """Remembers that a referenced page begins with what `key` says; whatever follows there may change."""
        if key not in self._page_of:
            self._page_of[key] = page
            self._tails_of.setdefault(page, []).append(key)

    def set_idle(self, page: int) -> None:
        """A cached page lost its last reference: it may be evicted, after those that lost theirs before."""
        assert page in self, f"page {page} is not cached"
        self._idle[page] = None

    def set_busy(self, page: int) -> None:
        """A cached page is referenced again."""
        self._idle.pop(page, None)

    def evict(self) -> int:
        """Forgets the least recently used unreferenced page, and gives it back for other use."""
        page, _ = self._idle.popitem(last=False)
        self.forget(page)
        return page

    def forget(self, page: int) -> None:
        """No key finds a page any more that is not idle."""
        keys = self._tails_of.pop(page, [])
        if page in self._key_of:
            keys.append(self._key_of.pop(page))
        for key in keys:
            del self._page_of[key]

    def clear(self) -> None:
        """Forgets every page."""
        self._page_of.clear()
        self._key_of.clear()
        self._tails_of.clear()
        self._idle.clear()
