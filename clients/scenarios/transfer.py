"""Adapters of 200 MB, published and pulled: how long that takes, by the least that it could, and how much memory.

The least is sha256 of the bytes, a copy of them on the same disk, and its sync. Round by round it is measured beside
the others, for disks and machines have their moments.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from hotshoe.clients.adapter_files import WEIGHTS
from hotshoe.clients.client import Client
from hotshoe.clients.scenarios.random_adapters import write_random_lora
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.stage import Stage

SERVER_ARGUMENTS = ("--doctor", "off")
RANK = 164  # of every linear of the default base, in float32: 200 MB
ROUNDS = 9
CHUNK_BYTES = 1 << 20
MEGABYTE = 1e6
_SAMPLE_SECONDS = 0.002
_FREED_BYTES = 500 << 20


async def run(stage: Stage) -> ScenarioReport:
    """Rounds of all three, by the blocking client; then a round at a quarter of the size, for memory alone."""
    report = ScenarioReport("transfer", dict(stage.info))
    root = None if stage.settings.directory is None else stage.settings.directory
    with tempfile.TemporaryDirectory(prefix="transfer-", dir=root) as work, Client(stage.server) as client:
        trial = _Trial(stage, client, Path(work))
        rank, rounds = stage.scaled(RANK, at_least=4), stage.scaled(ROUNDS, at_least=3)
        small = await asyncio.to_thread(trial.memory, max(1, rank // 4))
        large = await asyncio.to_thread(trial.memory, rank)
        found = [await asyncio.to_thread(trial.round, number) for number in range(rounds)]
    least, published, pulled = (statistics.median(column) for column in zip(*found, strict=True))
    report.conditions |= {"megabytes": round(trial.size_bytes / MEGABYTE), "rounds": rounds}
    report.figures = {"least_s": least, "publish_s": published, "pull_s": pulled}
    report.figures |= {
        f"{name}_fastest_s": min(column)
        for name, column in zip(("least", "publish", "pull"), zip(*found, strict=True), strict=True)
    }
    for name, grew, grew_small in zip(("publish", "pull"), large, small, strict=True):
        report.figures |= {f"{name}_server_mb": grew[0], f"{name}_client_mb": grew[1]}
        report.figures |= {f"{name}_quarter_server_mb": grew_small[0], f"{name}_quarter_client_mb": grew_small[1]}
    report.bars = [
        Bar("publish by sha256, copy and sync of the same bytes", published / least, Sense.AT_MOST, 1.5),
        Bar("pull by that", pulled / least, Sense.AT_MOST, 1.5),
    ]
    return report


class _Trial:
    """One server, one directory that is published again and again, each time of other bytes."""

    def __init__(self, stage: Stage, client: Client, work: Path) -> None:
        self._stage = stage
        self._client = client
        self._work = work
        self._adapter = work / "adapter"
        self._serial = 0
        self.size_bytes = 0
        self._make(1)  # connects, and imports; the chunks and windows of what is large are what is looked at
        self._publish()
        self._pull()
        self._pids = (stage.server_pid, os.getpid())
        self._began_with = [_own_bytes(pid) for pid in self._pids]

    def memory(self, rank: int) -> tuple[tuple[float, float], tuple[float, float]]:
        """Makes the adapter of that rank; how many MB above what they began with server and client are at the most as
        they publish and pull it.
        """
        self._make(rank)
        with self._growth() as published:
            self._publish()
        with self._growth() as pulled:
            self._pull()
        return published(), pulled()

    def round(self, number: int) -> tuple[float, float, float]:
        """Seconds of the least, of publishing and of pulling."""
        self._renew()
        times = [_seconds(self._work, act) for act in (self._copy, self._publish, self._pull)]
        self._stage.tell(f"round {number}: least {times[0]:.3f} s, publish {times[1]:.3f} s, pull {times[2]:.3f} s")
        return times[0], times[1], times[2]

    def _make(self, rank: int) -> None:
        shutil.rmtree(self._adapter, ignore_errors=True)
        write = partial(write_random_lora, rank=rank, seed=rank, shape=self._stage.settings.shape, dtype="F32")
        with ProcessPoolExecutor(1, get_context("spawn")) as other:  # whose memory is not looked at
            other.submit(write, self._adapter).result()
        self.size_bytes = (self._adapter / WEIGHTS).stat().st_size

    def _renew(self) -> None:
        """Makes the adapter another one, on the disk before anything is measured."""
        self._serial += 1
        with (self._adapter / WEIGHTS).open("r+b") as file:
            file.seek(-8, os.SEEK_END)
            file.write(self._serial.to_bytes(2, "little") * 2 + b"\0\0\0\0")
            file.flush()
            os.fsync(file.fileno())

    def _publish(self) -> None:
        self._client.publish_directory(self._adapter, "transfer", tags=["now"])

    def _pull(self) -> None:
        self._client.pull("transfer:now", self._work / "pulled")
        shutil.rmtree(self._work / "pulled")

    def _copy(self) -> None:
        path, sha256 = self._work / "copy", hashlib.sha256()
        with (self._adapter / WEIGHTS).open("rb", buffering=0) as source, path.open("wb", buffering=0) as target:
            while chunk := source.read(CHUNK_BYTES):
                sha256.update(chunk)
                target.write(chunk)
            os.fsync(target.fileno())
        path.unlink()

    @contextmanager
    def _growth(self) -> Iterator[Callable[[], tuple[float, float]]]:
        """How many MB above what they began with server and client are in the block, without the files they map.

        What a first transfer leaves to the next counts, too: else one that is kept would hide what it took.
        """
        most = server, client = self._began_with
        ended = threading.Event()

        def sample() -> None:
            nonlocal most
            while not ended.wait(_SAMPLE_SECONDS):
                most = [max(known, _own_bytes(pid)) for known, pid in zip(most, self._pids, strict=True)]

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield lambda: ((most[0] - server) / MEGABYTE, (most[1] - client) / MEGABYTE)
        finally:
            ended.set()
            thread.join()


def _seconds(work: Path, act: Callable[[], None]) -> float:
    # What a virtual machine has freed it gives back, and waits for when it wants it again: that is no part of this.
    with (work / "freed").open("wb", buffering=0) as file:
        for _ in range(_FREED_BYTES // CHUNK_BYTES):
            file.write(bytes(CHUNK_BYTES))
    (work / "freed").unlink()
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def _own_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) << 10
    return 0
