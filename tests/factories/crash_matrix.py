"""The store's operations, stopped at every system call that changes the disk: killed there, or told EIO or ENOSPC.

    PYTHONPATH=tests/factories python tests/factories/crash_matrix.py [--sizes small,medium,large] [--only gc]

For each operation strace first counts its system calls; then, for each of them, a new copy of the same store is worked
on by a child that strace kills at that call, or whose call fails. After each, the store is opened again, every third
time without its database: what was acknowledged is there, what was not is whole or absent, the full check finds
nothing, and the operation done again succeeds. The end of a process, not of the machine's power, is what this tries.
"""

import argparse
import contextlib
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import save
from store_adapters import CONFIG, WEIGHTS, lora_files, publish, small_base
from store_children import check_whole

from hotshoe.registry.digest import digest_hex
from hotshoe.registry.errors import AdapterNotFound, RegistryError
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.patience import Patience
from hotshoe.registry.remotes.pull import pull
from hotshoe.registry.remotes.remote import parse_remote
from hotshoe.registry.store import export, lease_log

CALLS = (
    "openat write pwrite64 ftruncate fsync fdatasync link linkat rename renameat renameat2 unlink unlinkat rmdir mkdir "
    "mkdirat chmod fchmod fchmodat utimensat"
).split()
FAULTS = {"kill": "signal=SIGKILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
# What a disk that is full, or a quota, may refuse.
_TAKES_SPACE = {"openat", "write", "pwrite64", "ftruncate", "link", "linkat", "rename", "mkdir"}
# Whoever was told EIO by these before the acknowledgement must not acknowledge: a later sync could falsely succeed.
_MUST_SUCCEED = {"write", "pwrite64", "fsync", "fdatasync", "link", "rename"}
# Rank and hidden size: 2.5 kB; 1 MB; 42 MB, which is synced in between.
SIZES = {"small": (2, 8), "medium": (64, 1024), "large": (160, 16384)}
_IMPATIENT = Patience(backoff_seconds=0)


@dataclass(frozen=True)
class Case:
    """One store and one operation on it.

    `check` gets the store after a fault, and whether the operation was acknowledged; what it finds wrong it asserts.
    """

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], Callable[[], tuple[object, Registry]]]  # opens what is needed, then is ready to go
    check: Callable[[Registry, bool], None]


@dataclass
class Result:
    """How often what came of it."""

    points: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.lost and not self.torn

    def __str__(self) -> str:
        points = ", ".join(f"{count} {fault}" for fault, count in sorted(self.points.items()))
        return (
            f"{sum(self.points.values())} points ({points}); {self.acknowledged} operations acknowledged, "
            f"{len(self.lost)} of them lost; {len(self.torn)} torn states"
        )


# What is done.


def big_files(size: str, seed: int) -> dict[str, bytes]:
    """An adapter of that size, and of a base as wide as that needs."""
    rank, hidden = SIZES[size]
    if size == "small":
        return lora_files(seed, rank=rank)
    normal = np.random.default_rng(seed).standard_normal
    tensors = {}
    for target in ("q_proj", "v_proj"):
        key = f"base_model.model.model.layers.0.self_attn.{target}"
        tensors[f"{key}.lora_A.weight"] = normal((rank, hidden), dtype=np.float32)
        tensors[f"{key}.lora_B.weight"] = normal((hidden, rank), dtype=np.float32)
    config = json.loads(lora_files(seed)[CONFIG]) | {"r": rank, "lora_alpha": rank}
    return {WEIGHTS: save(tensors), CONFIG: json.dumps(config).encode()}


