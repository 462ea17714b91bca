"""Requests for adapters that are not on the device, small ones and one of 200 MB: what their first token waits for.

Each is asked for on the device, on the host, in a file that the system has in memory, and in one that it has to fetch
from the disk; what the last three take more than the first right before is what is told. Beside it, a plain read of the
same file.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from hotshoe.clients.adapter_files import WEIGHTS
from hotshoe.clients.bench import percentile
from hotshoe.clients.scenarios.asker import count_errors
from hotshoe.clients.scenarios.random_adapters import DecoderShape
from hotshoe.clients.scenarios.report import Bar, ScenarioReport, Sense
from hotshoe.clients.scenarios.stage import Stage
from hotshoe.clients.swaps import unload_wholly

SERVER_ARGUMENTS = ("--doctor", "off")
# Linears of an 8B's size, and as many layers as it takes for 200 MB at the largest rank.
SHAPE = DecoderShape(layers=5, hidden=4096, intermediate=14_336, kv=1024)
RANKS = (8, 64, 256)
TRIES = 20
PROMPT_TOKENS = 8  # few: what a prompt itself takes goes up and down
HOST_MS, DISK_MS = 5.0, 50.0
PLACES = ("host", "disk", "cold")


async def run(stage: Stage) -> ScenarioReport:
    """One adapter of each rank, in all places by turns."""
    report = ScenarioReport("first-token", {**stage.info, "tries": stage.scaled(TRIES, at_least=3)})
    for rank in RANKS:
        [name] = await stage.publish(1, rank=rank)
        await _measure(stage, report, name, f"r{rank}")
    return report


async def _measure(stage: Stage, report: ScenarioReport, name: str, label: str) -> None:
    trial = await _Trial.of(stage, name)
    for number in range(stage.scaled(TRIES, at_least=3)):
        stage.tell(f"{label}, {trial.size_bytes / 1e6:.0f} MB: {number + 1} of {stage.scaled(TRIES, at_least=3)}")
        await trial.round()
    report.errors |= trial.errors
    report.conditions[f"{label}_megabytes"] = round(trial.size_bytes / 1e6, 1)
    report.figures[f"{label}_device"] = median(trial.on_device)
    for place in PLACES:
        report.figures[f"{label}_{place}_added"] = added = median(trial.added[place])
        report.figures[f"{label}_{place}_added_p99"] = percentile(trial.added[place], 0.99) or 0.0
        limit = HOST_MS
        if place != "host":
            report.figures[f"{label}_{place}_read"] = read = median(trial.reads[place])
            limit = DISK_MS + 1e3 * read
        report.bars.append(
            Bar(f"added time to first token, {label}, {_WHERE[place]}", 1e3 * added, Sense.AT_MOST, limit, "ms")
        )


_WHERE = {"host": "on host", "disk": "on disk, cached; 50 ms and a read", "cold": "on disk; 50 ms and a read"}


class _Trial:
    """One adapter, asked for again and again.

    Attributes:
        on_device: seconds until the first token with the adapter there.
        added: by place, seconds more than that.
        reads: by place on disk, seconds that a plain read of the file takes.
        errors: failed requests by class.
    """

    def __init__(self, stage: Stage, name: str, file: Path) -> None:
        self._stage = stage
        self._name = name
        self._file = file
        self.size_bytes = file.stat().st_size
        self.on_device: list[float] = []
        self.added: dict[str, list[float]] = {place: [] for place in PLACES}
        self.reads: dict[str, list[float]] = {"disk": [], "cold": []}
        self.errors: dict[str, int] = {}

    @classmethod
    async def of(cls, stage: Stage, name: str) -> "_Trial":
        """Asks once for the adapter, so that everything is ready."""
        adapter = await stage.client.get_adapter(name)
        digest = next(blob.digest for blob in adapter.blobs if blob.file_name == WEIGHTS)
        trial = cls(stage, name, stage.registry / "blobs" / "sha256" / digest.removeprefix("sha256:"))
        await trial._first_token()
        return trial

    async def round(self) -> None:
        """One first token from each place, each with one on the device right before; and the reads."""
        bring: dict[str, Callable[[], Awaitable[object]]] = {
            "host": self._to_host,
            "disk": self._off,
            "cold": self._out,
        }
        for place in PLACES:
            await self._stage.client.load(self._name)
            there = await self._first_token()
            await bring[place]()
            self.on_device.append(there)
            self.added[place].append(await self._first_token() - there)
        for place in self.reads:
            if place == "cold":
                await asyncio.to_thread(self._forget)
            self.reads[place].append(await asyncio.to_thread(self._read))

    async def _first_token(self) -> float:
        asker = self._stage.asker
        ask = asker.make(asker.prompt(PROMPT_TOKENS), new_tokens=1, adapter=self._name)
        answer = await asker.send(ask)
        for what, count in count_errors([answer]).items():
            self.errors[what] = self.errors.get(what, 0) + count
        return answer.parsed().first_token_seconds or 0.0

    async def _to_host(self) -> None:
        await self._off()
        await self._stage.client.load(self._name, tier="host")

    async def _off(self) -> None:
        await unload_wholly(self._stage.client, self._name)

    async def _out(self) -> None:
        await self._off()
        await asyncio.to_thread(self._forget)

    def _forget(self) -> None:
        """Has the system let go of what it has of the file in memory, where it can be told so."""
        with contextlib.suppress(AttributeError), self._file.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def _read(self) -> float:
        started = time.perf_counter()
        self._file.read_bytes()
        return time.perf_counter() - started
