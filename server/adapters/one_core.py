"""Keeps a thread, and its tensor operations, out of the engine's way."""

import contextlib
import ctypes
import os
import threading
from pathlib import Path

import torch

_TORCH = str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")  # MKL is in it, where torch has MKL


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
    _schedule(thread, "SCHED_BATCH")


def run_when_idle(thread: int | None = None) -> None:
    """From now on a thread runs where a core has nothing else to do, and hardly at all where none has.

    Where others than this process keep every core busy it only lets others first: it would be given no core for so long
    that the engine's thread waited seconds for the interpreter's lock, which it holds as it runs Python.
    """
    _schedule(thread, "SCHED_BATCH" if _is_crowded() else "SCHED_IDLE")


def _is_crowded() -> bool:
    """Whether twice as many threads as there are cores want one, in the mean of the last minute."""
    with contextlib.suppress(OSError):
        return os.getloadavg()[0] > 2 * (os.cpu_count() or 1)
    return False


def _schedule(thread: int | None, policy: str) -> None:
    """Does nothing where the system has no such policy."""
    with contextlib.suppress(AttributeError, OSError):
        number = threading.get_native_id() if thread is None else thread
        os.sched_setscheduler(number, getattr(os, policy), os.sched_param(0))
