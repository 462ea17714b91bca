"""Whether a file that is followed has become another one."""

import os
from pathlib import Path


def file_stamp(path: Path) -> tuple[int, ...]:
    """What differs once the file has changed or was replaced; () if it cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns
