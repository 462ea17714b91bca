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


def let_others_first() -> None:
    """From now on this thread, when it wakes, interrupts no other that runs: the engine's least of all."""
    with contextlib.suppress(AttributeError, OSError):
        os.sched_setscheduler(threading.get_native_id(), os.SCHED_BATCH, os.sched_param(0))
