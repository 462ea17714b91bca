"""The power fails: the store's system calls replayed on a disk that keeps only what was synced, and of the rest some.

    PYTHONPATH=tests/factories python tests/factories/power_loss.py [--tries 20] [--seed 0]

strace writes down what a child does to a store. After each call a disk is made as a failure of the power could leave
it: directories have a beginning of their changes, all that were synced at least, in order, as a journal keeps them;
files have what was synced, and of later writes any, whole or torn at a sector. The store is opened on that disk:
what was acknowledged must be there, and nothing may be torn.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

from store_adapters import lora_files, publish

from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.pull import pull
from hotshoe.registry.remotes.remote import parse_remote
from hotshoe.registry.store.index import Index

SECTOR = 512
_CALLS = (
    "openat close read write pwrite64 lseek ftruncate fsync fdatasync "
    "link linkat rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir"
).split()


# What is done: each step, and what the store says of itself after it.


def steps(registry: Registry, root: Path) -> list[Callable[[], object]]:
    """Operations in their order; each is acknowledged when it returns."""
    remote = parse_remote(f"dir://{_source_of(root)}")
    first, second = (publish(registry, "b", lora_files(seed), validate_only=True)[0].digest for seed in (1, 2))
    return [
        lambda: publish(registry, "a", lora_files(2), tags=["live", "v2"]),
        lambda: registry.attach(second, b"{}", artifact_type="text/x", file_name="x", annotations={}),
        lambda: registry.update_tag("a", "live", first, second),
        lambda: registry.lease_durably(second, holder="trainer"),
        lambda: registry.delete_tag("a", "v2"),
        lambda: registry.collect_garbage(grace_seconds=0),
        lambda: publish(registry, "c", lora_files(3), tags=["v1"]),
        lambda: pull(registry, remote, "v1", name="d", tags=["v1"]),
    ]


def _source_of(root: Path) -> Path:
    """Where the store lies that is pulled from; its power does not fail."""
    return root.parent / f"source-of-{root.name}"


def prepare(root: Path) -> None:
    """A store with one adapter, and blobs of the second on their way to be published."""
    registry = Registry(root)
    publish(registry, "a", lora_files(1), tags=["live", "v1"])
    publish(registry, "b", lora_files(2), validate_only=True)
    registry.close()
    source = Registry(_source_of(root))
    publish(source, "d", lora_files(4), tags=["v1"])
    source.close()


def state(registry: Registry) -> list[object]:
    """All that names mean, with every byte read."""
    records = registry.list(page_size=1000)[0]
    for record in records:
        registry.adapter_files(record.digest)
    leases = [[lease.holder, lease.digest, [], 0] for lease in registry.leases()]
    return leases + sorted(
        [record.name, record.digest, list(record.tags), len(registry.referrers(record.digest))] for record in records
    )


def child(root: Path) -> None:
    """Does it all, and says after each step that it is done."""
    registry = Registry(root)
    for number, step in enumerate(steps(registry, root)):
        step()
        os.write(1, f"done {number + 1}\n".encode())
    os.write(1, b"closing\n")
    registry.close()


def expected_states(root: Path) -> list[list[object]]:
    """After no step, after one, and so on."""
    prepare(root)
    registry = Registry(root)
    states = [state(registry)]
    for step in steps(registry, root):
        step()
        states.append(state(registry))
    registry.close()
    return states


# The disk.


@dataclass(eq=False)
class Inode:
    """A file: bytes that are safe, and what was written since: (offset, bytes), or (size, None) for a truncation."""

    safe: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def sync(self) -> None:
        for change in self.pending:
            _apply(self.safe, *change)
        self.pending.clear()

    def now(self) -> bytearray:
        content = bytearray(self.safe)
        for change in self.pending:
            _apply(content, *change)
        return content

    def after_failure(self, rng: random.Random) -> bytes:
        """What was synced, and of what was not: all, nothing, or any part of it."""
        content, keep = bytearray(self.safe), rng.random()
        for offset, data in self.pending:
            if keep < 0.25 or (keep >= 0.5 and rng.random() < 0.5):
                if data is not None and keep >= 0.75:
                    data = data[: rng.randrange(len(data) // SECTOR + 1) * SECTOR]
                _apply(content, offset, data)
        return bytes(content)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        content.extend(bytes(offset - len(content)))
        return
    content.extend(bytes(max(0, offset - len(content))))
    content[offset : offset + len(data)] = data


Entries = dict[str, Inode | None]  # by path; None: a directory


class Disk:
    """Files and directories as a sequence of system calls leaves them, and as a failure may.

    Args:
        ignore_syncs: a disk, or a store, that forgets to sync: to see that this is noticed.
    """

    def __init__(self, root: Path, *, ignore_syncs: bool = False) -> None:
        self._entries: Entries = {str(root): None}
        for path in sorted(root.rglob("*")):
            self._entries[str(path)] = None if path.is_dir() else Inode(bytearray(path.read_bytes()))
        self._safe: Entries = dict(self._entries)
        self._journal: list[tuple[str, str, Inode | None]] = []  # what, path, inode
        self._open: dict[int, tuple[str, Inode | None, int, bool]] = {}  # path, inode, offset, appends
        self._ignore_syncs = ignore_syncs
        self._root = str(root)

    def call(self, name: str, arguments: Sequence[object], result: int) -> bool:
        """Does what a call did; says whether a failure after it may leave another disk than one before it."""
        before = self._extent()
        if result >= 0:
            getattr(self, f"_{name}")(arguments, result)
        return self._extent() != before

    def _extent(self) -> tuple[int, ...]:
        inodes = {id(inode): inode for inode in self._entries.values() if inode is not None}
        return len(self._journal), len(inodes), sum(len(inode.pending) for inode in inodes.values())

    def after_failure(self, target: Path, rng: random.Random) -> None:
        """Writes a disk as the failure of the power could leave this one."""
        entries = dict(self._safe)
        for what, path, inode in self._journal[: rng.randint(0, len(self._journal))]:
            _change(entries, what, path, inode)
        made: dict[int, Path] = {}
        for path, found in sorted(entries.items()):
            place = target / path[len(self._root) + 1 :] if path != self._root else target
            if path.endswith((".db-shm",)):
                continue
            place.parent.mkdir(parents=True, exist_ok=True)
            if found is None:
                place.mkdir(exist_ok=True)
            elif id(found) in made:
                os.link(made[id(found)], place)
            else:
                place.write_bytes(found.after_failure(rng))
                made[id(found)] = place

    def _record(self, what: str, path: str, inode: Inode | None = None) -> None:
        if path.startswith(self._root):
            _change(self._entries, what, path, inode)
            self._journal.append((what, path, inode))

    def _openat(self, arguments: Sequence[object], fd: int) -> None:
        path, flags = str(arguments[1]), str(arguments[2])
        if not path.startswith(self._root):
            return
        if "O_CREAT" in flags and path not in self._entries:
            self._record("set", path, Inode())
        inode = self._entries.get(path)
        if "O_TRUNC" in flags and inode is not None:
            inode.pending.append((0, None))
        self._open[fd] = (path, inode, 0, "O_APPEND" in flags)

    def _close(self, arguments: Sequence[object], _: int) -> None:
        self._open.pop(_number(arguments[0]), None)

    def _move(self, fd: int, offset: int) -> None:
        if fd in self._open:
            path, inode, _, appends = self._open[fd]
            self._open[fd] = (path, inode, offset, appends)

    def _read(self, arguments: Sequence[object], count: int) -> None:
        fd = _number(arguments[0])
        if fd in self._open:
            self._move(fd, self._open[fd][2] + count)

    def _lseek(self, arguments: Sequence[object], offset: int) -> None:
        self._move(_number(arguments[0]), offset)

    def _write(self, arguments: Sequence[object], count: int) -> None:
        fd, data = _number(arguments[0]), arguments[1]
        assert isinstance(data, bytes)
        if fd in self._open:
            _, inode, offset, appends = self._open[fd]
            assert inode is not None
            offset = len(inode.now()) if appends else offset
            inode.pending.append((offset, data[:count]))
            self._move(fd, offset + count)

    def _pwrite64(self, arguments: Sequence[object], count: int) -> None:
        fd, data = _number(arguments[0]), arguments[1]
        assert isinstance(data, bytes)
        if fd in self._open and (inode := self._open[fd][1]) is not None:
            inode.pending.append((int(str(arguments[3])), data[:count]))

    def _ftruncate(self, arguments: Sequence[object], _: int) -> None:
        fd = _number(arguments[0])
        if fd in self._open and (inode := self._open[fd][1]) is not None:
            inode.pending.append((int(str(arguments[1])), None))

    def _fsync(self, arguments: Sequence[object], _: int) -> None:
        found = self._open.get(_number(arguments[0]))
        if found is None or self._ignore_syncs:
            return
        path, inode, _, _ = found
        if inode is not None:
            inode.sync()
            return
        touching = [i for i, (_, changed, _) in enumerate(self._journal) if os.path.dirname(changed) == path]
        done = touching[-1] + 1 if touching else 0
        for change in self._journal[:done]:
            _change(self._safe, *change)
        del self._journal[:done]

    _fdatasync = _fsync

    def _link(self, arguments: Sequence[object], _: int) -> None:
        self._linkat((None, *arguments[:1], None, *arguments[1:]), _)

    def _linkat(self, arguments: Sequence[object], _: int) -> None:
        if (old := str(arguments[1])) in self._entries:
            self._record("set", str(arguments[3]), self._entries[old])

    def _rename(self, arguments: Sequence[object], _: int) -> None:
        old, new = str(arguments[0]), str(arguments[1])
        if old not in self._entries:  # of another store
            return
        inode = self._entries[old]
        # One change of the journal: both, or neither.
        _change(self._entries, "rename", f"{old}\0{new}", inode)
        self._journal.append(("rename", f"{old}\0{new}", inode))

    def _renameat(self, arguments: Sequence[object], result: int) -> None:
        self._rename((arguments[1], arguments[3]), result)

    _renameat2 = _renameat

    def _unlink(self, arguments: Sequence[object], _: int) -> None:
        self._record("remove", str(arguments[0]))

    def _unlinkat(self, arguments: Sequence[object], _: int) -> None:
        self._record("remove", str(arguments[1]))

    _rmdir = _unlink

    def _mkdir(self, arguments: Sequence[object], _: int) -> None:
        self._record("set", str(arguments[0]), None)

    def _mkdirat(self, arguments: Sequence[object], _: int) -> None:
        self._record("set", str(arguments[1]), None)


def _change(entries: Entries, what: str, path: str, inode: Inode | None) -> None:
    if what == "rename":
        old, new = path.split("\0")
        entries.pop(old, None)
        entries[new] = inode
    elif what == "remove":
        entries.pop(path, None)
    else:
        entries[path] = inode


# The trace.


def _number(argument: object) -> int:
    return int(re.match(r"-?\d+", str(argument))[0])  # type: ignore[index]


@dataclass(frozen=True)
class Call:
    """One system call, its strings decoded."""

    name: str
    arguments: tuple[object, ...]
    result: int

    @property
    def said(self) -> str:
        """What it wrote to standard output."""
        if self.name != "write" or _number(self.arguments[0]) != 1:
            return ""
        data = self.arguments[1]
        return data.decode() if isinstance(data, bytes) else ""


_LINE = re.compile(r"(\w+)\((.*)\)\s+= (-?\d+)")
_ARGUMENT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(?:\.\.\.)?|([^,"]+)')
_PATHS = set("openat link linkat rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir".split())


def traced(root: Path) -> list[Call]:
    """Runs the child on a prepared store, and gives what it asked of the system."""
    log = root.with_suffix(".strace")
    trace = ["strace", "-xx", "-s", str(1 << 24), "-e", f"trace={','.join(_CALLS)}", "-o", str(log)]
    child_command = [sys.executable, "-P", __file__, "--child", str(root)]
    path = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([*trace, *child_command], check=True, capture_output=True, env=environment)
    return [call for line in log.read_text().splitlines() if (call := _parsed(line)) is not None]


def _parsed(line: str) -> Call | None:
    found = _LINE.match(line)
    if found is None:
        return None
    name, text, result = found[1], found[2], int(found[3])
    arguments: list[object] = []
    for quoted, plain in _ARGUMENT.findall(text):
        if plain.strip():
            arguments.append(plain.strip())
        elif not plain:
            data = bytes.fromhex(quoted.replace("\\x", ""))
            arguments.append(data.decode() if name in _PATHS else data)
    return Call(name, tuple(arguments), result)


# All of it.


@dataclass
class Outcome:
    """How many failures were tried, and what was wrong after them."""

    disks: int = 0
    calls: int = 0
    wrong: list[str] = field(default_factory=list)


def run(*, tries: int, seed: int = 0, share: float = 1.0, ignore_syncs: bool = False) -> Outcome:
    """Lets the power fail after each call, so many times, or after a share of them."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as directory:
        states = expected_states(Path(directory) / "expected")
        root = Path(directory) / "store"
        prepare(root)
        disk = Disk(root, ignore_syncs=ignore_syncs)
        done = number = 0
        for call in traced(root):
            if call.said.startswith("done"):
                done = int(call.said.split()[1])
            if not disk.call(call.name, call.arguments, call.result):
                continue
            number += 1  # of those alone: how many files Python reads to start is not always the same
            rng = random.Random(f"{seed} {number}")
            if rng.random() >= share:
                continue
            outcome.calls += 1
            for attempt in range(tries):
                outcome.disks += 1
                target = Path(directory) / "failed"
                disk.after_failure(target, rng)
                believed = attempt % 2 == 0  # as on the disk itself; else as on a copy of it, whose index is made again
                if problem := _problem(target, states[done : done + 2], believed=believed):
                    outcome.wrong.append(f"call {number} ({call.name}), try {attempt}, {done} steps done: {problem}")
                shutil.rmtree(target)
    return outcome


def _problem(root: Path, allowed: Sequence[object], *, believed: bool) -> str:
    """What is wrong with a store after a failure; "" if nothing is."""
    try:
        with mock.patch.object(Index, "place", 0) if believed else contextlib.nullcontext():
            registry = Registry(root)
    except Exception as error:
        return f"it cannot be opened: {error!r}"
    try:
        found = state(registry)
        report = registry.fsck()
        if found not in allowed:
            return f"it says {json.dumps(found)}, expected one of {json.dumps(allowed)}"
        return "" if report.is_clean else f"{len(report.corrupt)} torn blobs, {len(report.missing)} missing"
    except Exception as error:
        return repr(error)
    finally:
        registry.close()


def main() -> int:
    parser = argparse.ArgumentParser("power_loss", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tries", type=int, default=20, help="disks after each call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child)
        return 0
    logging.disable()  # a line for each index that is made again
    outcome = run(tries=arguments.tries, seed=arguments.seed)
    print(f"{outcome.disks} disks after {outcome.calls} calls that changed one; {len(outcome.wrong)} of them wrong")
    for problem in outcome.wrong[:20]:
        print(f"  {problem}")
    return 1 if outcome.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
