"""A bound process ends with whoever started it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hotshoe.clients.bound_process import bound

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
SLEEP = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)"]


def test_the_command_runs_with_its_arguments_and_its_exit_code() -> None:
    command = [sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "a b", "--c"]
    ran = subprocess.run(bound(command, parent=os.getpid()), capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (7, "['a b', '--c']\n")


@LINUX
def test_it_ends_when_its_parent_is_killed() -> None:
    program = (
        "import os, subprocess, sys, time; from hotshoe.clients.bound_process import bound; "
        f"child = subprocess.Popen(bound({SLEEP!r}, parent=os.getpid()), stdout=subprocess.PIPE); "
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-P", "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.kill()
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        if not _runs(child):
            return
        time.sleep(0.05)
    raise AssertionError("it outlived its parent")


def _runs(pid: int) -> bool:
    """Whether a process is there, and not only its exit code that nobody has asked for."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@LINUX
def test_it_does_not_begin_under_another_parent() -> None:
    assert subprocess.run(bound(SLEEP, parent=os.getppid()), capture_output=True).returncode == 1
