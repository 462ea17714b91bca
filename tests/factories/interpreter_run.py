"""Tests in Triton's interpreter, which has to be chosen before Triton is imported: in a process of their own."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from hotshoe.clients.bound_process import bound

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 880


class InterpreterRun:
    """Begun early, it has a core that other tests leave idle; `passed` waits for it, and begins it if need be."""

    def __init__(self, *folders: Path) -> None:
        self._folders = list(map(str, folders))
        self._process: subprocess.Popen[bytes] | None = None
        self._output = tempfile.TemporaryFile()

    def begin(self) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *self._folders]
        self._process = subprocess.Popen(
            bound(command, parent=os.getpid()),
            cwd=ROOT,
            env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def passed(self) -> int:
        """How many tests passed. Raises AssertionError if one failed or was skipped."""
        if self._process is None:
            self.begin()
        assert self._process is not None
        code = self._process.wait(LIMIT_SECONDS)
        self._output.seek(0)
        output = self._output.read().decode(errors="replace")
        assert code == 0, output[-4000:]
        summary = output.splitlines()[-1]
        assert "skipped" not in summary, summary
        return int(re.findall(r"(\d+) passed", summary)[0])
