"""Our end of the runners' protocol: one runner, in its own process and its rival's environment."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from hotshoe.clients.bound_process import bound
from hotshoe.clients.compare.runners.protocol import Outcome, Setup, Workload
from hotshoe.clients.errors import HotshoeError

RUNNERS_PARENT = Path(__file__).parent
PREPARE_SECONDS = 3600.0  # a compiler may run
START_SECONDS = 600.0
RUN_SECONDS = 600.0
END_SECONDS = 30.0
LOG_TAIL_LINES = 12


class RunnerFailed(HotshoeError):
    """The runner said why, or ended, or said nothing in time; the message has what its log says last."""


class RunnerProcess:
    """Starts `python -m <module>`; leaving the `with` block ends it and what it started.

    What it writes to standard error goes to the file `log`, after what is there.
    """

    def __init__(self, python: Path | None, module: str, log: Path, *, path: Path = RUNNERS_PARENT) -> None:
        self._command = [str(python or sys.executable), "-m", module]
        self._path = path
        self._log = log
        self._buffer = b""

    def __enter__(self) -> Self:
        with self._log.open("ab") as stderr:
            self._process = subprocess.Popen(
                bound(self._command, parent=os.getpid()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=os.environ | {"PYTHONPATH": str(self._path), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def prepare(self, setup: Setup) -> None:
        """Has it build and convert what it needs. This and the following raise RunnerFailed."""
        self._ask({"do": "prepare", **asdict(setup)}, PREPARE_SECONDS)

    def start(self, setup: Setup) -> dict[str, str]:
        """Makes it ready to run; returns what it tells of itself."""
        facts: dict[str, str] = self._ask({"do": "start", **asdict(setup)}, START_SECONDS)["facts"]
        return facts

    def run(self, workload: Workload) -> Outcome:
        """Runs a workload; every request has all its tokens."""
        outcome = Outcome.from_json(self._ask({"do": "run", **workload.to_json()}, RUN_SECONDS))
        lengths = [len(answer.tokens) for answer in outcome.answers]
        if lengths != [workload.new_tokens] * len(workload.requests):
            raise RunnerFailed(f"expected {len(workload.requests)} answers of {workload.new_tokens} tokens: {lengths}")
        return outcome

    def stop(self) -> None:
        """Ends it: by the end of its input, and by force if that takes too long. Harmless when it has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()

    def _ask(self, question: dict[str, Any], seconds: float) -> Any:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        answer = json.loads(self._read_line(question["do"], seconds))
        if "failed" in answer:
            raise RunnerFailed(f"{question['do']}: {answer['failed']} (more in {self._log.name})")
        return answer["done"]

    def _read_line(self, what: str, seconds: float) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                os.killpg(self._process.pid, signal.SIGKILL)
                raise RunnerFailed(f"{what}: no answer in {seconds:g} s{self._log_tail()}")
            data = os.read(self._process.stdout.fileno(), 1 << 20)
            if not data:
                raise self._ended()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _ended(self) -> RunnerFailed:
        return RunnerFailed(f"it ended with {self._process.wait()}{self._log_tail()}")

    def _log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "".join(f"\n    {line}" for line in lines)