def cases(size: str) -> list[Case]:
    """Publishing and pulling an adapter of that size; for the small one, all that does not depend on it, too."""
    hidden = SIZES[size][1]
    base, files = small_base(hidden=hidden), big_files(size, 2)
    first, second = (_digest_of(big_files(size, seed), hidden) for seed in (1, 2))

    def prepare(root: Path) -> None:
        registry = Registry(root)
        publish(registry, "a", big_files(size, 1), tags=["live", "v1"], base=base)
        registry.close()

    def put(registry: Registry) -> AdapterRecord:
        return publish(registry, "a", files, tags=["live", "v2"], base=base)[0]

    def check(registry: Registry, acknowledged: bool) -> None:
        assert registry.resolve("a:v1").digest == first
        live = registry.resolve("a:live")
        assert live.digest == (second if acknowledged or "v2" in live.tags else first)
        put(registry)
        assert set(registry.resolve(f"a@{second}").tags) == {"live", "v2"}

    def prepare_pull(root: Path) -> None:
        prepare(root)
        source = Registry(root.parent / "source")
        publish(source, "a", files, tags=["live", "v2"], base=base)
        source.attach(second, b"{}", artifact_type="text/x", file_name="x", annotations={})
        source.close()

    def run_pull(root: Path) -> Callable[[], tuple[object, Registry]]:
        registry, remote = Registry(root), parse_remote(f"dir://{root.parent / 'source'}", patience=_IMPATIENT)
        tags = ["live", "v2"]
        return lambda: (pull(registry, remote, "v2", name="a", tags=tags, base=base), registry)

    def check_pull(registry: Registry, acknowledged: bool) -> None:
        assert not acknowledged or len(registry.referrers(second)) == 1
        check(registry, acknowledged)

    either = [
        Case(f"publish {size}", prepare, _opened(put), check),
        Case(f"pull {size}", prepare_pull, run_pull, check_pull),
    ]
    return [*either, *_small_cases(first, second)] if size == "small" else either


def _small_cases(first: str, second: str) -> list[Case]:
    def prepare(root: Path) -> None:
        registry = Registry(root)
        for seed in (5, 6):
            publish(registry, "garbage", lora_files(seed))
        registry.collect_garbage(grace_seconds=0)  # the trash has something, too
        publish(registry, "garbage", lora_files(5))
        registry.attach(
            registry.list(name_contains="garbage")[0][0].digest,
            b"[]",
            artifact_type="text/x",
            file_name="x",
            annotations={},
        )
        publish(registry, "a", lora_files(2), tags=["v2"])
        publish(registry, "a", lora_files(1), tags=["live", "v1"])
        registry.lease_durably(first, holder="before", ttl_seconds=3600)
        (root / ".quarantine" / f"{digest_hex(first)}.damaged").write_bytes(b"other bytes")
        registry.close()

    def prepare_lost(root: Path) -> None:
        prepare(root)
        for name in (".db", "index.json"):
            (root / name).unlink()

    def unharmed(registry: Registry, acknowledged: bool) -> None:
        assert (registry.resolve("a:v1").digest, registry.resolve("a:v2").digest) == (first, second)
        assert [lease.digest for lease in registry.leases("before")] == [first]

    def tagged(registry: Registry, acknowledged: bool) -> None:
        unharmed(registry, acknowledged)
        live = registry.resolve("a:live").digest
        assert live == second or (live == first and not acknowledged)
        assert registry.update_tag("a", "live", second, live).digest == second
        assert registry.roll_back_tag("a", "live")[0].digest == first

    def untagged(registry: Registry, acknowledged: bool) -> None:
        unharmed(registry, acknowledged)
        with contextlib.suppress(AdapterNotFound):
            assert registry.resolve("a:live").digest == first and not acknowledged
            registry.delete_tag("a", "live")
        assert registry.roll_back_tag("a", "live")[0].digest == first

    def collected(registry: Registry, acknowledged: bool) -> None:
        unharmed(registry, acknowledged)
        assert registry.resolve("a:live").digest == first
        garbage = registry.list(name_contains="garbage")[0]
        assert not (acknowledged and garbage)
        assert all(len(registry.adapter_files(record.digest)) == 3 for record in garbage)
        registry.collect_garbage(grace_seconds=0)
        assert registry.list(name_contains="garbage")[0] == [] and registry.stats().blobs == 2 * 3 + 2
        assert not registry.fsck().quarantine

    def viewed(registry: Registry, acknowledged: bool) -> None:
        unharmed(registry, acknowledged)
        view = registry.view(first)
        assert sorted(os.listdir(view)) == ["adapter.card.json", CONFIG, WEIGHTS]
        assert registry.unview(first) and not view.exists()

    def attached(registry: Registry, acknowledged: bool) -> None:
        unharmed(registry, acknowledged)
        assert len(registry.referrers(first)) in ((1,) if acknowledged else (0, 1))
        attach(registry)
        assert len(registry.referrers(first)) == 1

    def leased(registry: Registry, acknowledged: bool) -> None:
        unharmed(registry, acknowledged)
        assert len(registry.leases("after")) in ((2,) if acknowledged else (0, 1, 2))
        assert len(registry.leases("server")) in ((0,) if acknowledged else (0, 1))
        lease(registry)
        assert len(registry.leases("after")) == 2 and not registry.leases("server")

    def lease(registry: Registry) -> None:
        registry.lease([first], holder="server")
        for digest in (first, second):
            registry.lease_durably(digest, holder="after")
        registry.release_leases("server")

    def move(registry: Registry) -> None:
        registry.update_tag("a", "live", second, first)

    def attach(registry: Registry) -> None:
        registry.attach(first, b"{}", artifact_type="text/x", file_name="x", annotations={})

    def view_twice(registry: Registry) -> None:
        registry.view(first)
        registry.unview(first)
        registry.view(first)

    return [
        Case("tag", prepare, _opened(move), tagged),
        Case("tag, exported by a thread", prepare, _exported_later(move), tagged),
        Case("untag", prepare, _opened(lambda registry: registry.delete_tag("a", "live")), untagged),
        Case("gc", prepare, _opened(lambda registry: registry.collect_garbage(grace_seconds=0)), collected),
        Case("attach", prepare, _opened(attach), attached),
        Case("attach, exported by a thread", prepare, _exported_later(attach), attached),
        Case("lease", prepare, _opened(lease), leased),
        Case("lease, the log written anew", prepare, _written_anew(lease), leased),
        Case("view", prepare, _opened(view_twice), viewed),
        Case("open", prepare, _opened_before, unharmed),
        Case("open a copy", prepare, lambda root: lambda: (None, Registry(root)), unharmed),
        Case("rebuild", prepare_lost, lambda root: lambda: (None, Registry(root)), unharmed),
    ]


