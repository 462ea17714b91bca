"""Adapters copied between the server and its remotes. Twin of `copies.py`."""

from collections.abc import Sequence

from hotshoe.clients import registry_messages
from hotshoe.clients.channels import TRANSFER_SECONDS
from hotshoe.clients.connection import AsyncConnection, Method, Q
from hotshoe.clients.copies import Copy, T
from hotshoe.clients.progress import Progress, ignore_progress
from hotshoe.clients.retry import NO_RETRY, Attempts
from hotshoe.clients.streams import AsyncResponseStream, AsyncStreamCall
from hotshoe.protos.v1 import registry_pb2 as registry


class AsyncCopyMethods(AsyncConnection):
    """Part of AsyncClient."""

    async def push_to(
        self,
        remote: str,
        reference: str,
        *,
        name: str = "",
        tags: Sequence[str] = (),
        expected_digest: str | None = None,
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.Adapter:
        """Has the server copy an adapter to a remote, one that it was started with or below it, and move tags there.

        Args:
            remote: "oci://host/prefix", "s3://bucket/prefix" or "dir:///path".
            name: what it is called there; as here, if not given.
            tags: there; that of `reference`, if not given.
            expected_digest: where the tags must point there, "" for nowhere; Aborted is raised if they do not.
        """
        request = registry_messages.push_request(
            reference, remote, name=name, tags=tags, expected_digest=expected_digest
        )
        copy: Copy[registry.PushAdapterResponse] = Copy(progress)
        await self._follow(self._registry.PushAdapter, request, copy, timeout)
        return copy.last.adapter

    async def pull_from(
        self,
        remote: str,
        reference: str,
        *,
        name: str = "",
        tags: Sequence[str] = (),
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> registry.PullAdapterResponse:
        """Has the server copy an adapter from such a remote, as `name`, and move `tags` to it.

        They are the name and the tag of `reference`, if not given.
        """
        request = registry_messages.pull_request(remote, reference, name=name, tags=tags)
        copy: Copy[registry.PullAdapterResponse] = Copy(progress)
        await self._follow(self._registry.PullAdapter, request, copy, timeout)
        return copy.last

    async def mirror_from(
        self,
        remote: str,
        name: str,
        *,
        as_name: str = "",
        progress: Progress = ignore_progress,
        timeout: float | None = TRANSFER_SECONDS,
    ) -> Sequence[registry.PullAdapterResponse]:
        """Has the server copy all that a name's tags point at on such a remote, with the tags; others stay."""
        copy: Copy[registry.PullAdapterResponse] = Copy(progress)
        request = registry_messages.mirror_request(remote, name, as_name=as_name)
        await self._follow(self._registry.PullAdapter, request, copy, timeout)
        return copy.done

    async def _follow(
        self, method: Method[Q, AsyncStreamCall[T]], request: Q, copy: Copy[T], timeout: float | None
    ) -> None:
        # The server has tried a remote again that failed; to do so once more only takes longer.
        async with AsyncResponseStream(
            lambda left: method(request, timeout=left), Attempts(NO_RETRY, timeout)
        ) as stream:
            async for message in stream:
                copy.take(message)
