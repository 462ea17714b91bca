"""A thread that keeps to one core takes no time of any other, whatever library computes for it."""

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from hotshoe.server.adapters.one_core import run_when_idle, use_one_core

WORK_SECONDS = 0.3


@pytest.fixture
def two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("what", ["sum", "product", "decomposition"])
def test_operations_take_the_time_of_their_own_thread_alone(what: str, two_threads: None) -> None:
    square = torch.randn(400, 400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    operations: dict[str, Callable[[], object]] = {
        "sum": lambda: square + square,
        "product": lambda: square @ square,
        "decomposition": lambda: torch.linalg.eigvalsh(square),
    }
    own: list[float] = []
    every: list[float] = []

    def work() -> None:
        use_one_core()
        began, began_all = time.thread_time(), time.process_time()
        while time.thread_time() - began < WORK_SECONDS:
            operations[what]()
        own.append(time.thread_time() - began)
        every.append(time.process_time() - began_all)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert every[0] < 1.3 * own[0]


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="no such policies here")
@pytest.mark.parametrize("load, policy", [(0.5, "SCHED_IDLE"), (2.5, "SCHED_BATCH")])
def test_a_thread_that_may_hold_the_interpreter_is_not_starved_where_others_keep_every_core_busy(
    load: float, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load * (os.cpu_count() or 1), 0.0, 0.0))
    found: list[int] = []

    def work() -> None:
        run_when_idle()
        found.append(os.sched_getscheduler(threading.get_native_id()))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [getattr(os, policy)]
