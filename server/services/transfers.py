"""Copies between the registry here and the remotes that this server was given, on threads of their own."""

import contextlib
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeAlias

from hotshoe.registry.errors import RemoteRefused
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.manifest import AdapterContent, AdapterRecord, FileDescriptor
from hotshoe.registry.reference import AdapterRef
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.patience import Patience
from hotshoe.registry.remotes.progress import Progress, TransferProgress, ignore_progress
from hotshoe.registry.remotes.pull import Pulled, mirror, pull, pull_blob
from hotshoe.registry.remotes.push import push
from hotshoe.registry.remotes.remote import Remote, parse_remote
from hotshoe.registry.remotes.remote_url import RemoteUrl
from hotshoe.server.services.thread_steps import ThreadSteps

_STEP_BYTES = 1 << 20  # between two messages about one blob
# With what a request waits for: it fails sooner than a transfer that was asked for.
_REQUEST_PATIENCE = Patience(connect_seconds=2.0, silence_seconds=10.0, exchange_seconds=30.0, attempts=3)

# What a transfer tells as it goes: bytes, and adapters that are here now. Closing it ends the transfer.
Steps: TypeAlias = AsyncGenerator[TransferProgress | Pulled, None]


class TransferEnded(Exception):
    """Nobody waits for a transfer any more."""


class CopyObserver(Protocol):
    """Hears of each copy's end, on any thread."""

    def copied(self, op: str, remote: str, result: str, size_bytes: int, seconds: float) -> None:
        """`op` is push, pull, mirror, pull_through or heal; `remote` a kind of URL; `result` ok or an error's class."""

    def pulled_through(self, result: str) -> None:
        """`result` is hit, miss or failure."""


