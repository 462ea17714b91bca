"""A store, read: what names mean, and the verified bytes that they lead to. Changes nothing but what it heals."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from hotshoe.registry.digest import check_digest, digest_of
from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt, BlobNotFound, InvalidReference
from hotshoe.registry.manifest import AdapterContent, AdapterRecord, NotAnAdapter, read_manifest
from hotshoe.registry.reference import AdapterRef, check_name
from hotshoe.registry.referrer import Referrer, read_referrer
from hotshoe.registry.store.blobs import BlobStore
from hotshoe.registry.store.healing import BlobSource, Healing
from hotshoe.registry.store.index import Index
from hotshoe.registry.store.index_rows import AdapterRow
from hotshoe.registry.store.layout import Layout, disk
from hotshoe.registry.store.locks import StoreLocks
from hotshoe.registry.store.page_token import filters_digest, make_page_token, read_page_token

DEFAULT_PAGE_SIZE = 100
MAX_PAGE_SIZE = 1000
_CACHED_MANIFESTS = 4096
_MAX_TAGS_TOLD = 8  # of a name that lacks the one asked for


class StoreReader:
    """The part of `Registry` that reads."""

    def __init__(self, layout: Layout, *, locks: StoreLocks, index: Index) -> None:
        self._layout = layout
        self._locks = locks
        self._index = index
        self._blobs = BlobStore(layout, index)
        self._healing = Healing(layout, locks=locks, index=index, blobs=self._blobs)
        # Manifests never change, so what was read of one stays true.
        self._content = lru_cache(maxsize=_CACHED_MANIFESTS)(self._read_content)

    def heal_from(self, source: BlobSource) -> None:
        """From now on blobs that are found damaged or lost are fetched from there, while their reader waits."""
        self._healing.source = source

    @property
    def read_only(self) -> str:
        """Why nothing is written to the store from here; "" if it may be."""
        return self._layout.read_only

    def check_writable(self) -> None:
        """For those who would otherwise work long in vain. Raises StoreReadOnly if the store is only read."""
        self._layout.check_writable()

    # Content.

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
                raise InvalidReference(f"offset {offset}: expected 0 to {size}", field="offset")
            file = self._blobs.open_verified(digest)
            file.seek(offset)
            return file

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
            absent = "" if row else self._absent(ref)
        if row is None:
            raise AdapterNotFound(absent)
        return self._record(row)

    def _absent(self, ref: AdapterRef) -> str:
        """That nothing has that tag or digest, and what the name has instead."""
        if not self._index.has_name(ref.name):
            return f"no adapter {ref}: nothing has that name"
        tags = list(self._index.tags_of(ref.name))
        if not tags:
            return f"no adapter {ref}; {ref.name} has no tags"
        more = ", …" if len(tags) > _MAX_TAGS_TOLD else ""
        return f"no adapter {ref}; {ref.name} has the tags {', '.join(tags[:_MAX_TAGS_TOLD])}{more}"

    def adapter_record(self, digest: str) -> AdapterRecord:
        """The adapter of that digest, under the name that it was published by last, if it can be one with a tag.

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
            raise InvalidReference(f"page_size {page_size}: expected 0 or more", field="page_size")
        limit = min(page_size or DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE)
        filters = filters_digest(name_contains, kind)
        before = read_page_token(page_token, filters=filters) if page_token else None
        with disk("listing"):
            rows = self._index.page(before=before, limit=limit + 1, name_contains=name_contains, kind=kind)
            token = make_page_token(rows[limit - 1].sequence, filters=filters) if len(rows) > limit else ""
        return list(self._records(rows[:limit])), token

    def children(self, digest: str) -> Sequence[AdapterRecord]:
        """The adapters whose manifests name that one as a parent, the oldest first.

        Raises:
            InvalidReference: that is no digest.
        """
        with disk("looking for children"):
            rows = self._index.naming(check_digest(digest))
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

    def _verify_stored(self, digest: str) -> int:
        """Size in bytes of a stored blob, verified; one that is damaged or lost is healed first, if it can be."""
        try:
            return self._verify_here(digest)
        except BlobCorrupt as damage:
            self._healing.heal_for_reader(digest, damage)
        return self._verify_here(digest)

    def _verify_here(self, digest: str) -> int:
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
