"""A virtual environment for each rival, of exactly pinned packages; made once and used again while its pins stay."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hotshoe.clients.errors import HotshoeError

PINS = Path(__file__).parent / "pins"
LOG_TAIL_LINES = 12


class EnvironmentNotMade(HotshoeError):
    """A package could not be installed; the message has the end of the installer's output."""


@dataclass(frozen=True, slots=True)
class Environment:
    """The packages of `pins/<name>.txt`, and of `pins/<name>.no-deps.txt`, if there is one, without what those ask for.

    Attributes:
        home: its folder; programs that a runner builds lie here too.
    """

    name: str
    cache: Path

    @property
    def home(self) -> Path:
        return self.cache / self.name

    @property
    def python(self) -> Path:
        return self.home / "venv" / "bin" / "python"

    @property
    def complete(self) -> bool:
        """Whether it holds these very pins, under this version of Python."""
        try:
            return bool(json.loads(self._record.read_text())["made_of"] == self._made_of())
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return False

    def make(self) -> None:
        """Makes it, unless it is complete; what was there is replaced. Raises EnvironmentNotMade."""
        self.home.mkdir(parents=True, exist_ok=True)
        with _only_one(self.home / "lock"):
            if self.complete:
                return
            self._record.unlink(missing_ok=True)
            shutil.rmtree(self.home / "venv", ignore_errors=True)
            venv.create(self.home / "venv", with_pip=True)
            pins, without_dependencies = _pin_files(self.name)
            self._pip("install", "--requirement", str(pins))
            if without_dependencies.exists():
                self._pip("install", "--no-deps", "--requirement", str(without_dependencies))
            self._record.write_text(json.dumps({"made_of": self._made_of()}))

    @property
    def _record(self) -> Path:
        return self.home / "venv" / "complete.json"

    def _made_of(self) -> str:
        parts = [path.read_text() for path in _pin_files(self.name) if path.exists()]
        return hashlib.sha256("\0".join([sys.version, *parts]).encode()).hexdigest()

    def _pip(self, *arguments: str) -> None:
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(self.python), "-m", "pip", "--disable-pip-version-check", *arguments, "--quiet"]
        done = subprocess.run(command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode:
            tail = "\n    ".join(done.stderr.strip().splitlines()[-LOG_TAIL_LINES:])
            raise EnvironmentNotMade(f"pip {' '.join(arguments)} ended with {done.returncode}\n    {tail}")


def _pin_files(name: str) -> tuple[Path, Path]:
    return PINS / f"{name}.txt", PINS / f"{name}.no-deps.txt"


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Waits until no other process is inside for the same path."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
