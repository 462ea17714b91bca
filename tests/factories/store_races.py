"""Publishers, readers, racers and a collector without any grace, each a process, all on one store: what went wrong.

    PYTHONPATH=tests/factories nice python tests/factories/store_races.py [--share] [--seconds 200] [--unlocked]

All at once: publishers that each move a tag of their own; readers of what those tags name; publishers of one digest,
and racers for one tag, in rounds that all of them begin together; and a collector that never rests. Prints one JSON
object: counts, and under "wrong" what must not be. Unlocked, the turnstile between publishers and collector lets
everybody through, and the race is lost.
"""

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from race_rounds import Rounds, Starter, Tally
from store_adapters import descriptors, lora_files, small_base, upload
from store_children import check_whole, fork

from hotshoe.registry.digest import digest_hex
from hotshoe.registry.errors import AdapterNotFound, BlobNotFound, RegistryError, TagMoved
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry
from hotshoe.registry.store.locks import StoreLocks

CONTENTS = 12  # that the publishers publish again and again
WRONG = (RegistryError, OSError, AssertionError)


@dataclass(frozen=True)
class Size:
    """How many processes of each sort; beside them one collects."""

    publishers: int
    readers: int
    one_digest: int
    one_tag: int


COMPLETE = Size(publishers=16, readers=8, one_digest=64, one_tag=64)
SHARE = Size(publishers=6, readers=2, one_digest=8, one_tag=8)

Work = Callable[[Registry, Tally], None]


def race(root: Path, size: Size, *, seconds: float, unlocked: bool = False) -> dict[str, Any]:
    """Runs all of them at once for so long; returns counts, and under "wrong" what was wrong."""
    if unlocked:
        StoreLocks.publishing = StoreLocks.collecting = _no_lock  # type: ignore[method-assign,assignment]
    targets = _prepare(root, size)
    starter = Starter(1 + size.publishers + size.readers + size.one_digest + size.one_tag, seconds)
    total = Tally()
    children = [fork(lambda work=work: _run(root, work, starter)) for work in _works(root, size, targets, starter)]
    for child, lines in children:
        for line in lines:
            total.merge(json.loads(line))
        lines.close()
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            total.blame("a process failed")
    _check(root, size, total)
    times = total.lists.get("one_digest_ms", [0.0])
    percentile = round(sorted(times)[int(0.99 * (len(times) - 1))])
    figures = {"one_digest_ms_median": round(statistics.median(times)), "one_digest_ms_p99": percentile}
    return {**total.counts, **figures, "wrong": total.wrong}


def _works(root: Path, size: Size, targets: list[str], starter: Starter) -> Iterator[Work]:
    yield lambda registry, tally: _collect(registry, tally, starter)
    for reader in range(size.readers):
        yield lambda registry, tally, reader=reader: _read(reader, size, registry, tally, starter)
    for publisher in range(size.publishers):
        yield lambda registry, tally, publisher=publisher: _publish(publisher, registry, tally, starter)
    publishing, moving = Rounds(size.one_digest, starter), Rounds(size.one_tag, starter)
    for number in range(size.one_digest):
        yield lambda registry, tally, number=number: _publish_one(number, root, registry, tally, publishing)
    for number in range(size.one_tag):
        yield lambda registry, tally, number=number: _move_one(number, targets, registry, tally, moving)


def _run(root: Path, work: Work, starter: Starter) -> Iterator[str]:
    registry, tally = Registry(root), Tally()
    starter.wait()
    work(registry, tally)
    registry.close()
    yield tally.as_json()


def _prepare(root: Path, size: Size) -> list[str]:
    """A store with what the racers for a tag point it at: each its own, and one to spare."""
    registry = Registry(root)
    digests = [
        _publish_surely(registry, "race", [f"t{number}"], 100 + number).digest for number in range(size.one_tag + 1)
    ]
    registry.update_tag("race", "live", digests[-1], "")
    registry.close()
    return digests


@contextlib.contextmanager
def _no_lock(locks: StoreLocks) -> Iterator[None]:
    yield


def _publish(publisher: int, registry: Registry, tally: Tally, starter: Starter) -> None:
    """Moves a tag of its own: what it leaves is garbage at once, and soon wanted again."""
    choose = random.Random(publisher)
    name = f"p{publisher}"
    for _ in starter.turns():
        try:
            record = _publish_surely(registry, name, ["live"], choose.randrange(CONTENTS))
            tally.add("published")
            _check_content(registry, record.digest)
        except WRONG as error:
            tally.blame(f"published {name}: {type(error).__name__} {error}")


def _publish_surely(registry: Registry, name: str, tags: list[str], seed: int) -> AdapterRecord:
    return _publish_files(registry, name, tags, lora_files(seed))[0]


def _publish_files(
    registry: Registry, name: str, tags: list[str], files: dict[str, bytes]
) -> tuple[AdapterRecord, bool]:
    """As a client does: what was collected before it was published is sent again."""
    for _ in range(1000):
        with contextlib.suppress(BlobNotFound):
            blobs = upload(registry, files)
            return registry.publish(name=name, tags=tags, files=blobs, annotations={}, base=small_base())
    raise AssertionError("collected each time before it could be published")


def _check_content(registry: Registry, digest: str) -> None:
    files = registry.adapter_files(digest)
    for file in registry.adapter_record(digest).files:
        assert f"sha256:{hashlib.sha256(files[file.file_name].read_bytes()).hexdigest()}" == file.digest


