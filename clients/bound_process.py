"""Commands whose process ends with ours, even if ours is killed."""

import sys
from collections.abc import Sequence

# Linux ends a process, by SIGTERM, when the thread that started it ends. The process asks for it itself: what runs
# between fork and exec of a process that has threads, such as gRPC's, may stand still or abort.
_BEGIN = (
    "import ctypes, os, signal, sys; "
    "ctypes.CDLL(None).prctl(1, int(signal.SIGTERM)); "  # PR_SET_PDEATHSIG, which execv keeps
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); "  # who started it may have ended before
    "os.execv(sys.argv[2], sys.argv[2:])"
)


def bound(command: Sequence[str], *, parent: int) -> list[str]:
    """A command that becomes `command`, whose first word is a path, bound to the process `parent` that starts it."""
    if sys.platform != "linux":
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _BEGIN, str(parent), *command]
