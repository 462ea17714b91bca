"""What a store takes in: uploads, and what is published of them or brought from elsewhere, checked before it counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hotshoe.registry.adoption import Approve, approve_all, check_contents, check_manifest, check_referrer
from hotshoe.registry.attachment import check_attachment
from hotshoe.registry.digest import check_digest, digest_of
from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt, BlobNotFound, InvalidAdapter, InvalidReference
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.lowered import Approximation
from hotshoe.registry.formats.lowering import inspect_adapter
from hotshoe.registry.keeper import StoreKeeper
from hotshoe.registry.manifest import (
    CARD_FILE,
    AdapterRecord,
    Artifact,
    FileDescriptor,
    Lineage,
    blob_descriptors,
    build_artifact,
)
from hotshoe.registry.publication import base_model_name, check_annotations, check_files
from hotshoe.registry.reference import check_name, check_tag, given_as
from hotshoe.registry.referrer import EMPTY_CONFIG, Referrer, build_referrer, read_referrer
from hotshoe.registry.store.commits import Commits
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.layout import Layout, disk
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.quotas import Quota, Quotas
from hotshoe.registry.store.tag_log import TagLog
from hotshoe.registry.store.tag_policy import TagPolicy
from hotshoe.registry.store.upload_parts import Parts
from hotshoe.registry.store.uploads import Upload, Uploads
from hotshoe.registry.store.writer import StoreWriter

MAX_TAGS_PER_PUBLISH = 32


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How much a store takes in, and keeps aside; as `Registry` has them."""

    max_blob_bytes: int
    upload_ttl_seconds: float
    quotas: Mapping[str, Quota]
    reserve_bytes: int