def _opened(run: Callable[[Registry], object]) -> Callable[[Path], Callable[[], tuple[object, Registry]]]:
    """An operation on a store that was opened before it is watched."""

    def prepare(root: Path) -> Callable[[], tuple[object, Registry]]:
        registry = Registry(root)
        return lambda: (run(registry), registry)

    return prepare


def _opened_before(root: Path) -> Callable[[], tuple[object, Registry]]:
    """Opening a store that has not been copied since it was opened last."""
    Registry(root).close()
    return lambda: (None, Registry(root))


def _exported_later(run: Callable[[Registry], object]) -> Callable[[Path], Callable[[], tuple[object, Registry]]]:
    """The same on a store as large as makes index.json wait."""

    def prepare(root: Path) -> Callable[[], tuple[object, Registry]]:
        export.SMALL_ENTRIES, export.DELAY_SECONDS = 0, 0.01  # of this child
        return _opened(run)(root)

    return prepare


def _written_anew(run: Callable[[Registry], object]) -> Callable[[Path], Callable[[], tuple[object, Registry]]]:
    """The same on a store whose leases.log has become too long."""

    def prepare(root: Path) -> Callable[[], tuple[object, Registry]]:
        lease_log.MAX_BYTES = 0  # of this child
        return _opened(run)(root)

    return prepare


def _digest_of(files: dict[str, bytes], hidden: int) -> str:
    with tempfile.TemporaryDirectory() as directory:
        registry = Registry(Path(directory) / "store")
        record, _ = publish(registry, "a", files, base=small_base(hidden=hidden))
        registry.close()
    return record.digest


# How it is stopped.


def try_case(case: Case, result: Result, directory: Path, *, share: float) -> None:
    """Adds to `result` what comes of stopping an operation at a share of its points, or at all."""
    template = directory / "template"
    case.prepare(template)
    points = _points(case, template, directory)
    chosen = [point for point in points if random.Random(f"{case.name}{point}").random() < share]
    for number, (call, when, fault) in enumerate(chosen or points[:1]):
        root = directory / "store"
        shutil.copytree(template, root)
        acknowledged, trace = _watch(case, root, directory, f"inject={call}:{FAULTS[fault]}:when={when}")
        result.points[fault] += 1
        result.acknowledged += acknowledged
        where = f"{case.name}: {fault} at {call} {when}"
        if acknowledged and fault == "EIO" and any(map(_must_succeed, _before_acknowledging(trace))):
            result.lost.append(f"{where}: acknowledged all the same")
        if number % 3 == 2:
            for lost in root.glob(".db*"):
                lost.unlink()
        try:
            _check(case, root, acknowledged)
        except (AssertionError, RegistryError, OSError) as error:
            wrong = f"{where}: {type(error).__name__} {error}"
            (result.lost if acknowledged else result.torn).append(wrong)
        shutil.rmtree(root)
    shutil.rmtree(template)


