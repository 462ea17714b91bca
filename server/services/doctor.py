"""Examines adapters, and makes new ones of them, on threads of its own.

Those are paced while requests decode, so that nothing that runs waits for them.
"""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from hotshoe.kernels.reference import dequantize_nf4
from hotshoe.registry.errors import RegistryError
from hotshoe.registry.formats.base import BaseWeights
from hotshoe.registry.formats.lowered import LoweredAdapter
from hotshoe.registry.formats.lowering import lower_adapter, tasks_of
from hotshoe.registry.manifest import AdapterRecord, canonical_json
from hotshoe.registry.recipes.comparison import Comparison, compare
from hotshoe.registry.recipes.doctor import Diagnosis, Grade, diagnose, report_of, worst
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.recipes.merged_adapter import MergedAdapter, merged_adapter
from hotshoe.registry.recipes.mitigation import Mitigation, mitigate
from hotshoe.registry.referrer import DIAGNOSIS_TYPE, Referrer
from hotshoe.registry.registry import Registry
from hotshoe.registry.validation import AdapterLimits, Pause
from hotshoe.server.adapters.adapter_key import adapter_key
from hotshoe.server.adapters.adapter_reader import check_finite
from hotshoe.server.adapters.loader_pace import LoaderPace
from hotshoe.server.adapters.lowered_cache import LoweredCache
from hotshoe.server.adapters.one_core import run_when_idle, use_one_core
from hotshoe.server.errors import AdapterRefused, ServerError
from hotshoe.server.logs import log_event
from hotshoe.server.model.quantize import quantize_nf4
from hotshoe.server.model.spectra import Spectra
from hotshoe.server.services.paced_work import PacedWork
from hotshoe.server.services.rpc import call

REPORT_FILE = "doctor.json"
ANNOTATION_PREFIX = "dev.hotshoe.doctor."
_PATIENCE_SECONDS = 0.2  # that a publisher waits for a diagnosis which cannot stop him
_QUIET_SECONDS = 2.0  # without decoding, before spectra are computed that nobody has asked for
_LOOK_SECONDS = 0.25  # between looks at whether requests decode


class Part(NamedTuple):
    """One adapter that others are made of, or that is held against another."""

    files: Mapping[str, Path]
    approximate_rank: int  # to which it is cut, or 0
    task: int | None = None  # of those that it has


