"""Large pages: what is large asks for them, within what is its own."""

import re
from pathlib import Path

import pytest
import torch

from hotshoe.server.adapters.large_pages import ask_for_large_pages

PAGE = 2 << 20

pytestmark = pytest.mark.skipif(
    not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="the system has no large pages"
)


def asks(address: int) -> bool:
    """Whether an address of this process lies where large pages are asked for."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= address < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return " hg" in line
    raise AssertionError(f"{address:#x} is not mapped")


def test_what_is_large_asks_for_the_pages_that_it_touches_and_no_others() -> None:
    whole = torch.empty(64 * PAGE, dtype=torch.uint8)
    first = -whole.data_ptr() % PAGE
    begin = first + 10 * PAGE + 4096
    ask_for_large_pages(whole[begin : begin + PAGE], whole)
    where = whole.data_ptr() + first
    assert [asks(where + page * PAGE) for page in (9, 10, 11, 12)] == [False, True, True, False]


def test_what_is_small_leaves_everything_as_it_is() -> None:
    whole = torch.empty(64 * PAGE, dtype=torch.uint8)
    ask_for_large_pages(whole[10 * PAGE : 10 * PAGE + PAGE // 4], whole)
    assert not asks(whole.data_ptr() + 10 * PAGE)


def test_nothing_outside_of_the_whole_is_asked_for() -> None:
    memory = torch.empty(64 * PAGE, dtype=torch.uint8)
    first = -memory.data_ptr() % PAGE
    begin = first + 10 * PAGE + PAGE // 2
    whole = memory[begin : begin + PAGE]
    ask_for_large_pages(whole, whole)
    inside = [asks(memory.data_ptr() + begin + offset) for offset in (-4096, 0, PAGE - 4096, PAGE)]
    assert inside == [False, True, True, False]
