"""An adapter and its files as the wire has them."""

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.formats.lowered import Approximation
from hotshoe.registry.manifest import AdapterRecord, FileDescriptor


def adapter_message(record: AdapterRecord) -> registry_pb2.Adapter:
    """An adapter as the wire has it."""
    return registry_pb2.Adapter(
        name=record.name,
        digest=record.digest,
        tags=record.tags,
        kind=record.kind,
        base_model=record.base_model,
        base_digest=record.base_digest,
        rank=record.rank,
        target_modules=record.target_modules,
        blobs=map(blob_message, record.files),
        annotations=dict(record.annotations),
        size_bytes=record.size_bytes,
        parents=[registry_pb2.Parent(digest=parent.digest, weight=parent.weight) for parent in record.parents],
        recipe=record.recipe,
        approximation=None if record.approximation is None else _approximation_message(record.approximation),
        num_tasks=record.num_tasks,
    )


def blob_message(file: FileDescriptor) -> registry_pb2.Blob:
    """A file of an adapter, or a document about one."""
    return registry_pb2.Blob(digest=file.digest, size_bytes=file.size_bytes, file_name=file.file_name)


def _approximation_message(approximation: Approximation) -> registry_pb2.Approximation:
    return registry_pb2.Approximation(
        rank=approximation.rank,
        energy=approximation.energy,
        least_energy=approximation.least_energy,
        least_linear=approximation.least_linear,
    )