class Doctor:
    """Diagnoses for one base. Event loop only.

    One thread screens; another, so that no publisher waits behind it, counts exactly; a third, while nothing decodes,
    computes the spectra that no adapter has asked for yet.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        base: BaseWeights,
        spectra: Spectra,
        limits: AdapterLimits,
        pace: LoaderPace,
        cache: LoweredCache | None = None,
    ) -> None:
        """`pace` knows whether requests decode; beside it the doctor takes a share as large as a load's at most.

        `cache` is the loaders': what was cut for a publisher is not cut again for the first request.
        """
        self._cache = cache
        self._registry = registry
        self._base = base
        self._spectra = spectra
        self._limits = limits
        self._loaders = pace
        self._work = PacedWork(pace)
        self._screens = ThreadPoolExecutor(1, "doctor", initializer=use_one_core)
        self._counts = ThreadPoolExecutor(1, "doctor-exact", initializer=use_one_core)
        self._tasks: set[asyncio.Task[Diagnosis | None]] = set()

    async def diagnose(self, files: Mapping[str, Path], *, exact: bool = False, approximate_rank: int = 0) -> Diagnosis:
        """Examines an adapter's files. Who is cancelled ends the work too.

        Raises:
            RegistryError: they are no adapter of this base.
            Draining: the server is shutting down.
        """
        executor = self._counts if exact else self._screens
        work = partial(self._diagnose, files, exact=exact, approximate_rank=approximate_rank)
        return await self._work.on(executor, work)

    async def approximate(self, files: Mapping[str, Path], *, rank: int) -> LoweredAdapter:
        """Files whose update is of full rank, cut to a rank, and what they keep of it. Raises as `diagnose` does."""
        return await self._work.on(self._counts, partial(self._approximate, files, rank=rank))

    def keep(self, record: AdapterRecord, lowered: LoweredAdapter) -> None:
        """Keeps what `approximate` gave of an adapter that is published now. Blocks on the disk."""
        if self._cache is not None:
            self._cache.add(record.digest, self._base.shape.digest, lowered)

    async def mitigate(self, part: Part, *, keep: float) -> Mitigation:
        """Shrinks the intruders of an adapter to `keep` of their strength. Raises as `diagnose` does."""
        return await self._work.on(self._counts, partial(self._mitigate, part, keep=keep))

    async def merge(
        self, parents: Sequence[Part], weights: Sequence[float], parameters: MergeParameters, *, base_name: str
    ) -> MergedAdapter:
        """Merges several adapters. Raises as `diagnose` does."""
        work = partial(self._merge, parents, weights, parameters, base_name=base_name)
        return await self._work.on(self._counts, work)

    async def compare(self, first: Part, second: Part) -> Comparison:
        """Holds two adapters against each other. Raises as `diagnose` does."""
        return await self._work.on(self._counts, partial(self._compare, first, second))

    async def refuse_bad(
        self, name: str, files: Mapping[str, Path], *, exact: bool = False, approximate_rank: int = 0
    ) -> Diagnosis:
        """Examines files before they are published.

        Raises:
            AdapterRefused: their grade is BAD; and what `diagnose` raises.
        """
        diagnosis = await self.diagnose(files, exact=exact, approximate_rank=approximate_rank)
        if diagnosis.grade is Grade.BAD:
            log_event(logging.WARNING, "refused", name=name, grade=diagnosis.grade, headline=diagnosis.headline)
            raise AdapterRefused(f"the doctor's grade is BAD: {diagnosis.headline}")
        return diagnosis

    async def examine_soon(self, record: AdapterRecord) -> Diagnosis | None:
        """Screens a published adapter that has no report, and attaches one; returns it if that is quick."""
        task = asyncio.create_task(self._examine(record))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task}, timeout=_PATIENCE_SECONDS)
        return task.result() if task.done() else None

    def attach(self, record: AdapterRecord, diagnosis: Diagnosis) -> Referrer:
        """Keeps a diagnosis as the adapter's latest, but what is screened never goes before what was counted: neither
        bytes nor base ever change, so what was counted still holds, whenever it was asked for. Blocks on the disk.
        """
        base = {"name": self._base.shape.name, "digest": self._base.shape.digest}
        return self._registry.attach(
            record.digest,
            canonical_json({**report_of(diagnosis), "base": base}),
            artifact_type=DIAGNOSIS_TYPE,
            file_name=REPORT_FILE,
            annotations={
                f"{ANNOTATION_PREFIX}grade": diagnosis.grade.value,
                f"{ANNOTATION_PREFIX}headline": diagnosis.headline,
            },
            outranked_by=lambda report: not diagnosis.is_exact and self._is_counted(report),
        )

    def _is_counted(self, report: bytes) -> bool:
        """Whether a report that the registry has is of an exact diagnosis on this base."""
        try:
            told = json.loads(report)
            return bool(told["exact"]) and told["base"]["digest"] == self._base.shape.digest
        except (ValueError, KeyError, TypeError):  # somebody else's
            return False

    def warm(self) -> None:
        """Begins with the spectra that are not known yet."""
        threading.Thread(target=self._warm, name="doctor-spectra", daemon=True).start()

    async def close(self) -> None:
        """Ends what runs, at its next linear."""
        self._work.closed.set()
        for task in list(self._tasks):
            task.cancel()
        for executor in (self._screens, self._counts):
            executor.shutdown(wait=False, cancel_futures=True)

    async def _examine(self, record: AdapterRecord) -> Diagnosis | None:
        loop = asyncio.get_running_loop()
        try:
            if await call(self._registry.referrers, record.digest, DIAGNOSIS_TYPE):
                return None
            files = await call(self._registry.adapter_files, record.digest)
            work = partial(self._diagnose, files, approximate_rank=record.approximate_rank, digest=record.digest)
            diagnosis = await loop.run_in_executor(self._screens, work)
            await loop.run_in_executor(None, self.attach, record, diagnosis)
        except (RegistryError, ServerError, OSError) as error:
            log_event(logging.WARNING, "not_examined", name=record.name, digest=record.digest, reason=str(error))
            return None
        level = logging.INFO if diagnosis.grade in (Grade.OK, Grade.UNKNOWN) else logging.WARNING
        grade, headline = diagnosis.grade, diagnosis.headline
        log_event(level, "diagnosis", name=record.name, digest=record.digest, grade=grade, headline=headline)
        return diagnosis

    # The doctor's threads.

    def _diagnose(
        self,
        files: Mapping[str, Path],
        *,
        approximate_rank: int,
        exact: bool = False,
        given_up: threading.Event | None = None,
        digest: str = "",
    ) -> Diagnosis:
        """`digest`: of the adapter, if it is published; without `given_up` nobody waits."""
        pause = self._work.begin(given_up, is_long=exact)
        tasks = tasks_of(files, self._base.shape, self._limits, approximate_rank=approximate_rank, pause=pause)

        def of_task(task: int | None) -> Diagnosis:
            lowered = self._kept(digest, task, pause) or self._lower(Part(files, approximate_rank, task), pause)
            whole = (self._base, _requantized) if exact else (None, None)
            found = diagnose(lowered, self._spectra.of, base=whole[0], requantize=whole[1], pause=pause)
            return replace(found, task=task)

        return worst(map(of_task, tasks))

    def _kept(self, digest: str, task: int | None, pause: Pause) -> LoweredAdapter | None:
        if self._cache is None or not digest:
            return None
        return self._cache.find(adapter_key(digest, task), self._base.shape.digest, pause=pause)

    def _lower(self, part: Part, pause: Pause) -> LoweredAdapter:
        files, rank, task = part
        return lower_adapter(files, self._base, self._limits, approximate_rank=rank, task=task, pause=pause)

    def _approximate(self, files: Mapping[str, Path], *, rank: int, given_up: threading.Event) -> LoweredAdapter:
        lowered = self._lower(Part(files, rank), self._work.begin(given_up, is_long=True))
        check_finite(lowered)
        return lowered

    def _mitigate(self, part: Part, *, keep: float, given_up: threading.Event) -> Mitigation:
        pause = self._work.begin(given_up, is_long=True)
        return mitigate(self._lower(part, pause), self._base, keep=keep, pause=pause)

    def _merge(
        self,
        parents: Sequence[Part],
        weights: Sequence[float],
        parameters: MergeParameters,
        *,
        base_name: str,
        given_up: threading.Event,
    ) -> MergedAdapter:
        pause = self._work.begin(given_up, is_long=True)
        lowered = [self._lower(part, pause) for part in parents]
        return merged_adapter(lowered, weights, parameters, self._base, base_name=base_name, pause=pause)

    def _compare(self, first: Part, second: Part, *, given_up: threading.Event) -> Comparison:
        pause = self._work.begin(given_up, is_long=True)
        return compare(self._lower(first, pause), self._lower(second, pause), self._base, pause=pause)

    def _warm(self) -> None:
        use_one_core()
        run_when_idle()
        start = time.monotonic() + _QUIET_SECONDS
        while not self._work.closed.is_set() and (linear := self._spectra.next_unknown()) is not None:
            if self._loaders.decoding:
                start = time.monotonic() + _QUIET_SECONDS
            if time.monotonic() < start:
                self._work.closed.wait(_LOOK_SECONDS)
            else:
                self._spectra.of(linear)


def _requantized(weight: Tensor) -> Tensor:
    return dequantize_nf4(quantize_nf4(weight))