class StorePublisher(StoreKeeper):
    """The part of `Registry` that takes in."""

    def __init__(
        self,
        layout: Layout,
        *,
        locks: StoreLocks,
        index: Index,
        commits: Commits,
        log: TagLog,
        policy: TagPolicy,
        limits: StoreLimits,
    ) -> None:
        super().__init__(layout, locks=locks, index=index, commits=commits, log=log, reserve_bytes=limits.reserve_bytes)
        self._parts = Parts(layout, blobs=self._blobs, locks=locks, ttl_seconds=limits.upload_ttl_seconds)
        self._uploads = Uploads(self._parts, blobs=self._blobs, max_blob_bytes=limits.max_blob_bytes)
        self._writer = StoreWriter(
            layout,
            locks=locks,
            index=index,
            blobs=self._blobs,
            commits=commits,
            policy=policy,
            quotas=Quotas(limits.quotas, self._stored_size),
        )

    def missing_blobs(self, digests: Sequence[str]) -> list[str]:
        """Those of `digests` that must be uploaded, each once, in order. The others are touched, and so kept a while.

        Raises:
            InvalidReference: one is not a digest.
        """
        self.check_writable()
        missing = []
        with disk("checking blobs"), self._locks.publishing():
            for digest in dict.fromkeys(map(check_digest, digests)):
                try:
                    self._blobs.freshen(digest)
                except (BlobNotFound, BlobCorrupt):
                    missing.append(digest)
        return missing

    def open_upload(self, blob: FileDescriptor) -> Upload:
        """Starts or resumes the upload of a blob; see `Upload`.

        Raises:
            InvalidUpload: its size is negative or above the limit.
            InvalidReference: its digest is not one.
        """
        self.check_writable()
        return self._uploads.open(blob)

    def begin_upload(self, blob: FileDescriptor) -> Upload:
        """Starts the upload of a blob whose digest is not known yet (""), so that it can be hashed meanwhile.

        `Upload.name` says it, before `finish` at the latest. Until then the upload cannot be resumed.

        Raises:
            InvalidUpload: its size is negative or above the limit.
        """
        self.check_writable()
        return self._uploads.begin(blob)

    def add_files(self, files: Mapping[str, bytes]) -> list[FileDescriptor]:
        """Stores files that were made here, as if they had been uploaded.

        Raises:
            InvalidUpload: one is above the limit.
            StoreUnavailable: the disk refused.
        """
        blobs = [FileDescriptor(name, digest_of(data), len(data)) for name, data in files.items()]
        missing = self.missing_blobs([blob.digest for blob in blobs])
        for blob in blobs:
            if blob.digest in missing:
                with self.open_upload(blob) as upload:
                    upload.write(upload.committed_bytes, files[blob.file_name][upload.committed_bytes :])
                    upload.finish()
        return blobs

    def publish(
        self,
        *,
        name: str,
        tags: Sequence[str],
        files: Sequence[FileDescriptor],
        annotations: Mapping[str, str],
        base: BaseShape,
        validate_only: bool = False,
        lineage: Lineage | None = None,
        approximation: Approximation | None = None,
    ) -> tuple[AdapterRecord, bool]:
        """Checks uploaded files as an adapter of `base`, commits them as `name`, and moves `tags` to them.

        Repeating it changes nothing. Tags move wherever they pointed, unless they are versions; compare-and-set is
        `update_tag`. Without a tag the adapter is kept for the collector's grace only. The manifest says what an
        adapter of some `lineage` was made from, and what an `approximation` of these files keeps of them: they are
        lowered to its rank from then on.

        Returns:
            The record, and whether `name` had no adapter of these bytes before. With `validate_only` nothing is
            stored: the record tells what would be, and the second is False.

        Raises:
            InvalidReference: the name, a tag or a digest is malformed.
            InvalidAdapter, IncompatibleAdapter: the files or annotations are refused.
            InvalidUpload: a file's size is not that of its blob.
            TagImmutable: a tag is a version, and points at other bytes.
            QuotaExceeded: no room is left under that name.
            BlobNotFound: upload these blobs, then publish again.
            StoreUnavailable: the disk refused; nothing was acknowledged, and repeating it is safe.
        """
        check_name(name)
        tags = _distinct_tags(tags)
        check_annotations(annotations, base)
        paths = self.uploaded_files(files)
        with disk("publishing"):
            try:
                summary = inspect_adapter(paths, base, approximate_rank=approximation.rank if approximation else 0)
            except InvalidAdapter:
                self._writer.verify(files)  # if they were collected while they were read, they are not invalid
                raise
            base_name = base_model_name(annotations, configured=summary.base_model, base=base)
            artifact = build_artifact(
                files,
                summary=summary,
                base=base,
                base_name=base_name,
                annotations=annotations,
                lineage=lineage,
                approximation=approximation,
            )
            if validate_only:
                self._writer.check_names(name, tags, artifact.content)
                return AdapterRecord.of(artifact.content, name=name, tags=tags), False
            return self._writer.add_adapter(artifact, name=name, tags=tags)

    def adopt(
        self,
        manifest: bytes,
        *,
        name: str,
        tags: Sequence[str],
        base: BaseShape | None = None,
        approve: Approve = approve_all,
    ) -> tuple[AdapterRecord, bool]:
        """Commits an adapter that was published elsewhere, its manifest byte for byte, and moves `tags` to it.

        Its blobs, the config and the card too, must have been uploaded. It may be of another base than `base`; if it
        is of that one, its files are held against it, as `publish` does. `approve` may refuse it then.

        Returns:
            The record, and whether `name` had no adapter of that digest before.

        Raises:
            InvalidAdapter, IncompatibleAdapter: the manifest is none of ours, or says what its files are not.
            InvalidReference, InvalidUpload, TagImmutable, QuotaExceeded, BlobNotFound, StoreUnavailable: as `publish`.
        """
        check_name(name)
        tags = _distinct_tags(tags)
        content = check_manifest(manifest)
        descriptors = blob_descriptors(manifest)
        with disk("adopting"):
            self._writer.verify(descriptors)
            paths = {file.file_name: self._blobs.path(file.digest) for file in descriptors}
            try:
                check_contents(content, paths, base)
            except InvalidAdapter:
                self._writer.verify(descriptors)  # if they were collected while they were read, they are not invalid
                raise
            approve(content, paths)
            artifact = Artifact(
                card=paths[CARD_FILE].read_bytes(),
                config=self._blobs.path(content.config_digest).read_bytes(),
                manifest=manifest,
            )
            return self._writer.add_adapter(artifact, name=name, tags=tags)

    def adopt_referrer(self, manifest: bytes) -> Referrer:
        """Keeps a document about an adapter that is here, its manifest byte for byte, as the latest of its type.

        Its document must have been uploaded.

        Raises:
            InvalidAdapter: the manifest is none of ours.
            AdapterNotFound, BlobCorrupt: no adapter has the digest of its subject, or that one's manifest is lost.
            InvalidUpload, BlobNotFound, StoreUnavailable: as `publish`.
        """
        referrer = check_referrer(manifest)
        self._content(referrer.subject)
        with disk("adopting a document"):
            self._writer.verify([referrer.document])
            self._writer.add_referrer(referrer, manifest, documents=[EMPTY_CONFIG])
        return referrer

    def uploaded_files(self, files: Sequence[FileDescriptor]) -> dict[str, Path]:
        """The files of an adapter that need not be published, by name, as paths of read-only verified blobs.

        Raises:
            InvalidReference, InvalidAdapter, InvalidUpload, BlobNotFound: as `publish`.
        """
        check_files(files)
        with disk("reading blobs"):
            self._writer.verify(files)
        return {file.file_name: self._blobs.path(file.digest) for file in files}

    def attach(
        self,
        digest: str,
        document: bytes,
        *,
        artifact_type: str,
        file_name: str,
        annotations: Mapping[str, str],
        outranked_by: Callable[[bytes], bool] | None = None,
    ) -> Referrer:
        """Keeps a document about an adapter as its latest of that type, as an OCI referrer; earlier ones stay.

        Attaching equal bytes again only makes them the latest. Documents of its type for which `outranked_by` holds
        stay later than it, in the same commit.

        Raises:
            InvalidDocument: its type, name, size or annotations, or a signature that is none.
            AdapterNotFound, BlobCorrupt: no adapter has that digest, or its manifest is lost.
            StoreUnavailable: the disk refused; nothing was acknowledged, and repeating it is safe.
        """
        self.check_writable()
        check_attachment(digest, document, artifact_type=artifact_type, file_name=file_name, annotations=annotations)
        self._content(check_digest(digest))
        with disk("attaching a document"):
            subject = self._index.manifest_document(digest)
            if subject is None:
                raise AdapterNotFound(f"no adapter {digest}")
            manifest = build_referrer(
                subject=digest,
                subject_bytes=len(subject),
                artifact_type=artifact_type,
                document=FileDescriptor(file_name, digest_of(document), len(document)),
                annotations=annotations,
            )
            referrer = read_referrer(manifest)
            self._writer.add_referrer(referrer, manifest, documents=[EMPTY_CONFIG, document], outranked_by=outranked_by)
        return referrer


def _distinct_tags(tags: Sequence[str]) -> list[str]:
    if len(tags) > MAX_TAGS_PER_PUBLISH:
        problem = f"tags: {len(tags)} given; expected at most {MAX_TAGS_PER_PUBLISH}"
        raise InvalidReference(problem, field="tags")
    with given_as("tags"):
        return list(dict.fromkeys(map(check_tag, tags)))