def _read(reader: int, size: Size, registry: Registry, tally: Tally, starter: Starter) -> None:
    """Leases what a tag names, and then finds all of it; and at times leases it for good."""
    choose, holder = random.Random(100 + reader), f"reader-{reader}"
    for _ in starter.turns():
        try:
            digest = registry.resolve(f"p{choose.randrange(size.publishers)}:live").digest
            registry.lease([digest], holder=holder, ttl_seconds=3600)
        except AdapterNotFound:  # not yet published; or moved on, and collected before it was leased
            continue
        try:
            for _ in range(3):
                _check_content(registry, digest)
            tally.add("read")
            if choose.random() < 0.1:
                registry.lease_durably(digest, holder="kept")
                tally.note("kept", digest)
        except WRONG as error:
            tally.blame(f"leased {digest}: {type(error).__name__} {error}")
        registry.release_leases(holder)


def _collect(registry: Registry, tally: Tally, starter: Starter) -> None:
    for _ in starter.turns():
        try:
            tally.add("collected", registry.collect_garbage(grace_seconds=0).blobs)
            tally.add("collections")
        except RegistryError as error:
            tally.blame(f"collecting: {type(error).__name__} {error}")


def _publish_one(number: int, root: Path, registry: Registry, tally: Tally, rounds: Rounds) -> None:
    """One of those that publish new bytes together, each under a tag of its own: one creates them."""
    for turn in itertools.count():
        if not rounds.begin():
            return
        files, tag = lora_files(10_000 + turn), f"c{number}"
        try:
            start = time.perf_counter()
            record, created = _publish_files(registry, "same", [tag], files)
            tally.note("one_digest_ms", 1e3 * (time.perf_counter() - start))
            tally.note("created", [turn, created])
            rounds.meet()
            _check_content(registry, record.digest)
            if number == 0:  # all have published, and what they sent beside the blob's own file is gone
                tally.add("rounds_of_one_digest")
                for blob in descriptors(files):
                    left = list(root.glob(f".uploads/{digest_hex(blob.digest)}.*"))
                    assert not left, f"{len(left)} other copies of one blob"
            rounds.meet()
            registry.delete_tag("same", tag)
        except WRONG as error:
            tally.blame(f"one digest: {type(error).__name__} {error}")
            rounds.give_up()


def _move_one(number: int, targets: list[str], registry: Registry, tally: Tally, rounds: Rounds) -> None:
    """One of those that compare and set one tag together, each to a digest of its own: one wins, all see whose."""
    for turn in itertools.count():
        if not rounds.begin():
            return
        try:
            expected = registry.resolve("race:live").digest
            target = targets[number] if targets[number] != expected else targets[-1]
            rounds.meet()
            try:
                registry.update_tag("race", "live", target, expected)
                tally.note("won", [turn, expected, target])
            except TagMoved as moved:
                tally.note("lost", [turn, moved.actual])
        except WRONG as error:
            tally.blame(f"one tag: {type(error).__name__} {error}")
            rounds.give_up()


def _check(root: Path, size: Size, tally: Tally) -> None:
    """The store after all that, without its index: every name leads to verified bytes, what was leased is there, and
    the log tells what the racers do.
    """
    for path in root.glob(".db*"):
        path.unlink()
    registry = Registry(root)
    try:
        kept = {lease.digest for lease in registry.leases("kept")}
        tally.wrong += [f"lost the lease of {digest}" for digest in {*tally.lists.get("kept", [])} - kept]
        for digest in kept:
            _check_content(registry, digest)
        _check_creators(tally)
        _check_winners(registry, size, tally)
        report = registry.fsck()
        tally.wrong += [f"missing {digest}" for digest in report.missing]
        tally.wrong += [f"corrupt {digest}" for digest in report.corrupt]
        check_whole(registry, root)
        for publisher in range(size.publishers):
            _check_content(registry, registry.resolve(f"p{publisher}:live").digest)
    except WRONG as error:
        tally.blame(f"afterwards: {type(error).__name__} {error}")
    registry.close()


def _check_creators(tally: Tally) -> None:
    creators: dict[int, int] = {}
    for turn, created in tally.lists.get("created", ()):
        creators[turn] = creators.get(turn, 0) + created
    for turn, number in creators.items():
        if number != 1:
            tally.blame(f"round {turn}: one digest was created {number} times")


def _check_winners(registry: Registry, size: Size, tally: Tally) -> None:
    won: list[Any] = sorted(tally.lists.get("won", ()))
    tally.counts["rounds_of_one_tag"] = len(won)
    turns = [turn for turn, _, _ in won]
    if turns != list(range(len(won))):
        tally.blame(f"rounds of one tag without just one winner: {turns}")
    seen: dict[int, list[str]] = {}
    for turn, actual in tally.lists.get("lost", ()):
        seen.setdefault(turn, []).append(actual)
    for turn, _, target in won:
        if seen.get(turn, []) != [target] * (size.one_tag - 1):
            tally.blame(f"round {turn} of one tag: not all who lost saw who won")
    moves = [logged.move for logged in reversed(registry.tag_history("race", "live", limit=10**9))]
    if [(move.old, move.new) for move in moves[1:]] != [(expected, target) for _, expected, target in won]:
        tally.blame("tags.log tells other moves of one tag than its racers")


def main() -> int:
    parser = argparse.ArgumentParser("store_races", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--root", type=Path, help="a new store; default: one that is removed")
    parser.add_argument("--seconds", type=float, default=200.0)
    parser.add_argument("--share", action="store_true", help="far fewer processes")
    parser.add_argument("--unlocked", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        root = arguments.root or Path(directory) / "store"
        size = SHARE if arguments.share else COMPLETE
        told = race(root, size, seconds=arguments.seconds, unlocked=arguments.unlocked)
    print(json.dumps(told))
    return 1 if told["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
