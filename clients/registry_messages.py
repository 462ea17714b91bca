"""Python values → the registry's messages. Shared by both clients; does no I/O."""

from collections.abc import Iterable, Mapping, Sequence

from hotshoe.clients.adapter_files import AdapterFile
from hotshoe.clients.blob_messages import blob_of
from hotshoe.clients.errors import Internal
from hotshoe.clients.messages import Adapters, adapter_parts, several_adapters
from hotshoe.protos.v1 import registry_pb2 as registry


def several(tags: Sequence[str]) -> Sequence[str]:
    """Tags, of which a lone one may be given as it is."""
    return (tags,) if isinstance(tags, str) else tags


def publish_request(
    name: str,
    tags: Sequence[str],
    files: Iterable[AdapterFile],
    annotations: Mapping[str, str],
    validate_only: bool,
    *,
    approximate_rank: int = 0,
) -> registry.PublishAdapterRequest:
    """The message that makes uploaded `files` an adapter."""
    return registry.PublishAdapterRequest(
        name=name,
        tags=several(tags),
        blobs=[blob_of(file) for file in files],
        annotations=annotations,
        validate_only=validate_only,
        approximate_rank=approximate_rank,
    )


def diagnose_request(
    files: Iterable[AdapterFile], *, exact: bool, approximate_rank: int = 0
) -> registry.DiagnoseAdapterRequest:
    """The message that asks for uploaded `files` to be examined."""
    return registry.DiagnoseAdapterRequest(
        blobs=[blob_of(file) for file in files],
        exact=exact,
        approximate_rank=approximate_rank,
    )


def merge_request(
    sources: Adapters, name: str, *, method: str, parameters: Mapping[str, object], tags: Sequence[str]
) -> registry.MergeAdaptersRequest:
    """The message that asks for adapters to be merged into a new one."""
    return registry.MergeAdaptersRequest(
        sources=[
            registry.MergeAdaptersRequest.Source(reference=reference, weight=weight, task=task)
            for reference, weight, task in map(adapter_parts, several_adapters(sources))
        ],
        method=method,
        parameters={key: _parameter(value) for key, value in parameters.items()},
        name=name,
        tags=tags,
    )


def _parameter(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def push_request(
    reference: str, remote: str, *, name: str, tags: Sequence[str], expected_digest: str | None
) -> registry.PushAdapterRequest:
    """The message that asks for an adapter to be copied to a remote."""
    return registry.PushAdapterRequest(
        reference=reference, remote=remote, name=name, tags=several(tags), expected_digest=expected_digest
    )


def pull_request(remote: str, reference: str, *, name: str, tags: Sequence[str]) -> registry.PullAdapterRequest:
    """The message that asks for an adapter to be copied from a remote."""
    return registry.PullAdapterRequest(remote=remote, reference=reference, name=name, tags=several(tags))


def mirror_request(remote: str, name: str, *, as_name: str) -> registry.PullAdapterRequest:
    """The message that asks for all that a name's tags point at to be copied from a remote."""
    return registry.PullAdapterRequest(remote=remote, reference=name, name=as_name, all_tags=True)


def attach_request(
    reference: str, document: bytes, *, artifact_type: str, file_name: str, annotations: Mapping[str, str]
) -> registry.AttachReferrerRequest:
    """The message that asks for a document to be kept about an adapter."""
    return registry.AttachReferrerRequest(
        reference=reference,
        artifact_type=artifact_type,
        file_name=file_name,
        document=document,
        annotations=annotations,
    )


def store_report(last: registry.CheckStoreResponse | None) -> registry.StoreReport:
    """What a check's last message says. Raises Internal when it ended before."""
    if last is None or not last.HasField("report"):
        raise Internal("the server ended the check before it was done")
    return last.report
