"""The threads that run a step together, and the job in which it is handed to them."""

import ctypes
import threading
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hotshoe.kernels.cpu.decode_job import END, JOB
from hotshoe.kernels.cpu.decode_program import announce, help_team, run_program

Job = NDArray[np.void]


class DecodeTeam:
    """A fixed number of threads; the caller of `run` is one of them. The others sleep between steps.

    Jobs are run by one thread at a time.
    """

    def __init__(self, size: int) -> None:
        """Starts the helpers, and compiles what is not compiled yet: about a minute of a core, once an installation."""
        self.size = size
        self.job: Job = np.zeros(1, JOB)
        self._counters = np.zeros(16, np.int64)  # where the team meets, and the jobs announced, a cache line apart
        self._process = ctypes.CDLL(None)
        self.job["yield_core"] = _address(self._process.sched_yield)
        self.job["barrier"] = self._counters.ctypes.data
        self._orders = self._counters.ctypes.data + 64
        self._futex = _address(self._process.syscall)
        self._threads = [
            threading.Thread(
                target=help_team,
                args=(thread, size, self.job, self._orders, self._futex),
                name=f"decode-{thread}",
                daemon=True,
            )
            for thread in range(1, size)
        ]
        for helper in self._threads:
            helper.start()
        run_program(0, size, self.job)  # END: nothing but the compilation
        self._finalizer = weakref.finalize(self, _dismiss, self.job, self._counters, self._orders, self._futex)

    def set(self, **fields: float) -> None:
        """Writes fields of the job; addresses must stay valid until it has run."""
        for name, value in fields.items():
            self.job[name] = value

    def run(self, program: int) -> None:
        """Runs a program, LAYERS or HEAD, on what `job` says, and returns when it is done."""
        self.job["program"] = program
        self.job["barrier_base"] = self._counters[0]
        if self.size > 1:
            announce(self._orders, self._futex)
        run_program(0, self.size, self.job)


def _dismiss(job: Job, counters: NDArray[np.int64], orders: int, futex: int) -> None:
    """Ends the helpers; keeps what they read alive until then."""
    job["program"] = END
    announce(orders, futex)


def _address(function: Any) -> int:
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
