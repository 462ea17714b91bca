"""Stores that children work on and die over: how they are made, and what must hold of them afterwards."""

import errno
import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import pytest
from store_adapters import lora_files, publish

from hotshoe.registry.errors import StoreUnavailable
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry

# Every call of ours that changes the disk; SQLite's own are behind its own tests.
MUTATIONS = ("fsync", "link", "replace", "rename", "unlink", "truncate", "utime", "chmod", "open")


def fork(run: Callable[[], Iterator[str]]) -> tuple[int, TextIO]:
    """Runs a generator in a child, at once; returns the child and a stream of the lines it yields."""
    reader, writer = os.pipe()
    child = os.fork()
    if child:
        os.close(writer)
        return child, os.fdopen(reader)
    code = 1
    try:
        os.close(reader)
        with os.fdopen(writer, "w") as lines:  # which writes on where a pipe has taken a part
            for line in run():
                print(line, file=lines, flush=True)
        code = 0
    except BaseException as error:
        print(f"child: {error!r}", file=sys.stderr)
    os._exit(code)


def make_store(root: Path) -> AdapterRecord:
    """A new store with one adapter, a:live, of seed 1."""
    registry = Registry(root)
    record, _ = publish(registry, "a", lora_files(1), tags=["live"])
    registry.close()
    return record


def check_whole(registry: Registry, root: Path) -> None:
    """Every name leads to verified bytes, and index.json says what the index says."""
    records, token = registry.list(page_size=1000)
    while token:  # a fast disk takes more while a test has it written to
        page, token = registry.list(page_size=1000, page_token=token)
        records += page
    for record in records:
        assert registry.adapter_files(record.digest)
    index = json.loads((root / "index.json").read_bytes())
    names = {entry["annotations"].get("org.opencontainers.image.ref.name") for entry in index["manifests"]} - {None}
    assert names == {f"{record.name}:{tag}" for record in records for tag in record.tags}
    assert list((root / ".tmp").iterdir()) == []


@contextmanager
def faults(fault: str, stop: int) -> Iterator[Callable[[], bool]]:
    """While it lasts, the `stop`-th mutation of the disk kills this process or fails; later ones work."""
    count = 0

    def faulty(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == stop:
                if fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                number = errno.EIO if stop % 2 else errno.ENOSPC
                raise OSError(number, os.strerror(number))
            return real(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in MUTATIONS:
            patch.setattr(os, name, faulty(getattr(os, name)))
        yield lambda: count >= stop


def overwrite(path: Path, data: bytes) -> None:
    """Writes into a blob's file, as no publisher would; its time is another then, though the clock did not tick."""
    written = path.stat().st_mtime_ns
    path.chmod(0o644)
    path.write_bytes(data)
    os.utime(path, ns=(written, written + 1))


def age(root: Path, seconds: float) -> None:
    """Makes all that happened to a store so far so much older: its blobs' times, and its log's."""
    for blob in (root / "blobs" / "sha256").iterdir():
        status = blob.stat()
        os.utime(blob, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))
    log = root / "tags.log"
    if not log.exists():
        return
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    for entry in entries:
        earlier = datetime.fromisoformat(entry["time"]) - timedelta(seconds=seconds)
        entry["time"] = earlier.isoformat(timespec="milliseconds")
    lines = "".join(json.dumps(entry, sort_keys=True, separators=(",", ":")) + "\n" for entry in entries)
    with log.open("r+") as file:  # in its place: a server that reads it meanwhile finds it whole
        file.write(lines)
        file.truncate()


def stopped_everywhere(template: Path, fault: str, work: Callable[[Registry], object]) -> Iterator[tuple[Path, bool]]:
    """Copies of a store, `work` on each stopped by `fault` one change of the disk later, and whether it was done.

    Ends after the copy on which it was not stopped.
    """

    def until(root: Path, stop: int) -> Iterator[str]:
        registry = Registry(root)
        with faults(fault, stop) as reached:
            try:
                work(registry)
            except StoreUnavailable:
                yield "refused"
            else:
                yield "done"
        if not reached():
            yield "unharmed"

    for point in itertools.count():
        root = template.with_name(str(point))
        shutil.copytree(template, root)
        child, lines = fork(lambda root=root, stop=point + 1: until(root, stop))
        says = lines.read().split()
        lines.close()
        os.waitpid(child, 0)
        yield root, "done" in says  # acknowledged, though the fault may have hit something that does not matter
        if "unharmed" in says:
            return
