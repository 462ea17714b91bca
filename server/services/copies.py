"""The RPCs that copy adapters to and from remotes."""

import contextlib
import logging
from collections.abc import AsyncIterator

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.reference import AdapterRef, check_name, given_as
from hotshoe.registry.remotes.progress import TransferProgress
from hotshoe.server.logs import log_event
from hotshoe.server.services.adapter_messages import adapter_message
from hotshoe.server.services.registry_messages import progress_message
from hotshoe.server.services.registry_part import RegistryPart
from hotshoe.server.services.rpc import Context, call
from hotshoe.server.services.transfers import tags_of


class CopyService(RegistryPart):
    """A part of `RegistryService`."""

    async def PushAdapter(
        self, request: registry_pb2.PushAdapterRequest, context: Context
    ) -> AsyncIterator[registry_pb2.PushAdapterResponse]:
        ref = AdapterRef.parse(request.reference)
        record = await call(self._registry.resolve, request.reference)
        expected = request.expected_digest if request.HasField("expected_digest") else None
        tags = tags_of(ref, request.tags)
        steps = self._transfers.push(record, request.remote, name=request.name, tags=tags, expected=expected)
        async with contextlib.aclosing(steps):
            async for step in steps:
                assert isinstance(step, TransferProgress), "a push brings nothing here"
                yield registry_pb2.PushAdapterResponse(progress=progress_message(step))
        log_event(logging.INFO, "push", name=record.name, digest=record.digest, remote=request.remote)
        yield registry_pb2.PushAdapterResponse(adapter=adapter_message(record))

    async def PullAdapter(
        self, request: registry_pb2.PullAdapterRequest, context: Context
    ) -> AsyncIterator[registry_pb2.PullAdapterResponse]:
        """A caller that goes away ends the transfer; what has come is kept for the next."""
        if request.all_tags:
            with given_as("reference"):
                name = check_name(request.reference)
            steps = self._transfers.mirror(request.remote, name, as_name=request.name)
        else:
            ref = AdapterRef.parse(request.reference)
            tags = tags_of(ref, request.tags)
            steps = self._transfers.pull(request.remote, ref, name=request.name, tags=tags)
        async with contextlib.aclosing(steps):
            async for step in steps:
                if isinstance(step, TransferProgress):
                    yield registry_pb2.PullAdapterResponse(progress=progress_message(step))
                    continue
                record = step.record
                log_event(
                    logging.INFO,
                    "pull",
                    name=record.name,
                    digest=record.digest,
                    remote=request.remote,
                    new=step.created,
                )
                if self._publish_doctor == "warn" and record.base_digest == self._base.digest:
                    await self._doctor.examine_soon(record)
                yield registry_pb2.PullAdapterResponse(adapter=adapter_message(record), created=step.created)
