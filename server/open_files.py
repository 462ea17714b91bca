"""How many files this process may have open, and how many of them may be connections."""

import contextlib
import resource

_ENOUGH_FILES = 65_536
_MAX_CONNECTIONS = 8_192


def raise_limit() -> None:
    """To what the administrator allows: the usual 1024 is for programs that call select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # a system may say that it allows more than it does
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def connections() -> int:
    """How many the gRPC port takes: half of the files at most, for adapters are files too, and so is the store."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else min(soft // 2, _MAX_CONNECTIONS)
