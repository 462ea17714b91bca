"""A hotshoe server in a process of its own, for as long as its owner wants it."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Self

from hotshoe.clients.bound_process import bound
from hotshoe.clients.errors import HotshoeError

START_SECONDS = 300.0
DRAIN_SECONDS = 20.0
LOG_TAIL_LINES = 15


class ServerDidNotStart(HotshoeError):
    """The server's process ended, or said nothing, before it was ready; the message has the end of its log."""


class LocalServer:
    """Starts `python -m hotshoe.server` and waits until it is ready; leaving the `with` block ends it.

    The server logs to the file `log`, or to our standard error if that is None.

    Attributes:
        grpc: "host:port" of the gRPC port.
        http: "host:port" of /metrics.
        base_model: its name.
    """

    def __init__(self, arguments: Sequence[str], log: Path | None) -> None:
        self._arguments = arguments
        self._log = log
        self.grpc = self.http = self.base_model = ""

    def __enter__(self) -> Self:
        with nullcontext() if self._log is None else self._log.open("wb") as stderr:
            # -P: the working directory must not be importable, its folders could shadow the server's modules.
            command = [sys.executable, "-P", "-m", "hotshoe.server", *self._arguments]
            self._process = subprocess.Popen(
                bound(command, parent=os.getpid()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,  # Ctrl-C is for us; we then end it in order
            )
        try:
            self._read_ready_line()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        return self._process.pid

    def resident_bytes(self) -> int:
        """How much of its memory is in the machine's. Raises OSError where the system has no /proc."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def wait(self) -> int:
        """Waits until the process ends by itself; returns its exit code."""
        return self._process.wait()

    def stop(self) -> None:
        """Lets the server drain, and kills it if it takes too long. Harmless when it has ended."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        if self._process.stdout:
            self._process.stdout.close()

    def _read_ready_line(self) -> None:
        """Reads standard output until the server says that it is ready. Raises ServerDidNotStart."""
        lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._forward_lines, args=(lines,), daemon=True).start()
        while True:
            try:
                line = lines.get(timeout=START_SECONDS)
            except queue.Empty:
                raise ServerDidNotStart(f"no ready line in {START_SECONDS:g} s{self._log_tail()}") from None
            if line is None:
                raise ServerDidNotStart(f"the server ended with {self._process.wait()}{self._log_tail()}")
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") == "ready":
                self.grpc, self.http, self.base_model = event["grpc"], event.get("http") or "", event["base_model"]
                return

    def _forward_lines(self, lines: "queue.Queue[bytes | None]") -> None:
        """Reads to the end, so that the pipe never fills; None marks the end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            lines.put(line)
        lines.put(None)

    def _log_tail(self) -> str:
        if self._log is None:
            return ""
        lines = self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return "".join(f"\n    {line}" for line in lines)
