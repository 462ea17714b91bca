"""Keeps a thread, and its tensor operations, out of the engine's way."""

import contextlib
import ctypes
import os
import threading

import torch


def use_one_core() -> None:
    """From now on this thread's tensor operations take no other core, and so none from the engine's thread."""
    torch.get_num_threads()  # else torch sets the number itself, at its first operation here
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).omp_set_num_threads(1)  # of this thread only, unlike torch.set_num_threads


def let_others_first(thread: int | None = None) -> None:
    """From now on a thread, when it wakes, interrupts no other that runs: the engine's least of all.

    `thread`: its native id; this one if not given.
    """
    _schedule(thread, "SCHED_BATCH")


def run_when_idle(thread: int | None = None) -> None:
    """From now on a thread runs where a core has nothing else to do, and hardly at all where none has."""
    _schedule(thread, "SCHED_IDLE")


def _schedule(thread: int | None, policy: str) -> None:
    """Does nothing where the system has no such policy."""
    with contextlib.suppress(AttributeError, OSError):
        number = threading.get_native_id() if thread is None else thread
        os.sched_setscheduler(number, getattr(os, policy), os.sched_param(0))
