"""Keeps a thread's tensor operations to that thread."""

import contextlib
import ctypes

import torch


def use_one_core() -> None:
    """From now on this thread's tensor operations take no other core, and so none from the engine's thread."""
    torch.get_num_threads()  # else torch sets the number itself, at its first operation here
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).omp_set_num_threads(1)  # of this thread only, unlike torch.set_num_threads
