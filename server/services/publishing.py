"""The RPCs that publish adapters and find them."""

import logging

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.adoption import check_manifest
from hotshoe.registry.errors import IncompatibleAdapter
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.logs import log_event
from hotshoe.server.services.adapter_messages import adapter_message
from hotshoe.server.services.diagnosis_messages import diagnosis_message
from hotshoe.server.services.registry_messages import referrer_message
from hotshoe.server.services.registry_part import RegistryPart, check_bytes, check_count, file_of
from hotshoe.server.services.rpc import Context, call


class PublishingService(RegistryPart):
    """A part of `RegistryService`."""

    async def PublishAdapter(
        self, request: registry_pb2.PublishAdapterRequest, context: Context
    ) -> registry_pb2.PublishAdapterResponse:
        check_count("blobs", len(request.blobs))
        files = [file_of(blob) for blob in request.blobs]
        if not request.validate_only:
            self._registry.check_writable()
        diagnosis = cut = None
        if rank := request.approximate_rank:
            paths = await call(self._registry.uploaded_files, files)
            cut = await self._doctor.approximate(paths, rank=rank)
        if self._publish_doctor == "require":
            paths = await call(self._registry.uploaded_files, files)
            diagnosis = await self._doctor.refuse_bad(request.name, paths, approximate_rank=rank)
        record, created = await call(
            self._registry.publish,
            name=request.name,
            tags=list(request.tags),
            files=files,
            annotations=dict(request.annotations),
            base=self._base,
            validate_only=request.validate_only,
            approximation=None if cut is None else cut.approximation,
        )
        if not request.validate_only:
            tags = ",".join(request.tags) or "-"
            log_event(
                logging.INFO,
                "publish",
                name=record.name,
                digest=record.digest,
                tags=tags,
                kind=record.kind,
                new=created,
            )
            if cut is not None:
                await call(self._doctor.keep, record, cut)
            if diagnosis is not None:
                await call(self._doctor.attach, record, diagnosis)
            elif self._publish_doctor == "warn":
                diagnosis = await self._doctor.examine_soon(record)
        return registry_pb2.PublishAdapterResponse(
            adapter=await self._verified_message(record),
            created=created,
            diagnosis=None if diagnosis is None else diagnosis_message(diagnosis, with_linears=False),
        )

    async def AdoptAdapter(
        self, request: registry_pb2.AdoptAdapterRequest, context: Context
    ) -> registry_pb2.AdoptAdapterResponse:
        """Who brings an adapter here wants to serve it: one of another base is refused, as by PublishAdapter."""
        check_bytes("manifest", request.manifest)
        content = check_manifest(request.manifest)
        if content.base_digest != self._base.digest:
            problem = f"the adapter is for {content.base_digest}; the base model here, {self._base.name}, is "
            raise IncompatibleAdapter("manifest.annotations", problem + self._base.digest)
        record, created = await call(
            self._registry.adopt,
            request.manifest,
            name=request.name,
            tags=list(request.tags),
            base=self._base,
            approve=self._transfers.approve(request.name),
        )
        log_event(logging.INFO, "adopt", name=record.name, digest=record.digest, new=created)
        if self._publish_doctor == "warn":
            await self._doctor.examine_soon(record)
        return registry_pb2.AdoptAdapterResponse(adapter=await self._verified_message(record), created=created)

    async def GetAdapter(
        self, request: registry_pb2.GetAdapterRequest, context: Context
    ) -> registry_pb2.GetAdapterResponse:
        record = await call(self._registry.resolve, request.reference)
        message = await self._verified_message(record)
        message.referrers.extend(map(referrer_message, await call(self._registry.referrers, record.digest)))
        return registry_pb2.GetAdapterResponse(adapter=message)

    async def ListAdapters(
        self, request: registry_pb2.ListAdaptersRequest, context: Context
    ) -> registry_pb2.ListAdaptersResponse:
        if request.page_size < 0:
            raise InvalidRequest("page_size", f"must be 0 or more, not {request.page_size}")
        records, token = await call(
            self._registry.list,
            page_size=request.page_size,
            page_token=request.page_token,
            name_contains=request.name_contains,
            kind=request.kind,
        )
        return registry_pb2.ListAdaptersResponse(adapters=map(adapter_message, records), next_page_token=token)
