"""Prefix cache: keys that tell everything apart, LRU among pages that nobody references."""

import itertools

import pytest

from hotshoe.server.engine.prefix_cache import PrefixCache, chain_seed, page_key

BASE = "sha256:" + "b" * 64
ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def test_seeds_differ_in_every_part() -> None:
    seeds = [
        chain_seed(base, stack, tenant)
        for base in (BASE, ONE)
        for tenant in ("", "a", "b")
        for stack in (
            [],
            [(ONE, 1.0)],
            [(TWO, 1.0)],
            [(ONE, 0.5)],
            [(ONE, 1.0), (TWO, 1.0)],
            [(TWO, 1.0), (ONE, 1.0)],
            [(ONE, 1.0), (TWO, 0.5)],
            [(ONE, 0.5), (TWO, 1.0)],
            [(ONE, 1.0), (ONE, 1.0)],
        )
    ]
    assert len(set(seeds)) == len(seeds)
    assert chain_seed(BASE, [(ONE, 1.0)], "a") == chain_seed(BASE, [(ONE, 1.0)], "a")


def test_fields_cannot_run_into_each_other() -> None:
    texts = ["", "a", "aa", "ab", "b", "\x00", "a\x00"]
    seeds = [chain_seed(base, [(digest, 1.0)], tenant) for base, digest, tenant in itertools.product(texts, repeat=3)]
    assert len(set(seeds)) == len(seeds)


def test_a_page_key_depends_on_the_tokens_and_on_all_pages_before() -> None:
    seed = chain_seed(BASE, [], "")
    first, other = page_key(seed, [1, 2]), page_key(seed, [2, 1])
    keys = [
        first,
        other,
        page_key(first, [1, 2]),
        page_key(other, [1, 2]),
        page_key(seed, [1]),
        page_key(seed, [-1, 2]),
    ]
    assert len(set(keys)) == len(keys)
    assert page_key(first, [1, 2]) == page_key(page_key(seed, [1, 2]), (1, 2))


def keys(count: int) -> list[bytes]:
    return [bytes([i]) for i in range(count)]


def test_find_stops_at_the_first_missing_page() -> None:
    cache = PrefixCache()
    a, b, c = keys(3)
    cache.insert(a, 4)
    cache.insert(c, 6)
    assert cache.find([a, b, c]) == [4]
    assert cache.find([b, c]) == []
    assert cache.find([c]) == [6]


def test_the_first_page_with_a_key_keeps_it() -> None:
    cache = PrefixCache()
    (key, other) = keys(2)
    cache.insert(key, 4)
    cache.insert(key, 5)
    cache.insert(other, 4)
    assert cache.find([key]) == [4] and 5 not in cache and cache.find([other]) == []


def test_eviction_takes_the_least_recently_used_idle_page() -> None:
    cache = PrefixCache()
    for page, key in enumerate(keys(4)):
        cache.insert(key, page)
    for page in (2, 0, 3):
        cache.set_idle(page)
    cache.set_busy(0)
    assert [cache.evict(), cache.evict()] == [2, 3]
    assert cache.num_idle == 0 and len(cache) == 2
    assert cache.find([keys(3)[2]]) == []
    with pytest.raises(KeyError):
        cache.evict()


def test_a_tail_is_found_until_its_page_is_evicted_or_forgotten() -> None:
    cache = PrefixCache()
    tail, other, whole = keys(3)
    cache.insert_tail(tail, 4)
    cache.insert_tail(other, 5)
    assert cache.find([tail]) == [4] and 4 in cache and not cache.is_full(4)
    cache.insert(whole, 4)
    assert cache.find([tail]) == cache.find([whole]) == [4] and cache.is_full(4)
    cache.set_idle(4)
    assert cache.evict() == 4
    assert cache.find([tail]) == cache.find([whole]) == [] and 4 not in cache
    cache.forget(5)
    assert cache.find([other]) == [] and len(cache) == 0
    cache.forget(5)
