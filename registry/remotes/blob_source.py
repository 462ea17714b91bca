"""Remotes as a place that damaged blobs come again from, for one who checks a store without a server."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from hotshoe.registry.errors import AdapterNotFound, RemoteError
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.pull import pull_blob
from hotshoe.registry.remotes.remote import parse_remote
from hotshoe.registry.remotes.remote_url import RemoteUrl


class BlobsOfRemotes:
    """What `Registry.heal_from` takes: asks one remote after another; `failures` tells of those that could not give.

    Raises:
        InvalidReference: one of `remotes` is no URL of a remote.
    """

    def __init__(self, registry: Registry, remotes: Sequence[str], *, docker_config: Path | None) -> None:
        self._registry = registry
        self._remotes = [RemoteUrl.parse(remote) for remote in remotes]
        self._docker_config = docker_config
        self.failures: list[str] = []

    def fetch(self, blob: FileDescriptor, names: Sequence[str]) -> bool:
        for url in self._remotes:
            with contextlib.closing(parse_remote(str(url), docker_config=self._docker_config)) as remote:
                for name in names:
                    try:
                        pull_blob(self._registry, remote, blob, name=name)
                        return True
                    except AdapterNotFound:
                        continue
                    except RemoteError as error:
                        self.failures.append(str(error))
        return False

    def note(self, digest: str, *, healed: bool) -> None:
        """The report tells."""
