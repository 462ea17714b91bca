"""Adapters put into the registry, found there, and fetched."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hotshoe.clients import registry_messages
from hotshoe.clients.adapter_files import AdapterFile
from hotshoe.clients.channels import QUICK_SECONDS, TRANSFER_SECONDS
from hotshoe.clients.connection import Connection
from hotshoe.clients.progress import Progress, ignore_progress
from hotshoe.clients.retry import Attempts
from hotshoe.clients.transfers import Transfers
from hotshoe.protos.v1 import registry_pb2 as registry


class AdapterMethods(Connection):
    """Part of Client."""

    def publish_directory(
        self,
        directory: str | os.PathLike[str],
        name: str,
        *,
        tags: Sequence[str] = ("latest",),
        annotations: Mapping[str, str] | None = None,
        validate_only: bool = False,
        approximate_rank: int = 0,
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.PublishAdapterResponse:
        """Publishes a PEFT directory as `name` and moves `tags` to it; sends only the files that the server lacks.

        Idempotent: equal bytes give the same digest. An upload that breaks goes on where it broke. With
        `approximate_rank` an update of full rank is served as its nearest of that rank: the answer says what is kept.
        Raises InvalidAdapterDirectory before anything is sent.
        """
        transfers = Transfers(self._registry, Attempts(self._retry, timeout), progress)
        files = transfers.scan(directory)
        request = registry_messages.publish_request(
            name, tags, files, annotations or {}, validate_only, approximate_rank=approximate_rank
        )
        return transfers.publish(files, request)

    def adopt(
        self,
        manifest: bytes,
        files: Sequence[AdapterFile],
        name: str,
        *,
        tags: Sequence[str] = ("latest",),
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.AdoptAdapterResponse:
        """Publishes an adapter of elsewhere as it stands: `manifest` byte for byte, and all that it names as `files`.

        It keeps its digest, parents and all. Raises InvalidArgument where hotshoe would not have written it, and
        FailedPrecondition where it is for another base model.
        """
        attempts = Attempts(self._retry, timeout)
        request = registry.AdoptAdapterRequest(name=name, tags=registry_messages.several(tags), manifest=manifest)
        Transfers(self._registry, attempts, progress).upload_missing(files)
        return self._call(self._registry.AdoptAdapter, request, attempts.remaining())

    def pull(
        self,
        reference: str,
        directory: str | os.PathLike[str],
        *,
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.Adapter:
        """Writes an adapter's files into `directory`, each verified before it takes its place. Goes on where one broke.

        Raises DataLoss when what came does not have the digest it should.
        """
        attempts = Attempts(self._retry, timeout)
        adapter = self.get_adapter(reference, timeout=attempts.remaining())
        root = Path(directory)
        root.mkdir(parents=True, exist_ok=True)
        Transfers(self._registry, attempts, progress).download(adapter, root)
        return adapter

    def get_adapter(self, reference: str, *, timeout: float | None = QUICK_SECONDS) -> registry.Adapter:
        """The adapter that `reference` resolves to now: "name", "name:tag" or "name@sha256:<hex>"."""
        request = registry.GetAdapterRequest(reference=reference)
        response = self._call(self._registry.GetAdapter, request, timeout)
        return response.adapter

    def list_adapters(
        self,
        *,
        name_contains: str = "",
        kind: str = "",
        page_size: int = 0,
        timeout: float | None = QUICK_SECONDS,
    ) -> Iterator[registry.Adapter]:
        """All adapters, newest first; pages are fetched as the iterator needs them, `timeout` is for each page."""
        request = registry.ListAdaptersRequest(name_contains=name_contains, kind=kind, page_size=page_size)
        while True:
            page = self._call(self._registry.ListAdapters, request, timeout)
            yield from page.adapters
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
