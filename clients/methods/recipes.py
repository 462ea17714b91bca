"""Adapters made of adapters, examined, and compared."""

import os
from collections.abc import Mapping, Sequence

from hotshoe.clients import messages, registry_messages
from hotshoe.clients.adapter_files import scan_directory
from hotshoe.clients.channels import QUICK_SECONDS, TRANSFER_SECONDS
from hotshoe.clients.connection import Connection
from hotshoe.clients.progress import Progress, ignore_progress
from hotshoe.clients.retry import Attempts
from hotshoe.clients.transfers import Transfers
from hotshoe.protos.v1 import registry_pb2 as registry


class RecipeMethods(Connection):
    """Part of Client."""

    def diagnose(
        self, reference: str, *, exact: bool = False, timeout: float | None = TRANSFER_SECONDS
    ) -> registry.DiagnoseAdapterResponse:
        """Examines a published adapter, and keeps the report with it. With `exact`, intruder dimensions are counted."""
        request = registry.DiagnoseAdapterRequest(reference=reference, exact=exact)
        return self._call(self._registry.DiagnoseAdapter, request, timeout)

    def diagnose_directory(
        self,
        directory: str | os.PathLike[str],
        *,
        exact: bool = False,
        approximate_rank: int = 0,
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.Diagnosis:
        """Examines a PEFT directory, which is sent but not published: its weights are held against the server's base.

        Raises InvalidAdapterDirectory before anything is sent.
        """
        files = scan_directory(directory, progress)
        attempts = Attempts(self._retry, timeout)
        Transfers(self._registry, attempts, progress).upload_missing(files)
        request = registry_messages.diagnose_request(files, exact=exact, approximate_rank=approximate_rank)
        response = self._call(self._registry.DiagnoseAdapter, request, attempts.remaining())
        diagnosis: registry.Diagnosis = response.diagnosis
        return diagnosis

    def mitigate(
        self,
        reference: str,
        name: str,
        *,
        keep: float,
        tags: Sequence[str] = ("latest",),
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.MitigateAdapterResponse:
        """Publishes an adapter as `name` anew, its intruder dimensions shrunk to `keep` of their strength, 0 to 1."""
        request = registry.MitigateAdapterRequest(reference=reference, keep=keep, name=name, tags=tags)
        return self._call(self._registry.MitigateAdapter, request, timeout)

    def merge_adapters(
        self,
        sources: messages.Adapters,
        name: str,
        *,
        method: str = "linear",
        parameters: Mapping[str, object] | None = None,
        tags: Sequence[str] = ("latest",),
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.MergeAdaptersResponse:
        """Publishes as `name` what a method makes of published adapters, each with its weight, 1 if not given.

        The README has the methods and their parameters; the server names them where it is asked for others.
        """
        request = registry_messages.merge_request(sources, name, method=method, parameters=parameters or {}, tags=tags)
        return self._call(self._registry.MergeAdapters, request, timeout)

    def lineage(self, reference: str, *, timeout: float | None = QUICK_SECONDS) -> registry.GetLineageResponse:
        """What an adapter was made from, back to the trained ones, and what was made from it."""
        request = registry.GetLineageRequest(reference=reference)
        return self._call(self._registry.GetLineage, request, timeout)

    def compare_adapters(
        self, first: str, second: str, *, timeout: float | None = TRANSFER_SECONDS
    ) -> registry.CompareAdaptersResponse:
        """How two adapters differ, in their configs and in what they do to each of the base's weights."""
        request = registry.CompareAdaptersRequest(first=first, second=second)
        return self._call(self._registry.CompareAdapters, request, timeout)