class Transfers:
    """Pushes and pulls for callers who wait. Event loop only, but for `pull_here` and `fetch_blob`.

    Args:
        remotes: URLs; what a caller names must be one of them, or lie below one. Else whoever reaches this server
            could have it connect to anything, with its passwords.
        docker_config: has the passwords; None: there are none.
        refuse_bad: examines an adapter of this base, by name, files and the rank that it is cut to, before it is kept,
            and raises if it must not be; None if nobody asks for that.
        observer: hears of every copy.
    """

    def __init__(
        self,
        registry: Registry,
        base: BaseShape,
        *,
        remotes: Sequence[str],
        docker_config: Path | None,
        executor: Executor,
        observer: CopyObserver,
        refuse_bad: Callable[[str, Mapping[str, Path], int], object] | None = None,
    ) -> None:
        self.remotes = tuple(map(RemoteUrl.parse, remotes))
        self._registry = registry
        self._base = base
        self._docker_config = docker_config
        self._executor = executor
        self._observer = observer
        self._refuse_bad = refuse_bad

    def push(
        self, record: AdapterRecord, remote: str, *, name: str, tags: Sequence[str], expected: str | None
    ) -> Steps:
        """Copies an adapter there. Raises what `remotes.push` raises."""

        def work(progress: Progress, _: Callable[[Pulled], None]) -> None:
            with self._opened("push", remote, progress) as (opened, progress):
                push(self._registry, record, opened, name=name, tags=tags, expected=expected, progress=progress)

        return self._running(work)

    def pull(self, remote: str, ref: AdapterRef, *, name: str, tags: Sequence[str]) -> Steps:
        """Copies an adapter here, and yields it at last. Raises what `remotes.pull` raises."""

        def work(progress: Progress, done: Callable[[Pulled], None]) -> None:
            with self._opened("pull", remote, progress) as (opened, progress):
                done(self._pull(opened, ref, name=name, tags=tags, progress=progress))

        return self._running(work)

    def mirror(self, remote: str, name: str, *, as_name: str) -> Steps:
        """Copies all that a name's tags point at here, and yields each as it comes."""

        def work(progress: Progress, done: Callable[[Pulled], None]) -> None:
            with self._opened("mirror", remote, progress) as (opened, progress):
                approve = self.approve(as_name or name)
                for pulled in mirror(
                    self._registry, opened, name, as_name=as_name, base=self._base, approve=approve, progress=progress
                ):
                    done(pulled)

        return self._running(work)

    def pull_here(self, url: RemoteUrl, ref: AdapterRef, progress: Progress) -> Pulled:
        """Copies an adapter here under its own name, moving no tag; on the caller's thread."""
        with self._opened_for_request("pull_through", url, progress) as (remote, progress):
            return self._pull(remote, ref, name="", tags=(), progress=progress)

    def fetch_blob(self, url: RemoteUrl, blob: FileDescriptor, name: str) -> None:
        """Copies one blob of an adapter here; on the caller's thread. Raises what `pull_blob` raises."""
        with self._opened_for_request("heal", url, ignore_progress) as (remote, progress):
            pull_blob(self._registry, remote, blob, name=name, progress=progress)

    def _pull(self, remote: Remote, ref: AdapterRef, *, name: str, tags: Sequence[str], progress: Progress) -> Pulled:
        return pull(
            self._registry,
            remote,
            ref.digest or ref.tag or "",
            name=ref.name,
            as_name=name,
            tags=tags,
            base=self._base,
            approve=self.approve(name or ref.name),
            progress=progress,
        )

    def approve(self, name: str) -> Callable[[AdapterContent, Mapping[str, Path]], None]:
        """What `Registry.adopt` is to ask of an adapter that comes here under a name. Not on the event loop."""

        def approve(content: AdapterContent, files: Mapping[str, Path]) -> None:
            if self._refuse_bad is not None and content.base_digest == self._base.digest:
                self._refuse_bad(name, files, content.approximate_rank)

        return approve

    @contextmanager
    def _opened(self, op: str, text: str, progress: Progress) -> Iterator[tuple[Remote, Progress]]:
        """A remote that we were given, and the progress of a copy, which is counted when it ends."""
        url = RemoteUrl.parse(text)
        with self._counted(op, url, progress) as counting:
            if not any(given.contains(url) for given in self.remotes):
                given = ", ".join(map(str, self.remotes)) or "none"
                problem = f"this server was not given that remote; it has {given} (hotshoe serve --remote)"
                raise RemoteRefused(text, problem)
            with contextlib.closing(parse_remote(text, docker_config=self._docker_config)) as remote:
                yield remote, counting

    @contextmanager
    def _opened_for_request(self, op: str, url: RemoteUrl, progress: Progress) -> Iterator[tuple[Remote, Progress]]:
        """As `_opened`, one of our own remotes, which a request waits for."""
        with self._counted(op, url, progress) as counting:
            opened = parse_remote(str(url), docker_config=self._docker_config, patience=_REQUEST_PATIENCE)
            with contextlib.closing(opened) as remote:
                yield remote, counting

    @contextmanager
    def _counted(self, op: str, url: RemoteUrl, progress: Progress) -> Iterator[Progress]:
        counted, started, result = _CountedBytes(progress), time.monotonic(), "ok"
        try:
            yield counted
        except BaseException as error:
            result = type(error).__name__
            raise
        finally:
            self._observer.copied(op, url.kind, result, counted.size_bytes, time.monotonic() - started)

    async def _running(self, work: Callable[[Progress, Callable[[Pulled], None]], None]) -> Steps:
        """What a transfer tells, as it goes; whoever stops listening ends it at its next bytes."""
        ended = threading.Event()

        def run(tell: Callable[[TransferProgress | Pulled], None]) -> None:
            def progress(step: TransferProgress) -> None:
                if ended.is_set():
                    raise TransferEnded
                tell(step)

            work(sparse(progress), tell)

        steps: ThreadSteps[TransferProgress | Pulled, None] = ThreadSteps(self._executor, run)
        try:
            async for step in steps:
                yield step
            await steps.result
        finally:
            ended.set()


class _CountedBytes:
    """Passes on how far blobs come, and counts what moved of them."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._last: dict[str, int] = {}
        self.size_bytes = 0

    def __call__(self, step: TransferProgress) -> None:
        last = self._last.get(step.blob.digest, step.completed_bytes)  # what is named first was there before
        self.size_bytes += max(0, step.completed_bytes - last)
        self._last[step.blob.digest] = step.completed_bytes
        self._progress(step)


def sparse(progress: Progress) -> Progress:
    """Passes on what has come a good deal further, and every blob's end."""
    told: dict[str, int] = {}

    def pass_on(step: TransferProgress) -> None:
        last = told.get(step.blob.digest)
        is_end = step.completed_bytes == step.blob.size_bytes
        if last is None or step.completed_bytes < last or step.completed_bytes >= last + _STEP_BYTES or is_end:
            if last != step.completed_bytes:
                told[step.blob.digest] = step.completed_bytes
                progress(step)

    return pass_on


def tags_of(ref: AdapterRef, tags: Sequence[str]) -> list[str]:
    """The tags that are asked for, or else the reference's."""
    return list(tags) or ([ref.tag] if ref.tag else [])


def total(steps: Mapping[str, TransferProgress]) -> tuple[int, int]:
    """Bytes done and bytes in all of what is under way, by digest."""
    return sum(step.completed_bytes for step in steps.values()), sum(step.blob.size_bytes for step in steps.values())
