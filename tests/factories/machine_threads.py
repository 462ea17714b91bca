"""torch on all cores of this machine, as a server has it."""

import os
from collections.abc import Iterator

import torch


def on_all_cores() -> Iterator[None]:
    """For an autouse fixture of what computes otherwise on several threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    yield
    torch.set_num_threads(before)
