"""What the threads of a team do: wait for a job, and run the program that it asks for."""

from typing import Any

from hotshoe.kernels.cpu.decode_head import run_head
from hotshoe.kernels.cpu.decode_job import END, HEAD, LAYERS, SPINS
from hotshoe.kernels.cpu.decode_step import run_layers
from hotshoe.kernels.cpu.jit import atomic_add, atomic_load, call_6, compiled, pause


@compiled
def run_program(thread: int, team: int, job: Any) -> None:
    """A thread's part of a job; all threads of the team must call this."""
    if job[0].program == LAYERS:
        run_layers(thread, team, job)
    elif job[0].program == HEAD:
        run_head(thread, team, job)


@compiled
def help_team(thread: int, team: int, job: Any, orders: int, futex: int) -> None:
    """Runs each job that `orders`, an int64 that counts them up, announces, until one says END."""
    seen = 0
    while True:
        spins = 0
        while atomic_load(orders) == seen:
            pause()
            spins += 1
            if spins > SPINS:
                call_6(futex, (202, orders, 128, seen, 0, 0))  # SYS_futex, FUTEX_WAIT_PRIVATE on its low half
        seen += 1
        if job[0].program == END:
            return
        run_program(thread, team, job)


@compiled
def announce(orders: int, futex: int) -> None:
    """Wakes the helpers for the job that was written."""
    atomic_add(orders, 1)
    call_6(futex, (202, orders, 129, 1 << 30, 0, 0))  # SYS_futex, FUTEX_WAKE_PRIVATE all
