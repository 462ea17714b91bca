"""Publishers, readers, racers and a collector without any grace, all on one store: what went wrong, and how often not.

python store_races.py ROOT SECONDS [--unlocked]     prints one JSON object
"""

import contextlib
import hashlib
import itertools
import json
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from store_adapters import descriptors, lora_files, small_base, upload
from store_children import check_whole, fork

from hotshoe.registry.errors import AdapterNotFound, BlobNotFound, RegistryError, TagMoved
from hotshoe.registry.locks import StoreLocks
from hotshoe.registry.registry import AdapterRecord, Registry

PUBLISHERS = 16
PROCESSES = 4  # that share the publishers
CONTENTS = 12
RACERS = 64


class Tally:
    """Counts, and the words of what must not happen."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._mutex = threading.Lock()

    def add(self, what: str, count: int = 1) -> None:
        with self._mutex:
            self.counts[what] += count

    def blame(self, what: str) -> None:
        with self._mutex:
            self.wrong.append(what)


def race(root: Path, *, seconds: float, unlocked: bool = False) -> dict[str, Any]:
    """Runs all of them at once for so long; returns counts, and under "wrong" what was wrong.

    Unlocked, the turnstile between publishers and collector lets everybody through.
    """
    if unlocked:
        StoreLocks.publishing = StoreLocks.collecting = _no_lock  # type: ignore[method-assign,assignment]
    Registry(root).close()
    start = time.monotonic() + 1.0
    works: list[Callable[[Registry, Tally, Callable[[], bool]], None]] = [_collect, _read, _move_one_tag, _publish_one]
    works += [lambda *given, first=first: _publish(first, *given) for first in range(PROCESSES)]
    children = [fork(lambda work=work: _work(root, work, start=start, seconds=seconds)) for work in works]
    total = Tally()
    for child, lines in children:
        for line in lines:
            told = json.loads(line)
            total.counts.update(told["counts"])
            total.wrong += told["wrong"]
        lines.close()
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            total.blame("a process failed")
    _check(root, total)
    return {**total.counts, "wrong": total.wrong}


@contextlib.contextmanager
def _no_lock(locks: StoreLocks) -> Iterator[None]:
    yield


def _work(
    root: Path, work: Callable[[Registry, Tally, Callable[[], bool]], None], *, start: float, seconds: float
) -> Iterator[str]:
    registry, tally = Registry(root), Tally()
    time.sleep(max(0.0, start - time.monotonic()))
    end = time.monotonic() + seconds
    work(registry, tally, lambda: time.monotonic() < end)
    registry.close()
    yield json.dumps({"counts": tally.counts, "wrong": tally.wrong})


def _publish(first: int, registry: Registry, tally: Tally, goes_on: Callable[[], bool]) -> None:
    """Publishers that each move a tag of their own: what it leaves is garbage at once, and soon wanted again."""

    def run(publisher: int) -> None:
        choose = random.Random(publisher)
        while goes_on():
            name = f"p{publisher}"
            try:
                record = _publish_surely(registry, name, ["live"], choose.randrange(CONTENTS))
                tally.add("published")
                _check_content(registry, record.digest)
            except (RegistryError, OSError, AssertionError) as error:
                tally.blame(f"published {name}: {type(error).__name__} {error}")

    _together(run, range(first, PUBLISHERS, PROCESSES))


def _publish_surely(registry: Registry, name: str, tags: list[str], seed: int) -> AdapterRecord:
    """As a client does: what was collected before it was published is sent again."""
    files = lora_files(seed)
    for _ in range(1000):
        with contextlib.suppress(BlobNotFound):
            blobs = upload(registry, files)
            return registry.publish(name=name, tags=tags, files=blobs, annotations={}, base=small_base())[0]
    raise AssertionError("collected each time before it could be published")


def _check_content(registry: Registry, digest: str) -> None:
    files = registry.adapter_files(digest)
    for file in registry.adapter_record(digest).files:
        assert f"sha256:{hashlib.sha256(files[file.file_name].read_bytes()).hexdigest()}" == file.digest


def _read(registry: Registry, tally: Tally, goes_on: Callable[[], bool]) -> None:
    """Readers that lease what a tag names, and then find all of it."""

    def run(reader: int) -> None:
        choose, holder = random.Random(100 + reader), f"reader-{reader}"
        while goes_on():
            try:
                digest = registry.resolve(f"p{choose.randrange(PUBLISHERS)}:live").digest
                registry.lease([digest], holder=holder, ttl_seconds=60)
            except AdapterNotFound:  # not yet published; or moved on, and collected before it was leased
                continue
            try:
                for _ in range(3):
                    _check_content(registry, digest)
                tally.add("read")
            except (RegistryError, OSError, AssertionError) as error:
                tally.blame(f"leased {digest}: {type(error).__name__} {error}")
            registry.release_leases(holder)

    _together(run, range(3))


def _collect(registry: Registry, tally: Tally, goes_on: Callable[[], bool]) -> None:
    while goes_on():
        try:
            tally.add("collected", registry.collect_garbage(grace_seconds=0).blobs)
            tally.add("collections")
        except RegistryError as error:
            tally.blame(f"collecting: {type(error).__name__} {error}")


def _move_one_tag(registry: Registry, tally: Tally, goes_on: Callable[[], bool]) -> None:
    """Rounds of racers for one tag: one wins each."""
    digests = [_publish_surely(registry, "race", [f"t{seed}"], 100 + seed).digest for seed in range(4)]
    current = registry.update_tag("race", "live", digests[0], "").digest
    for turn in itertools.count():
        if turn and not goes_on():
            return

        def move(racer: int, expected: str = current) -> bool:
            try:
                registry.update_tag("race", "live", [d for d in digests if d != expected][racer % 3], expected)
                return True
            except TagMoved:
                return False

        winners = sum(_together(move, range(RACERS)))
        tally.add("races")
        current = registry.resolve("race:live").digest
        if winners != 1:
            tally.blame(f"{winners} winners of one tag")


def _publish_one(registry: Registry, tally: Tally, goes_on: Callable[[], bool]) -> None:
    """Rounds of publishers of one digest: one creates it each."""
    files = lora_files(200)
    for turn in itertools.count():
        if turn and not goes_on():
            return

        def publish(publisher: int) -> bool:
            while True:
                with contextlib.suppress(BlobNotFound):
                    upload(registry, files)
                    return registry.publish(
                        name="same",
                        tags=[f"c{publisher}"],
                        files=descriptors(files),
                        annotations={},
                        base=small_base(),
                    )[1]

        try:
            created = sum(_together(publish, range(RACERS)))
            tally.add("rounds")
            if created != 1:
                tally.blame(f"one digest was created {created} times")
            _check_content(registry, registry.resolve("same:c0").digest)
            for publisher in range(RACERS):
                registry.delete_tag("same", f"c{publisher}")
            registry.collect_garbage(grace_seconds=0)
        except (RegistryError, OSError, AssertionError) as error:
            tally.blame(f"one digest: {type(error).__name__} {error}")


def _together(run: Callable[[int], Any], numbers: range) -> list[Any]:
    with ThreadPoolExecutor(len(numbers)) as pool:
        return list(pool.map(run, numbers))


def _check(root: Path, tally: Tally) -> None:
    """The store after all that: every name leads to verified bytes."""
    registry = Registry(root)
    try:
        report = registry.fsck()
        tally.wrong += [f"missing {digest}" for digest in report.missing]
        tally.wrong += [f"corrupt {digest}" for digest in report.corrupt]
        check_whole(registry, root)
        for publisher in range(PUBLISHERS):
            _check_content(registry, registry.resolve(f"p{publisher}:live").digest)
    except (RegistryError, OSError, AssertionError) as error:
        tally.blame(f"afterwards: {type(error).__name__} {error}")
    registry.close()


if __name__ == "__main__":
    print(json.dumps(race(Path(sys.argv[1]), seconds=float(sys.argv[2]), unlocked="--unlocked" in sys.argv)))
