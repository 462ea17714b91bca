"""The RPCs that examine adapters, compare them, and make adapters of adapters."""

import logging
from collections.abc import Sequence

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.errors import StoreReadOnly
from hotshoe.registry.manifest import AdapterRecord, FileDescriptor, Lineage, Parent
from hotshoe.registry.recipes.lora_files import lora_files
from hotshoe.registry.recipes.merge_parameters import MergeParameters
from hotshoe.registry.reference import given_as
from hotshoe.server.errors import InvalidRequest
from hotshoe.server.logs import log_event
from hotshoe.server.services.adapter_messages import adapter_message
from hotshoe.server.services.diagnosis_messages import diagnosis_message
from hotshoe.server.services.doctor import Part
from hotshoe.server.services.registry_messages import referrer_message
from hotshoe.server.services.registry_part import RegistryPart, check_count, file_of
from hotshoe.server.services.relations import comparison_message, lineage_message
from hotshoe.server.services.rpc import Context, call
from hotshoe.server.services.task_choice import chosen_task


class RecipeService(RegistryPart):
    """A part of `RegistryService`."""

    async def DiagnoseAdapter(
        self, request: registry_pb2.DiagnoseAdapterRequest, context: Context
    ) -> registry_pb2.DiagnoseAdapterResponse:
        """The report of a published adapter becomes its latest, where the registry may be written."""
        check_count("blobs", len(request.blobs))
        if bool(request.reference) == bool(request.blobs):
            raise InvalidRequest("reference", "expected a reference or blobs, and not both")
        if request.reference and request.approximate_rank:
            raise InvalidRequest("approximate_rank", "expected none: a published adapter has its own")
        if request.blobs:
            files = await call(self._registry.uploaded_files, [file_of(blob) for blob in request.blobs])
            rank = request.approximate_rank
            diagnosis = await self._doctor.diagnose(files, exact=request.exact, approximate_rank=rank)
            return registry_pb2.DiagnoseAdapterResponse(diagnosis=diagnosis_message(diagnosis))
        record = await call(self._registry.resolve, request.reference)
        files = await call(self._registry.adapter_files, record.digest)
        rank = record.approximate_rank
        diagnosis = await self._doctor.diagnose(files, exact=request.exact, approximate_rank=rank)
        response = registry_pb2.DiagnoseAdapterResponse(diagnosis=diagnosis_message(diagnosis))
        try:
            response.referrer.CopyFrom(referrer_message(await call(self._doctor.attach, record, diagnosis)))
        except StoreReadOnly as error:
            response.not_kept = str(error)
        return response

    async def MitigateAdapter(
        self, request: registry_pb2.MitigateAdapterRequest, context: Context
    ) -> registry_pb2.MitigateAdapterResponse:
        if not 0 <= request.keep < 1:
            raise InvalidRequest("keep", f"expected a number from 0 to below 1, not {request.keep}")
        self._registry.check_writable()
        parent = await call(self._registry.resolve, request.reference)
        part = Part(await call(self._registry.adapter_files, parent.digest), parent.approximate_rank)
        mitigation = await self._doctor.mitigate(part, keep=request.keep)
        made = lora_files(mitigation.updates, self._base, base_name=parent.base_model)
        files = await call(self._registry.add_files, made)
        paths = await call(self._registry.uploaded_files, files)
        if self._publish_doctor == "require":
            diagnosis = await self._doctor.refuse_bad(request.name, paths, exact=True)
        else:
            diagnosis = await self._doctor.diagnose(paths, exact=True)
        recipe = {"op": "mitigate", "keep": request.keep, "intruders": mitigation.shrunk}
        record = await self._publish_made(request, files, Lineage((Parent(parent.digest, 1.0),), recipe))
        await call(self._doctor.attach, record, diagnosis)
        log_event(logging.INFO, "mitigate", name=record.name, digest=record.digest, parent=parent.digest)
        return registry_pb2.MitigateAdapterResponse(
            adapter=adapter_message(record),
            diagnosis=diagnosis_message(diagnosis),
            shrunk=mitigation.shrunk,
            energy_kept=mitigation.energy_kept,
        )

    async def MergeAdapters(
        self, request: registry_pb2.MergeAdaptersRequest, context: Context
    ) -> registry_pb2.MergeAdaptersResponse:
        parameters = MergeParameters.parse(request.method, dict(request.parameters))
        weights = [source.weight if source.HasField("weight") else 1.0 for source in request.sources]
        parameters.check_parents(weights)
        check_count("sources", len(weights))
        self._registry.check_writable()
        parents = [
            await self._resolve(f"sources[{index}].reference", source.reference)
            for index, source in enumerate(request.sources)
        ]
        tasks = [
            chosen_task(f"sources[{index}].task", source, parent.num_tasks)
            for index, (source, parent) in enumerate(zip(request.sources, parents, strict=True))
        ]
        parts = [
            Part(await call(self._registry.adapter_files, parent.digest), parent.approximate_rank, task)
            for parent, task in zip(parents, tasks, strict=True)
        ]
        merged = await self._doctor.merge(parts, weights, parameters, base_name=parents[0].base_model)
        files = await call(self._registry.add_files, merged.files)
        if self._publish_doctor == "require":
            await self._doctor.refuse_bad(request.name, await call(self._registry.uploaded_files, files))
        lineage = Lineage(
            tuple(Parent(parent.digest, weight) for parent, weight in zip(parents, weights, strict=True)),
            merged.recipe if tasks == [None] * len(tasks) else {**merged.recipe, "tasks": tasks},
        )
        record = await self._publish_made(request, files, lineage)
        if self._publish_doctor == "warn":
            await self._doctor.examine_soon(record)
        log_event(logging.INFO, "merge", name=record.name, digest=record.digest, method=parameters.method)
        return registry_pb2.MergeAdaptersResponse(adapter=adapter_message(record), energy_kept=merged.energy_kept)

    async def GetLineage(
        self, request: registry_pb2.GetLineageRequest, context: Context
    ) -> registry_pb2.GetLineageResponse:
        return await call(lineage_message, self._registry, request.reference)

    async def CompareAdapters(
        self, request: registry_pb2.CompareAdaptersRequest, context: Context
    ) -> registry_pb2.CompareAdaptersResponse:
        first = await self._resolve("first", request.first)
        second = await self._resolve("second", request.second)
        files = [await call(self._registry.adapter_files, record.digest) for record in (first, second)]
        parts = [Part(of_one, record.approximate_rank) for of_one, record in zip(files, (first, second), strict=True)]
        found = await self._doctor.compare(*parts)
        return await call(comparison_message, (first, second), (files[0], files[1]), found)

    async def _resolve(self, field: str, reference: str) -> AdapterRecord:
        with given_as(field):
            return await call(self._registry.resolve, reference)

    async def _publish_made(
        self,
        request: registry_pb2.MitigateAdapterRequest | registry_pb2.MergeAdaptersRequest,
        files: Sequence[FileDescriptor],
        lineage: Lineage,
    ) -> AdapterRecord:
        """Publishes what was made of other adapters, under the name and the tags that were asked for."""
        record, _ = await call(
            self._registry.publish,
            name=request.name,
            tags=list(request.tags),
            files=files,
            annotations={},
            base=self._base,
            lineage=lineage,
        )
        return record
