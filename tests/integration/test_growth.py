"""What a soak would say of a process that grows: it is told from one that does not."""

import subprocess
import sys

import pytest
from soak import MAX_GROWTH, MEMORY_GREW, growth, state_of

PARTS = 5
KEEPS = """
import sys
kept = []
print(flush=True)
for line in sys.stdin:
    data = b"x" * (int(sys.argv[1]) << 20)
    kept.append(data if sys.argv[2] == "keeps" else None)
    del data
    print(flush=True)
"""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def _states(size: int, does: str) -> list[dict[str, int]]:
    """Of a process that takes so many MiB in each part, and "keeps" or "returns" them."""
    arguments = [sys.executable, "-I", "-S", "-c", KEEPS, str(size), does]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        states = []
        for _ in range(PARTS):
            process.stdin.write("\n")
            process.stdout.readline()
            states.append(state_of(process.pid))
        process.stdin.close()
    return states


def test_memory_that_is_kept_is_found_and_what_is_returned_is_not() -> None:
    size = MAX_GROWTH // 2 + 10  # twice from the middle part to the last
    assert [grown.partition(":")[0] for grown in growth(_states(size, "keeps"))] == [MEMORY_GREW]
    assert growth(_states(size, "returns")) == []
    assert growth(_states(1, "keeps")) == [], "little is no leak"


def test_memory_that_comes_back_to_what_it_was_is_no_leak() -> None:
    sizes = [1600, 1448, 1324, 1450, 1461]  # of a soak
    assert growth([{"files": 25, "threads": 31, "rss": size} for size in sizes]) == []
