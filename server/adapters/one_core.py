"""Keeps a thread, and its tensor operations, out of the engine's way."""

import contextlib
import ctypes
import functools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_TORCH = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")  # MKL is in it, where torch has MKL
_LOOK_SECONDS = 0.25


def use_one_core() -> None:
    """From now on this thread's tensor operations take no other core, and so none from the engine's thread."""
    torch.get_num_threads()  # else torch sets the number itself, at its first operation here
    # Both of this thread only, unlike torch.set_num_threads. MKL, whose products and decompositions are, does not look
    # at OpenMP's number once torch has told it one.
    for library, name in ((None, "omp_set_num_threads"), (_TORCH, "MKL_Set_Num_Threads_Local")):
        with contextlib.suppress(AttributeError, OSError):
            getattr(ctypes.CDLL(library), name)(1)


def let_others_first(thread: int | None = None) -> None:
    """From now on a thread, when it wakes, interrupts no other that runs: the engine's least of all.

    `thread`: its native id; this one if not given.
    """
    _floor.forget(thread)
    _schedule(thread, "SCHED_BATCH")


def run_when_idle() -> None:
    """From now on this thread runs where a core has nothing else to do, and at its least where none has.

    Where it could never be told otherwise again, it is told to let others first instead: without CAP_SYS_NICE or a
    limit on nice, as most servers run, Linux lets no thread leave SCHED_IDLE, and what it does would end at no time.
    So it is where others than this process keep every core busy: it would be given no core for so long that the
    engine's thread waited seconds for the interpreter's lock, which it holds as it runs Python.
    """
    _schedule(None, "SCHED_BATCH")
    if not _is_crowded() and _may_come_back():
        _schedule(None, "SCHED_IDLE")
        _floor.watch()


def _is_crowded() -> bool:
    """Whether twice as many threads as there are cores want one, in the mean of the last minute."""
    with contextlib.suppress(OSError):
        return os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
    return False


@functools.cache
def _may_come_back() -> bool:
    """Whether a thread of this process that is SCHED_IDLE can be made something else, and is seen to wait."""
    with ThreadPoolExecutor(1, "idle-probe") as probe:  # it may stay what it becomes
        returns = probe.submit(lambda: _schedule(None, "SCHED_IDLE") and _schedule(None, "SCHED_BATCH")).result()
    return returns and _seen(threading.get_native_id()) is not None


class _Floor:
    """Gives threads that run when a core is idle a turn among the others once none was idle for a while.

    One that could run at a look, and hardly did since the look before, is let into the others' queue until it did.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._ran: dict[int, float] = {}  # by native id: seconds at the last look
        self._looks = False

    def watch(self) -> None:
        """From now on this thread has the floor."""
        number = threading.get_native_id()
        with self._mutex:
            self._ran[number] = time.thread_time()
            if not self._looks:
                self._looks = True
                threading.Thread(target=self._look_on, name="idle-floor", daemon=True).start()

    def forget(self, thread: int | None) -> None:
        """What a thread is from now on it stays."""
        with self._mutex:
            self._ran.pop(threading.get_native_id() if thread is None else thread, None)

    def _look_on(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            with self._mutex:
                self._look()
                if not self._ran:
                    self._looks = False
                    return

    def _look(self) -> None:
        """Under the mutex, so that no thread is told anything after it was forgotten."""
        for number, before in list(self._ran.items()):
            seen = _seen(number)
            if seen is None:
                del self._ran[number]
                continue
            can_run, self._ran[number] = seen
            starves = can_run and self._ran[number] - before < _LOOK_SECONDS / 4
            _schedule(number, "SCHED_BATCH" if starves else "SCHED_IDLE")


def _seen(number: int) -> tuple[bool, float] | None:
    """Whether a thread of ours could run now, and how many seconds it ran; None if it has ended or nothing tells."""
    try:
        fields = Path(f"/proc/self/task/{number}/stat").read_text().rpartition(")")[2].split()
        return fields[0] == "R", (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def _schedule(thread: int | None, policy: str) -> bool:
    """Does nothing, and says so, where the system has no such policy or does not let us."""
    try:
        number = threading.get_native_id() if thread is None else thread
        os.sched_setscheduler(number, getattr(os, policy), os.sched_param(0))
        return True
    except (AttributeError, OSError):
        return False


_floor = _Floor()
