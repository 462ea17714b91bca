"""How many files a server may have open, and how many of them it gives to connections."""

import subprocess
import sys

from server_process import limited

SAYS = """
import resource
from hotshoe.server import open_files
given = open_files.connections()
open_files.raise_limit()
print(given, open_files.connections(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def _told(*, soft: int, hard: int) -> list[int]:
    """Connections before and after the limit is raised, and the limits then."""
    program = limited(limited([sys.executable, "-c", SAYS], files=soft, limit="-Sn"), files=hard)
    ran = subprocess.run(program, capture_output=True, text=True, timeout=200, check=True)
    return [int(word) for word in ran.stdout.split()]


def test_a_server_takes_what_files_it_may_have_and_gives_half_of_them_to_connections() -> None:
    assert _told(soft=100, hard=400) == [50, 200, 400, 400]
    assert _told(soft=300, hard=300) == [150, 150, 300, 300]
