"""Pages: counted, shared, evicted, never lost, by examples and by random histories."""

import random

import pytest

from hotshoe.server.engine.kv_blocks import KvBlocks


def make_blocks(*, num_pages: int = 8, page_tokens: int = 4, max_sequences: int = 4) -> KvBlocks:
    return KvBlocks(
        num_pages=num_pages, page_tokens=page_tokens, max_sequences=max_sequences, max_table_pages=num_pages
    )


def test_a_table_grows_by_whole_pages_and_never_holds_the_null_page() -> None:
    blocks = make_blocks()
    table = blocks.open_table()
    assert blocks.grow(table, 1) and len(blocks.pages(table)) == 1
    assert blocks.grow(table, 4) and len(blocks.pages(table)) == 1
    assert blocks.grow(table, 5) and len(blocks.pages(table)) == 2
    assert 0 not in blocks.pages(table)
    assert blocks.tables[table, 2:].tolist() == [0] * 6
    blocks.check_integrity()
    blocks.close_table(table)
    assert blocks.num_available == 8 and blocks.usage == 0.0


def test_growing_takes_all_or_nothing() -> None:
    blocks = make_blocks(num_pages=3)
    first, second = blocks.open_table(), blocks.open_table()
    assert blocks.grow(first, 8)
    assert not blocks.grow(second, 8)
    assert len(blocks.pages(second)) == 0 and blocks.num_available == 1
    assert blocks.grow(second, 4)
    blocks.check_integrity()


def test_cached_pages_are_shared_and_survive_their_tables() -> None:
    blocks = make_blocks()
    first = blocks.open_table()
    blocks.grow(first, 8)
    pages = blocks.pages(first).tolist()
    for key, page in zip((b"a", b"b"), pages, strict=True):
        blocks.cache.insert(key, page)
    second = blocks.open_table(blocks.cache.find([b"a", b"b"]))
    assert blocks.pages(second).tolist() == pages
    blocks.check_integrity()
    blocks.close_table(first)
    assert blocks.cache.num_idle == 0
    blocks.close_table(second)
    assert blocks.cache.num_idle == 2 and blocks.num_available == 8
    third = blocks.open_table(blocks.cache.find([b"a"]))
    assert blocks.cache.num_idle == 1
    blocks.check_integrity()
    blocks.close_table(third)


def test_the_end_of_a_prefix_is_evicted_before_its_beginning() -> None:
    blocks = make_blocks(num_pages=3)
    table = blocks.open_table()
    blocks.grow(table, 12)
    for index, page in enumerate(blocks.pages(table).tolist()):
        blocks.cache.insert(bytes([index]), page)
    blocks.close_table(table)
    other = blocks.open_table()
    assert blocks.grow(other, 4)
    assert len(blocks.cache.find([b"\0", b"\1", b"\2"])) == 2


def test_soiled_pages_are_listed_once_and_cached_ones_are_not() -> None:
    blocks = make_blocks()
    table = blocks.open_table()
    blocks.grow(table, 12)
    pages = blocks.pages(table).tolist()
    blocks.cache.insert(b"sound", pages[0])
    blocks.close_table(table, soiled=True)
    assert sorted(blocks.take_soiled()) == sorted(pages[1:])
    assert blocks.take_soiled() == []


def test_an_integrity_check_finds_a_lost_page() -> None:
    blocks = make_blocks()
    table = blocks.open_table()
    blocks.grow(table, 4)
    blocks.tables[table, 0] = 0
    with pytest.raises(AssertionError, match="reference counts"):
        blocks.check_integrity()


@pytest.mark.parametrize("wrong", [1, 3])  # the table's page, and one that is free already
def test_an_integrity_check_finds_a_page_that_is_free_beside_itself(wrong: int) -> None:
    blocks = make_blocks()
    table = blocks.open_table()
    assert blocks.grow(table, 4) and blocks.pages(table).tolist() == [1]
    blocks._free[0] = wrong
    with pytest.raises(AssertionError, match="free twice"):
        blocks.check_integrity()


def test_pages_of_the_cache_are_taken_only_behind_those_that_are_free() -> None:
    blocks = make_blocks(num_pages=6)
    first = blocks.open_table()
    assert blocks.grow(first, 8)
    cached = blocks.pages(first).tolist()
    for key, page in zip((b"a", b"b"), cached, strict=True):
        blocks.cache.insert(key, page)
    blocks.close_table(first)
    second = blocks.open_table()
    assert blocks.grow(second, 24)
    assert blocks.pages(second)[4:].tolist() == cached[::-1] and not set(blocks.pages(second)[:4].tolist()) & {*cached}
    blocks.check_integrity()


@pytest.mark.parametrize("seed", range(20))
def test_random_histories_keep_the_books(seed: int) -> None:
    rng = random.Random(seed)
    blocks = make_blocks(num_pages=rng.randint(4, 20), page_tokens=rng.choice([1, 4]), max_sequences=5)
    tables: dict[int, int] = {}
    for _ in range(400):
        action = rng.random()
        if action < 0.3 and len(tables) < 5:
            chain = [bytes([rng.randint(0, 2), i]) for i in range(rng.randint(0, 4))]
            table = blocks.open_table(blocks.cache.find(chain))
            tables[table] = len(blocks.pages(table)) * blocks.page_tokens
        elif action < 0.7 and tables:
            table = rng.choice(list(tables))
            wanted = min(tables[table] + rng.randint(1, 6), blocks.num_pages * blocks.page_tokens)
            if blocks.grow(table, wanted):
                tables[table] = wanted
                pages = blocks.pages(table).tolist()
                blocks.cache.insert(bytes([rng.randint(0, 2), len(pages) - 1]), pages[-1])
        elif tables:
            table = rng.choice(list(tables))
            del tables[table]
            blocks.close_table(table, soiled=rng.random() < 0.2)
        blocks.check_integrity()
    for table in tables:
        blocks.close_table(table)
    blocks.check_integrity()
    assert blocks.num_available == blocks.num_pages


def test_a_page_with_nothing_but_a_tail_is_given_up_when_what_follows_is_soiled() -> None:
    blocks = KvBlocks(num_pages=4, page_tokens=4, max_sequences=2, max_table_pages=4)
    table = blocks.open_table()
    assert blocks.grow(table, 8)
    whole, begun = blocks.pages(table).tolist()
    blocks.cache.insert(b"whole", whole)
    blocks.cache.insert_tail(b"begun", begun)
    blocks.close_table(table, soiled=True)
    assert blocks.cache.find([b"whole"]) == [whole] and blocks.cache.find([b"begun"]) == []
    assert blocks.take_soiled() == [begun]
    blocks.check_integrity()
