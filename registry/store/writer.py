"""What changes a store when something is published: blobs on the disk first, then the manifest, then the index.

Nothing is acknowledged before all of it is durable, and repeating it is safe.
"""

from collections.abc import Callable, Sequence

from hotshoe.registry.digest import digest_of
from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt, BlobNotFound, InvalidUpload
from hotshoe.registry.manifest import AdapterContent, AdapterRecord, Artifact, FileDescriptor
from hotshoe.registry.referrer import Referrer, read_referrer
from hotshoe.registry.store.blobs import BlobStore
from hotshoe.registry.store.commits import Commits, move_tags
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.index_rows import ReferrerRow, StoredManifest
from hotshoe.registry.store.index_transaction import Transaction
from hotshoe.registry.store.layout import Layout
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.quotas import Quotas
from hotshoe.registry.store.tag_log import Move
from hotshoe.registry.store.tag_policy import TagPolicy


class StoreWriter:
    """Writes adapters, and documents about them, that have been checked."""

    def __init__(
        self,
        layout: Layout,
        *,
        locks: StoreLocks,
        index: Index,
        blobs: BlobStore,
        commits: Commits,
        policy: TagPolicy,
        quotas: Quotas,
    ) -> None:
        self._layout = layout
        self._locks = locks
        self._index = index
        self._blobs = blobs
        self._commits = commits
        self._policy = policy
        self._quotas = quotas

    def verify(self, files: Sequence[FileDescriptor]) -> None:
        """Verifies the blobs of uploaded files.

        Raises:
            BlobNotFound: some are not here, or damaged: upload them.
            InvalidUpload: one has another size than was declared.
        """
        missing = []
        for file in files:
            try:
                size = self._blobs.verify(file.digest)
            except (BlobNotFound, BlobCorrupt):  # a corrupt one was set aside; a new upload heals it
                missing.append(file.digest)
                continue
            if size != file.size_bytes:
                raise InvalidUpload(f"{file.file_name}: has {size} bytes, was declared with {file.size_bytes}")
        if missing:
            raise BlobNotFound(missing)

    def check_names(self, name: str, tags: Sequence[str], content: AdapterContent) -> None:
        """Raises what publishing would."""
        self._check_quotas(name, content)
        for tag in tags:
            if (row := self._index.by_tag(name, tag)) is not None:
                self._policy.check(name, tag, row.digest, content.digest)

    def _check_quotas(self, name: str, content: AdapterContent) -> None:
        size = content.size_bytes
        self._quotas.check(name, content.digest, size_bytes=size, stored=self._index.named_like)

    def add_adapter(self, artifact: Artifact, *, name: str, tags: Sequence[str]) -> tuple[AdapterRecord, bool]:
        """Commits an adapter whose files are here, and moves tags to it; says whether the name had no such bytes.

        Raises:
            TagImmutable, QuotaExceeded: it may not; nothing has changed but for blobs that nothing names.
            BlobNotFound: a file was collected meanwhile.
        """
        content = artifact.content
        created = False

        def change(transaction: Transaction) -> list[Move]:
            nonlocal created
            self._check_quotas(name, content)
            manifest = StoredManifest(
                content.digest, len(artifact.manifest), content.kind, artifact.manifest, content.blobs
            )
            transaction.add_manifest(manifest)
            transaction.remember_verified(self._blobs.fingerprints([content.digest, *content.blobs]))
            created = transaction.add_adapter(name, content.digest)
            moves = [Move(name, None, None, content.digest)] if created else []
            return moves + move_tags(transaction, name=name, tags=tags, digest=content.digest, policy=self._policy)

        with self._locks.publishing():
            self._store([artifact.card, artifact.config], manifest=artifact.manifest, needed=content.blobs)
            self._commits.commit(change)
            row = self._index.by_digest(name, content.digest)
        assert row is not None, "committed above, and nothing is collected while publishing"
        return AdapterRecord.of(content, name=name, tags=row.tags), created

    def add_referrer(
        self,
        referrer: Referrer,
        manifest: bytes,
        *,
        documents: Sequence[bytes],
        outranked_by: Callable[[bytes], bool] | None = None,
    ) -> None:
        """Commits a document about an adapter as its latest, but for those of its type by which it is outranked.

        `documents` are those of its blobs that may not be here.

        Raises:
            AdapterNotFound: the adapter was collected meanwhile.
            BlobNotFound: a blob was.
        """
        kind = referrer.artifact_type

        def change(transaction: Transaction) -> list[Move]:
            if not transaction.has_manifest(referrer.subject):  # it was collected meanwhile
                raise AdapterNotFound(f"no adapter {referrer.subject}")
            transaction.add_manifest(StoredManifest(referrer.digest, len(manifest), kind, manifest, referrer.blobs))
            transaction.remember_verified(self._blobs.fingerprints([referrer.digest, *referrer.blobs]))
            listed = self._index.referrers(subject=referrer.subject, artifact_type=kind) if outranked_by else []
            above = [row for row in listed if outranks(row)]
            for row in (ReferrerRow(referrer.digest, referrer.subject, kind, len(manifest)), *above):
                transaction.add_referrer(row)
            return []

        def outranks(row: ReferrerRow) -> bool:
            document = None if row.digest == referrer.digest else self._document_of(row)
            return bool(document is not None and outranked_by and outranked_by(document))

        with self._locks.publishing():
            self._store(documents, manifest=manifest, needed=referrer.blobs)
            self._commits.commit(change)

    def _document_of(self, row: ReferrerRow) -> bytes | None:
        """What a referrer says; None if that is damaged or lost. Notes nothing of that: a transaction is under way."""
        manifest = self._index.manifest_document(row.digest)
        if manifest is None:
            return None
        blob = read_referrer(manifest).document
        try:
            with self._blobs.open(blob.digest) as file:
                document = file.read(blob.size_bytes + 1)
        except (BlobCorrupt, BlobNotFound):
            return None
        return document if digest_of(document) == blob.digest else None

    def _store(self, documents: Sequence[bytes], *, manifest: bytes, needed: Sequence[str]) -> None:
        """Makes documents durable, then the manifest that names them; `needed` are all the blobs that it names."""
        self._layout.check_sound()
        for document in documents:
            self._blobs.put(document)
        for digest in needed:  # none may have been collected since it was checked
            self._blobs.freshen(digest)
        self._layout.sync_blobs()
        self._blobs.put(manifest)
        self._layout.sync_blobs()
