"""Copies of adapters between a server and its remotes, as their caller follows them. Does no I/O."""

from typing import Generic, TypeVar

from hotshoe.clients.errors import Internal
from hotshoe.clients.progress import Progress, TransferProgress
from hotshoe.protos.v1 import registry_pb2 as registry

T = TypeVar("T", registry.PushAdapterResponse, registry.PullAdapterResponse)


class Copy(Generic[T]):
    """What a server tells of copying to or from a remote: passes on its bytes, and keeps the messages with adapters."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._steps: dict[str, registry.TransferProgress] = {}
        self._there: set[str] = set()  # digests of blobs that were whole when they were named
        self.done: list[T] = []

    def take(self, message: T) -> None:
        """One more message."""
        if message.HasField("adapter"):
            self.done.append(message)
            return
        step = message.progress
        if step.digest not in self._steps and step.completed_bytes == step.total_bytes:
            self._there.add(step.digest)
        self._steps[step.digest] = step
        new = sum(one.completed_bytes for digest, one in self._steps.items() if digest not in self._there)
        completed = sum(one.completed_bytes for one in self._steps.values())
        total = sum(one.total_bytes for one in self._steps.values())
        self._progress(TransferProgress("copy", step.file_name, completed, total, new))

    @property
    def last(self) -> T:
        """The message with the adapter. Raises Internal if the server ended the copy without it."""
        if not self.done:
            raise Internal("the server ended the transfer before it was done")
        return self.done[-1]