def _points(case: Case, template: Path, directory: Path) -> list[tuple[str, int, str]]:
    root = directory / "counted"
    shutil.copytree(template, root)
    acknowledged, trace = _watch(case, root, directory, None)
    assert acknowledged, f"{case.name} fails by itself"
    shutil.rmtree(root)
    return [
        (call, when, fault)
        for call, count in Counter(map(_call, trace)).items()
        if call in CALLS
        for when in range(1, count + 1)
        for fault in FAULTS
        if fault != "ENOSPC" or call in _TAKES_SPACE
    ]


def _watch(case: Case, root: Path, directory: Path, fault: str | None) -> tuple[bool, list[str]]:
    """Runs an operation in a child under strace; whether it was acknowledged, and the trace."""
    (reader, writer), (waiting, go) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        os.close(go)
        _work(case, root, writer, waiting)
    os.close(writer)
    os.close(waiting)
    lines = os.fdopen(reader)
    lines.readline()  # it is ready
    trace = directory / "trace"
    command = ["strace", "-f", "-y", "-o", str(trace), "-e", f"trace={','.join(f'?{call}' for call in CALLS)}"]
    command += ["-e", fault] if fault else []
    strace = subprocess.Popen([*command, "-p", str(child)], stderr=subprocess.PIPE, text=True)
    assert strace.stderr is not None
    attached = strace.stderr.readline()
    os.close(go)
    assert "attached" in attached, attached
    acknowledged = "done" in lines.read()
    lines.close()
    os.waitpid(child, 0)
    strace.communicate()
    return acknowledged, trace.read_text().splitlines()


def _call(line: str) -> str:
    """The system call of a line "PID call(…) = …"."""
    return line.partition(" ")[2].lstrip().partition("(")[0]


def _before_acknowledging(trace: list[str]) -> list[str]:
    """The calls of the thread that acknowledges; one that exports is told of its own, however early it comes."""
    last = next((number for number, line in enumerate(trace) if '"done"' in line), len(trace))
    thread = trace[last].partition(" ")[0] if last < len(trace) else ""
    return [line for line in trace[:last] if line.partition(" ")[0] == thread]


def _must_succeed(line: str) -> bool:
    """Whether a call was told EIO that must not be. SQLite goes on when a directory cannot be synced; so do we, later,
    by fsync.
    """
    is_of_directory = re.search(r"fdatasync\(\d+<[^>]*/store>\)", line)
    return "INJECTED" in line and _call(line) in _MUST_SUCCEED and not is_of_directory


def _work(case: Case, root: Path, writer: int, waiting: int) -> None:
    logging.disable()
    code = 1
    try:
        run = case.run(root)
        os.write(writer, b"ready\n")
        os.read(waiting, 1)  # until it is closed
        with contextlib.suppress(RegistryError):
            _, registry = run()
            os.write(writer, b"done")
            registry.close()
        code = 0
    finally:
        os._exit(code)


def _check(case: Case, root: Path, acknowledged: bool) -> None:
    registry = Registry(root)
    try:
        check_whole(registry, root)
        assert registry.fsck().is_clean
        case.check(registry, acknowledged)
        check_whole(registry, root)
        assert registry.fsck().is_clean
    finally:
        registry.close()


def can_watch() -> str:
    """Why this machine cannot; empty if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    ran = subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True, text=True)
    return ran.stderr.strip() if ran.returncode else ""


def run(sizes: list[str], *, share: float, only: str = "") -> Iterator[tuple[str, Result]]:
    """Tries the cases of some sizes whose names begin so; tells of each when it is done."""
    logging.disable()
    try:
        for case in (case for size in sizes for case in cases(size) if case.name.startswith(only)):
            result = Result()
            with tempfile.TemporaryDirectory() as directory:
                try_case(case, result, Path(directory), share=share)
            yield case.name, result
    finally:
        logging.disable(logging.NOTSET)


def main() -> int:
    parser = argparse.ArgumentParser("crash_matrix", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", default=",".join(SIZES), help="of what is published")
    parser.add_argument("--only", default="", help="cases whose names begin so")
    parser.add_argument("--share", type=float, default=1.0, help="of the points that are tried")
    arguments = parser.parse_args()
    if problem := can_watch():
        sys.exit(f"crash_matrix: {problem}")
    total = Result()
    for name, result in run(arguments.sizes.split(","), share=arguments.share, only=arguments.only):
        print(f"{name}: {result}", flush=True)
        for wrong in (*result.lost, *result.torn):
            print(f"  {wrong}", flush=True)
        total.points += result.points
        total.acknowledged += result.acknowledged
        total.lost += result.lost
        total.torn += result.torn
    print(f"in all: {total}")
    return 0 if total.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
