"""The adapter registry on a local disk: publish, resolve, tag and list. Knows nothing of gRPC or of requests.

A publication becomes visible and durable in this order: blobs, their directory, the manifest, the directory again,
the index's transaction, tags.log, and index.json if that is small; only then is it acknowledged. Collecting garbage is
the same backwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from hotshoe.registry.adoption import Approve, approve_all, check_contents, check_manifest, check_referrer
from hotshoe.registry.attachment import check_attachment
from hotshoe.registry.blobs import BlobStore
from hotshoe.registry.commits import Commits
from hotshoe.registry.digest import check_digest, digest_of
from hotshoe.registry.errors import (
    AdapterNotFound,
    BlobCorrupt,
    BlobNotFound,
    InvalidAdapter,
    InvalidReference,
    StoreUnavailable,
)
from hotshoe.registry.export import Export
from hotshoe.registry.formats.base import BaseShape
from hotshoe.registry.formats.kind import inspect_adapter
from hotshoe.registry.formats.lowered import Approximation
from hotshoe.registry.fsck import FsckReport, check_blobs
from hotshoe.registry.garbage import DEFAULT_GRACE_SECONDS, CollectedAdapter, Garbage, GarbageReport
from hotshoe.registry.index import AdapterRow
from hotshoe.registry.layout import Layout, disk
from hotshoe.registry.leases import DEFAULT_LEASE_SECONDS, Leases
from hotshoe.registry.locks import StoreLocks
from hotshoe.registry.manifest import (
    CARD_FILE,
    AdapterContent,
    AdapterRecord,
    Artifact,
    FileDescriptor,
    Lineage,
    NotAnAdapter,
    blob_descriptors,
    build_artifact,
    read_manifest,
)
from hotshoe.registry.page_token import filters_digest, make_page_token, read_page_token
from hotshoe.registry.publication import base_model_name, check_annotations, check_files
from hotshoe.registry.quotas import Quota, Quotas
from hotshoe.registry.recovery import recover
from hotshoe.registry.reference import AdapterRef, check_name, check_tag
from hotshoe.registry.referrer import EMPTY_CONFIG, Referrer, build_referrer, read_referrer
from hotshoe.registry.reserve import Reserve
from hotshoe.registry.tag_log import LoggedMove, TagLog
from hotshoe.registry.tag_policy import TagPolicy
from hotshoe.registry.tags import Tags
from hotshoe.registry.uploads import Upload, Uploads
from hotshoe.registry.views import Views
from hotshoe.registry.writer import StoreWriter

__all__ = [
    "AdapterRecord",
    "CollectedAdapter",
    "FileDescriptor",
    "FsckReport",
    "GarbageReport",
    "LoggedMove",
    "Quota",
    "Referrer",
    "Registry",
    "StoreStats",
    "Upload",
]

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
MAX_TAGS_PER_PUBLISH = 32
_CACHED_MANIFESTS = 4096


@dataclass(frozen=True, slots=True)
class StoreStats:
    """How much a store holds; `uploads` are under way or interrupted."""

    adapters: int
    tags: int
    blobs: int
    blob_bytes: int
    uploads: int


class Registry:
    """An open store. Every method is synchronous and may be called from any thread; several processes may have one
    store open. Wants a local disk: the locks and SQLite's log are not safe on network file systems.

    Args:
        root: the store's directory; made if it is missing, recovered if it was left in the middle of something.
        max_blob_bytes: larger uploads are refused.
        upload_ttl_seconds: uploads that nobody wrote to for so long are removed.
        mutable_tags: let version tags (v1, 1.2.3) move as others do.
        quotas: what may be published under names that begin so, or "*" in all.
        reserve_bytes: room that is kept aside, so that garbage can be collected on a full disk.

    Raises:
        StoreUnavailable: the directory is something else, damaged beyond recovery, or not readable and writable.
    """

    def __init__(
        self,
        root: Path,
        *,
        max_blob_bytes: int = 512 << 20,
        upload_ttl_seconds: float = 24 * 3600.0,
        mutable_tags: bool = False,
        quotas: Mapping[str, Quota] | None = None,
        reserve_bytes: int = 0,
    ) -> None:
        self._layout = Layout(root.absolute())
        self._locks = StoreLocks(self._layout.root)
        log = TagLog(self._layout)
        try:
            with disk("cannot be opened"):
                self._layout.create()
                self._index = recover(self._layout, locks=self._locks, log=log)
        except StoreUnavailable as error:
            raise StoreUnavailable(f"registry {root}: {error}") from error
        self._export = Export(self._layout, locks=self._locks, index=self._index, log=log)
        self._commits = Commits(self._layout, locks=self._locks, index=self._index, log=log, export=self._export)
        self._blobs = BlobStore(self._layout, self._index)
        policy = TagPolicy(mutable=mutable_tags)
        self._tags = Tags(locks=self._locks, index=self._index, commits=self._commits, log=log, policy=policy)
        self._leases = Leases(self._layout)
        self._views = Views(self._layout, self._locks)
        reserve = Reserve(self._layout.root, reserve_bytes)
        reserve.keep()
        self._garbage = Garbage(
            self._layout,
            locks=self._locks,
            index=self._index,
            blobs=self._blobs,
            commits=self._commits,
            log=log,
            reserve=reserve,
        )
        self._uploads = Uploads(
            self._layout,
            blobs=self._blobs,
            locks=self._locks,
            max_blob_bytes=max_blob_bytes,
            ttl_seconds=upload_ttl_seconds,
        )
        # Manifests never change, so what was read of one stays true.
        self._content = lru_cache(maxsize=_CACHED_MANIFESTS)(self._read_content)
        self._writer = StoreWriter(
            self._layout,
            locks=self._locks,
            index=self._index,
            blobs=self._blobs,
            commits=self._commits,
            policy=policy,
            quotas=Quotas(quotas or {}, self._stored_size),
        )
        with disk("removing old uploads"):
            self._uploads.reap()

    def close(self) -> None:
        """Lets go of the index. Uploads that were interrupted stay for a later `open_upload`."""
        with suppress(StoreUnavailable), disk("exporting index.json"):  # else the next open does it
            self._export.close()
        self._leases.close()
        self._index.close()

    # Uploading and publishing.

    def missing_blobs(self, digests: Sequence[str]) -> list[str]:
        """Those of `digests` that must be uploaded, each once, in order. The others are touched, and so kept a while.

        Raises:
            InvalidReference: one is not a digest.
        """
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
        return self._uploads.open(blob)

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
                rank = approximation.rank if approximation else 0
                summary = inspect_adapter(paths, base, approximate_rank=rank)
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

    # Documents about adapters.

    def attach(
        self, digest: str, document: bytes, *, artifact_type: str, file_name: str, annotations: Mapping[str, str]
    ) -> Referrer:
        """Keeps a document about an adapter as its latest of that type, as an OCI referrer; earlier ones stay.

        Attaching equal bytes again only makes them the latest.

        Raises:
            InvalidDocument: its type, name, size or annotations, or a signature that is none.
            AdapterNotFound, BlobCorrupt: no adapter has that digest, or its manifest is lost.
            StoreUnavailable: the disk refused; nothing was acknowledged, and repeating it is safe.
        """
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
            self._writer.add_referrer(referrer, manifest, documents=[EMPTY_CONFIG, document])
        return referrer

    def referrers(self, digest: str, artifact_type: str = "") -> list[Referrer]:
        """The documents about an adapter, of one type or of all, the latest first. `read_blob` reads them.

        Raises:
            InvalidReference: that is no digest.
        """
        with disk("reading referrers"):
            rows = self._index.referrers(subject=check_digest(digest), artifact_type=artifact_type)
            documents = [self._index.manifest_document(row.digest) for row in reversed(rows)]
        return [read_referrer(document) for document in documents if document is not None]

    # Names and tags.

    def resolve(self, reference: str) -> AdapterRecord:
        """The adapter that "name", "name:tag" or "name@sha256:<hex>" means now.

        Raises:
            InvalidReference: it is none of these.
            AdapterNotFound: nothing has that name, tag or digest.
            BlobCorrupt: it was there, but its manifest is lost.
        """
        ref = AdapterRef.parse(reference)
        with disk("resolving"):
            if ref.digest is not None:
                row = self._index.by_digest(ref.name, ref.digest)
            else:
                row = self._index.by_tag(ref.name, ref.tag or "")
        if row is None:
            raise AdapterNotFound(f"no adapter {ref}")
        return self._record(row)

    def adapter_record(self, digest: str) -> AdapterRecord:
        """The adapter of that digest, under the name that it was published by last.

        Raises:
            InvalidReference, AdapterNotFound, BlobCorrupt: as `resolve`.
        """
        check_digest(digest)
        with disk("resolving"):
            row = self._index.latest_of(digest)
        if row is None:
            raise AdapterNotFound(f"no adapter {digest}")
        return self._record(row)

    def adapter_names(self, digest: str) -> Sequence[str]:
        """Every name that has the adapter of that digest; none if nothing has it.

        Raises:
            InvalidReference: that is no digest.
        """
        with disk("resolving"):
            return self._index.names_of(check_digest(digest))

    def list(
        self, *, page_size: int = 0, page_token: str = "", name_contains: str = "", kind: str = ""
    ) -> tuple[list[AdapterRecord], str]:
        """A page of adapters, the latest published first, and the token of the next page ("" after the last).

        Args:
            page_size: 0 means 100; more than 1000 means 1000.
            page_token: from an earlier call with the same filters.
            name_contains: a part of the name; empty for all.
            kind: PEFT's peft_type; empty for all.

        Raises:
            InvalidReference: the size is negative, or the token is not from such a call.
        """
        if page_size < 0:
            raise InvalidReference(f"page_size {page_size}: expected 0 or more")
        limit = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        filters = filters_digest(name_contains, kind)
        before = read_page_token(page_token, filters=filters) if page_token else None
        with disk("listing"):
            rows = self._index.page(before=before, limit=limit + 1, name_contains=name_contains, kind=kind)
            token = make_page_token(rows[limit - 1].sequence, filters=filters) if len(rows) > limit else ""
        return list(self._records(rows[:limit])), token

    def update_tag(self, name: str, tag: str, digest: str, expected_digest: str) -> AdapterRecord:
        """Moves a tag to `digest` if it points at `expected_digest` ("": if there is no such tag).

        Raises:
            InvalidReference: a name, tag or digest is malformed.
            AdapterNotFound: `name` has no adapter of that digest.
            TagMoved: the tag points elsewhere.
            TagImmutable: the tag is a version, and is taken.
        """
        expected = check_digest(expected_digest) if expected_digest else None
        with disk("moving a tag"):
            row = self._tags.move(name, tag, digest, expected)
        return self._record(row)

    def delete_tag(self, name: str, tag: str) -> None:
        """Removes a tag; what it pointed at is still found by digest, until it is collected.

        Raises:
            InvalidReference: the name or the tag is malformed.
            AdapterNotFound: there is no such tag.
        """
        with disk("deleting a tag"):
            self._tags.remove(name, tag)

    def roll_back_tag(self, name: str, tag: str) -> tuple[AdapterRecord, str | None]:
        """Moves a tag back to where it pointed before its latest move, or its removal; doing it again undoes that.

        Returns:
            The adapter that it points at now, and the digest that it pointed at until now.

        Raises:
            InvalidReference: the name or the tag is malformed.
            AdapterNotFound: there never was such a tag, it never moved, or what it pointed at has been collected.
            TagImmutable: it is a version.
            TagMoved: somebody moved it meanwhile.
        """
        with disk("rolling back a tag"):
            row, previous = self._tags.roll_back(name, tag)
        return self._record(row), previous

    def tag_history(self, name: str, tag: str = "", *, limit: int = MAX_PAGE_SIZE) -> Sequence[LoggedMove]:
        """What became of a name's tags, or of one, the latest first: moves, publications, and what was collected.

        Raises:
            InvalidReference: the name or the tag is malformed.
        """
        with disk("reading the log"):
            return self._tags.history(name, tag, limit=limit)

    # What is kept, and what goes.

    def lease(self, digests: Sequence[str], *, holder: str, ttl_seconds: float = DEFAULT_LEASE_SECONDS) -> None:
        """Keeps adapters from being collected while `holder` uses them; leasing them again extends that.

        Raises:
            AdapterNotFound: one is not here; nothing is leased.
            InvalidReference: a digest is malformed, the holder has no name, or the time is not above 0.
        """
        with disk("leasing"):
            self._leases.take(digests, holder=holder, ttl_seconds=ttl_seconds)

    def renew_leases(self, holder: str, *, ttl_seconds: float = DEFAULT_LEASE_SECONDS) -> int:
        """Extends all leases of a holder; returns how many it has."""
        with disk("renewing leases"):
            return self._leases.renew(holder, ttl_seconds=ttl_seconds)

    def release_leases(self, holder: str, digests: Sequence[str] | None = None) -> None:
        """Ends a holder's leases: of some adapters, or all. Those that it does not have are fine."""
        with disk("releasing leases"):
            self._leases.release(holder, digests)

    def view(self, digest: str) -> Path:
        """A directory with the files of an adapter, as hard links to its blobs, under the names they were published by.

        It stays, and keeps the adapter from being collected, until `unview`.

        Raises:
            AdapterNotFound, BlobCorrupt, InvalidReference: as `adapter_files`.
            StoreUnavailable: the disk refused.
        """
        files = self.adapter_files(digest)
        with disk("making a view"), self._locks.publishing():
            if self._index.latest_of(digest) is None:  # it was collected meanwhile
                raise AdapterNotFound(f"no adapter {digest}")
            return self._views.make(digest, files)

    def unview(self, digest: str) -> bool:
        """Removes an adapter's view; whether there was one."""
        with disk("removing a view"):
            return self._views.remove(check_digest(digest))

    def collect_garbage(
        self, *, grace_seconds: float = DEFAULT_GRACE_SECONDS, dry_run: bool = False, retain_parents: bool = True
    ) -> GarbageReport:
        """Removes adapters that no tag, lease or view reaches, what was said about them, and blobs of none.

        What was published, uploaded, or left by a tag within the grace stays. What goes lies in .trash/ until the
        next collection.

        Args:
            dry_run: tell what would go, and change nothing.
            retain_parents: keep what kept adapters were made from.

        Raises:
            StoreUnavailable: the disk refused; collecting again goes on where this ended.
        """
        with disk("collecting garbage"):
            run = self._garbage.find if dry_run else self._garbage.collect
            return run(grace_seconds=grace_seconds, retain_parents=retain_parents)

    def children(self, digest: str) -> Sequence[AdapterRecord]:
        """The adapters whose manifests name that one as a parent, the oldest first.

        Raises:
            InvalidReference: that is no digest.
        """
        with disk("looking for children"):
            rows = self._index.that_name(check_digest(digest))
        records = self._records(rows)
        return [record for record in records if digest in {parent.digest for parent in record.parents}]

    def names(self) -> Sequence[str]:
        """Every name that has an adapter, sorted."""
        with disk("listing names"):
            return self._index.names()

    def tags(self, name: str) -> Mapping[str, str]:
        """The tags of a name, and the digests that they point at.

        Raises:
            InvalidReference: the name is malformed.
            AdapterNotFound: nothing has that name.
        """
        with disk("listing tags"):
            tags = self._index.tags_of(check_name(name))
            if not tags and not self._index.has_name(name):
                raise AdapterNotFound(f"no adapter {name}")
        return tags

    # Reading content.

    def manifest(self, name: str, digest: str) -> bytes:
        """The manifest of an adapter of that name, or of a document about one, byte for byte.

        Raises:
            InvalidReference: the name or the digest is malformed.
            AdapterNotFound: the name has no such manifest.
            BlobCorrupt: it had, but the manifest is lost.
        """
        with disk("reading a manifest"):
            if not self._index.is_manifest_of(check_name(name), check_digest(digest)):
                raise AdapterNotFound(f"no manifest {name}@{digest}")
            document = self._index.manifest_document(digest)
        if document is None or digest_of(document) != digest:
            raise BlobCorrupt(f"manifest {digest} is lost; publishing its adapter again heals it")
        return document

    def adapter_files(self, digest: str) -> dict[str, Path]:
        """The files of an adapter by name, as paths of read-only blobs whose bytes have been verified.

        Raises:
            AdapterNotFound: no adapter has that digest.
            BlobCorrupt: stored bytes are damaged or lost; publishing the adapter again heals it.
        """
        content = self._content(check_digest(digest))
        with disk("reading blobs"):
            for file in content.files:
                self._verify_stored(file.digest)
        return {file.file_name: self._blobs.path(file.digest) for file in content.files}

    def read_blob(self, digest: str, offset: int = 0) -> BinaryIO:
        """Opens a blob of a published adapter at `offset`, verified. The caller closes it.

        Raises:
            AdapterNotFound: no adapter has such a blob.
            BlobCorrupt: stored bytes are damaged or lost.
            InvalidReference: `offset` is not within the blob.
        """
        check_digest(digest)
        with disk("reading blobs"):
            if not self._index.is_used(digest):
                raise AdapterNotFound(f"no adapter has a blob {digest}")
            size = self._verify_stored(digest)
            if not 0 <= offset <= size:
                raise InvalidReference(f"offset {offset}: expected 0 to {size}")
            file = self._blobs.open_verified(digest)
            file.seek(offset)
            return file

    def stats(self) -> StoreStats:
        """Counts; takes time in proportion to the number of blobs."""
        with disk("counting"):
            adapters, tags = self._index.counts()
            sizes = [size for _, size in self._blobs.scan()]
            return StoreStats(adapters, tags, len(sizes), sum(sizes), self._uploads.count())

    def fsck(self) -> FsckReport:
        """Reads and hashes every blob. What is corrupt goes to quarantine; a new upload heals it."""
        with disk("checking the store"):
            return check_blobs(self._blobs, self._index)

    def _verify_stored(self, digest: str) -> int:
        for _ in range(2):
            with suppress(BlobNotFound):
                return self._blobs.verify(digest)
            if not self._index.is_used(digest):
                raise AdapterNotFound(f"no adapter has a blob {digest}: it was collected")
            # Or it was collected when it was looked for, and has been published again: then it is there.
        raise BlobCorrupt(f"blob {digest} is lost; publishing its adapter again heals it")

    def _stored_size(self, digest: str) -> int:
        try:
            return self._content(digest).size_bytes
        except BlobCorrupt:  # its manifest is lost, and nobody knows
            return 0

    def _records(self, rows: Iterable[AdapterRow]) -> Sequence[AdapterRecord]:
        """Those that have not been collected meanwhile."""
        records = []
        for row in rows:
            with suppress(AdapterNotFound):
                records.append(self._record(row))
        return records

    def _record(self, row: AdapterRow) -> AdapterRecord:
        return AdapterRecord.of(self._content(row.digest), name=row.name, tags=row.tags)

    def _read_content(self, digest: str) -> AdapterContent:
        with disk("reading a manifest"):
            document = self._index.manifest_document(digest)
            if document is not None:
                try:
                    return read_manifest(document)
                except NotAnAdapter:  # a referrer's
                    raise AdapterNotFound(f"no adapter {digest}") from None
            if self._index.has_manifest(digest):
                raise BlobCorrupt(f"manifest {digest} is lost; publishing its adapter again heals it")
        raise AdapterNotFound(f"no adapter {digest}")


def _distinct_tags(tags: Sequence[str]) -> list[str]:
    if len(tags) > MAX_TAGS_PER_PUBLISH:
        raise InvalidReference(f"tags: {len(tags)} given; expected at most {MAX_TAGS_PER_PUBLISH}")
    return list(dict.fromkeys(map(check_tag, tags)))
