"""What the registry says, as the wire has it."""

from datetime import datetime

from hotshoe.protos.v1 import registry_pb2
from hotshoe.registry.referrer import Referrer
from hotshoe.registry.remotes.progress import TransferProgress
from hotshoe.registry.signing.policy import Mode
from hotshoe.registry.signing.verdict import Verdict
from hotshoe.registry.store.fsck import FsckProgress, FsckReport
from hotshoe.registry.store.garbage import GarbageReport
from hotshoe.registry.store.index_rows import Lease
from hotshoe.registry.store.tag_log import LoggedMove
from hotshoe.server.services.adapter_messages import blob_message

_MODES = {
    Mode.OFF: registry_pb2.Verification.MODE_OFF,
    Mode.WARN: registry_pb2.Verification.MODE_WARN,
    Mode.REQUIRE: registry_pb2.Verification.MODE_REQUIRE,
}


def move_message(logged: LoggedMove) -> registry_pb2.TagMove:
    """One entry of a tag's history."""
    _, tag, old, new = logged.move
    message = registry_pb2.TagMove(id=logged.id, tag=tag or "", old_digest=old or "", new_digest=new or "")
    message.time.FromDatetime(datetime.fromisoformat(logged.time))
    return message


def garbage_message(report: GarbageReport) -> registry_pb2.CollectGarbageResponse:
    """What a collection removed, or would."""
    collected = registry_pb2.CollectGarbageResponse.CollectedAdapter
    return registry_pb2.CollectGarbageResponse(
        removed_blobs=report.blobs,
        removed_bytes=report.blob_bytes,
        adapters=[collected(name=adapter.name, digest=adapter.digest) for adapter in report.adapters],
        documents=report.documents,
        emptied_blobs=report.emptied_blobs,
        emptied_bytes=report.emptied_bytes,
        discarded_files=report.discarded_files,
        discarded_bytes=report.discarded_bytes,
    )


def lease_message(lease: Lease) -> registry_pb2.Lease:
    """Who holds what, and until when."""
    message = registry_pb2.Lease(holder=lease.holder, digest=lease.digest)
    message.expire_time.FromNanoseconds(int(lease.expires * 1e9))
    return message


def check_message(step: FsckProgress) -> registry_pb2.CheckStoreResponse:
    """How far a full check is."""
    return registry_pb2.CheckStoreResponse(
        checked_blobs=step.blobs,
        checked_bytes=step.blob_bytes,
        total_blobs=step.total_blobs,
        total_bytes=step.total_bytes,
    )


def report_message(report: FsckReport) -> registry_pb2.StoreReport:
    """What a full check found."""
    return registry_pb2.StoreReport(
        blobs=report.blobs,
        blob_bytes=report.blob_bytes,
        corrupt_digests=report.corrupt,
        missing_digests=report.missing,
        healed_digests=report.healed,
        quarantined_files=len(report.quarantine),
        quarantined_bytes=sum(file.size_bytes for file in report.quarantine),
        only_damaged_digests=report.only_damaged,
    )


def progress_message(step: TransferProgress) -> registry_pb2.TransferProgress:
    """How far one blob is."""
    return registry_pb2.TransferProgress(
        file_name=step.blob.file_name,
        digest=step.blob.digest,
        completed_bytes=step.completed_bytes,
        total_bytes=step.blob.size_bytes,
    )


def verification_message(verdict: Verdict) -> registry_pb2.Verification:
    """What the policy says of an adapter."""
    return registry_pb2.Verification(
        mode=_MODES[verdict.rule.mode],
        threshold=verdict.rule.threshold,
        key_ids=verdict.key_ids,
        problem=verdict.problem,
    )


def referrer_message(referrer: Referrer) -> registry_pb2.Referrer:
    """A document about an adapter."""
    return registry_pb2.Referrer(
        digest=referrer.digest,
        artifact_type=referrer.artifact_type,
        document=blob_message(referrer.document),
        annotations=dict(referrer.annotations),
    )
