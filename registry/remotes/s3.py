"""A bucket as a remote: blobs and manifests by digest, tags as small objects that are compared and set.

blobs/sha256/<hex>                     blobs and manifests; made once, never replaced
refs/<name>/<tag>                      the digest that a tag points at
referrers/<subject's hex>/<hex>        that a manifest is about another; empty

Credentials are Amazon's usual ones: the environment, a web identity, or the machine's role.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, BinaryIO, NoReturn

from hotshoe.registry.digest import digest_hex, digest_of, is_digest
from hotshoe.registry.errors import AdapterNotFound, RemoteDamaged, RemoteRefused, RemoteUnavailable, TagMoved
from hotshoe.registry.manifest import FileDescriptor
from hotshoe.registry.remotes.patience import DEFAULT_PATIENCE, Patience
from hotshoe.registry.remotes.remote import CHUNK_BYTES, MAX_MANIFEST_BYTES, MAX_REFERRERS, Sent
from hotshoe.registry.remotes.remote_url import RemoteUrl

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta, PutMode

# Of one request; what is not larger is made in one, and only if nothing is there. No part but the last may be smaller.
_PART_BYTES = 5 << 20
_PARTS_AT_ONCE = 3
_SPAN_BYTES = 32 << 20  # of a blob that comes by one request: its timeout is for all of an answer
_STREAM_BYTES = 1 << 20
_DIGEST_BYTES = 71
_MAX_LISTED = 100_000
_TAG_ATTEMPTS = 5  # to move a tag that others move at the same time


class S3Remote:
    """A bucket, or what is below a prefix of it. Needs obstore.

    Raises:
        RemoteRefused: obstore is not installed, or does not take the URL's options.
    """

    def __init__(self, url: RemoteUrl, *, patience: Patience = DEFAULT_PATIENCE) -> None:
        self.url = url
        self.patience = patience
        try:
            import obstore
            from obstore import exceptions
            from obstore.store import S3Store
        except ImportError as error:
            raise RemoteRefused(str(url), "needs obstore: pip install 'hotshoe[s3]'") from error
        self._obstore = obstore
        self._errors = exceptions
        options = {} if "endpoint" in url.options else {"virtual_hosted_style_request": True}
        try:
            self._store = S3Store(
                url.host,
                prefix=url.prefix or None,
                client_options={
                    "timeout": timedelta(seconds=patience.seconds_for(_SPAN_BYTES)),
                    "read_timeout": timedelta(seconds=patience.silence_seconds),
                    "connect_timeout": timedelta(seconds=patience.connect_seconds),
                    "allow_http": not url.secure,
                },
                retry_config={
                    "max_retries": patience.attempts - 1,
                    "retry_timeout": timedelta(seconds=patience.exchange_seconds),
                },
                **{"region": "us-east-1", **url.options, **options},  # type: ignore[arg-type]
            )
        except exceptions.BaseError as error:
            self._refuse("opening it", error)

    def close(self) -> None:
        """Connections end by themselves."""

    # Reading.

    def resolve(self, name: str, tag: str) -> str:
        return self._tag(name, tag)[0]

    def read_manifest(self, name: str, digest: str) -> bytes:
        what = f"manifest {name}@{digest}"
        with self._told(what):
            size = self._obstore.head(self._store, _blob_key(digest))["size"]
        if size > MAX_MANIFEST_BYTES:
            raise RemoteDamaged(str(self.url), f"{what}: {size} bytes; expected at most {MAX_MANIFEST_BYTES}")
        document = self._range(_blob_key(digest), 0, size, what)
        if digest_of(document) != digest:
            raise RemoteDamaged(str(self.url), f"{what}: its bytes have digest {digest_of(document)}")
        return document

    @contextmanager
    def open_blob(self, name: str, blob: FileDescriptor, offset: int) -> Iterator[Iterator[bytes]]:
        self._check_size(blob)
        yield self._parts(blob, offset)

    def has_blob(self, name: str, blob: FileDescriptor) -> bool:
        try:
            self._check_size(blob)
        except (AdapterNotFound, RemoteDamaged):
            return False
        return True

    def reads_blob(self, name: str, blob: FileDescriptor) -> bool:
        try:
            self._check_size(blob)
            return blob.size_bytes == 0 or len(self._range(_blob_key(blob.digest), 0, 1, _described(blob))) == 1
        except (AdapterNotFound, RemoteDamaged):
            return False

    def list_tags(self, name: str) -> list[str]:
        prefix = f"refs/{name}"
        objects = self._listed(prefix, f"tags of {name}")
        keys = [one["path"].removeprefix(f"{prefix}/") for one in objects]
        tags = sorted(key for key in keys if "/" not in key)  # others are of names below this one
        if not tags:
            raise AdapterNotFound(f"{self.url}: no tags of {name}")
        return tags

    def list_referrers(self, name: str, subject: str) -> list[str]:
        objects = self._listed(_referrer_key(subject), f"referrers of {name}@{subject}")
        objects.sort(key=lambda one: (one["last_modified"], one["path"]))
        digests = [f"sha256:{one['path'].rpartition('/')[2]}" for one in objects]
        return [digest for digest in digests if is_digest(digest)][-MAX_REFERRERS:]

    # Writing.

    def put_blob(self, name: str, blob: FileDescriptor, source: BinaryIO, *, sent: Sent, mount_from: str = "") -> None:
        source.seek(0)
        if blob.size_bytes <= _PART_BYTES:
            self._create(_blob_key(blob.digest), source.read(), _described(blob))
        else:  # which S3 does not do only if nothing is there; the bytes are the same, whoever is last
            key, chunks = _blob_key(blob.digest), _chunks(source, sent)
            with self._told(_described(blob)):
                self._obstore.put(self._store, key, chunks, chunk_size=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE)
        sent(blob.size_bytes)

    def put_manifest(self, name: str, manifest: bytes) -> None:
        self._create(_blob_key(digest_of(manifest)), manifest, f"manifest {name}@{digest_of(manifest)}")

    def set_tag(self, name: str, tag: str, manifest: bytes, *, expected: str | None = None) -> None:
        digest = digest_of(manifest)
        for _ in range(_TAG_ATTEMPTS):
            try:
                actual, version = self._tag(name, tag)
            except AdapterNotFound:
                actual, version = "", None
            if expected is not None and actual != expected:
                raise TagMoved(f"{self.url}//{name}:{tag}", expected or None, actual or None)
            if actual == digest:
                return
            if self._swap(f"refs/{name}/{tag}", digest.encode(), version):
                return
        raise RemoteUnavailable(str(self.url), f"tag {name}:{tag}: others move it at the same time")

    def put_referrer(self, name: str, subject: str, manifest: bytes) -> None:
        self.put_manifest(name, manifest)
        key = f"{_referrer_key(subject)}/{digest_hex(digest_of(manifest))}"
        self._swap(key, b"", None)  # or it is there already

    def _tag(self, name: str, tag: str) -> tuple[str, str | None]:
        """Where a tag points, and the version of the object that says so."""
        what = f"tag {name}:{tag}"
        with self._told(what):
            answer = self._obstore.get(self._store, f"refs/{name}/{tag}")
            if answer.meta["size"] != _DIGEST_BYTES:
                raise RemoteDamaged(str(self.url), f"{what}: {answer.meta['size']} bytes, expected a digest")
            text = bytes(answer.bytes()).decode("ascii", "replace")
        if not is_digest(text):
            raise RemoteDamaged(str(self.url), f"{what}: {ascii(text)}, expected a digest")
        return text, answer.meta["e_tag"]

    def _swap(self, key: str, data: bytes, version: str | None) -> bool:
        """Replaces that version of an object; None: makes it. False if another was faster."""
        mode: PutMode = "create" if version is None else {"e_tag": version}
        try:
            with self._told(key):
                self._obstore.put(self._store, key, data, mode=mode, use_multipart=False)
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
            return False
        return True

    def _create(self, key: str, data: bytes, what: str) -> None:
        if not self._swap(key, data, None):
            with self._told(what):
                size = self._obstore.head(self._store, key)["size"]
            if size != len(data):
                raise RemoteDamaged(str(self.url), f"{what}: {size} other bytes lie in its place")

    def _check_size(self, blob: FileDescriptor) -> None:
        with self._told(_described(blob)):
            size = self._obstore.head(self._store, _blob_key(blob.digest))["size"]
        if size != blob.size_bytes:
            raise RemoteDamaged(str(self.url), f"{_described(blob)}: {size} of {blob.size_bytes} bytes")

    def _parts(self, blob: FileDescriptor, offset: int) -> Iterator[bytes]:
        what = _described(blob)
        for start in range(offset, blob.size_bytes, _SPAN_BYTES):
            end = min(start + _SPAN_BYTES, blob.size_bytes)
            received = 0
            with self._told(what):
                options: GetOptions = {"range": (start, end)}
                answer = self._obstore.get(self._store, _blob_key(blob.digest), options=options)
                for chunk in answer.stream(_STREAM_BYTES):
                    received += len(chunk)
                    if received > end - start:
                        break
                    yield bytes(chunk)
            if received != end - start:
                raise RemoteDamaged(str(self.url), f"{what}: other than the {end - start} bytes asked for")

    def _range(self, key: str, start: int, end: int, what: str) -> bytes:
        if start == end:
            return b""
        with self._told(what):
            data = bytes(self._obstore.get_range(self._store, key, start=start, end=end))
        if len(data) != end - start:
            raise RemoteDamaged(str(self.url), f"{what}: {len(data)} bytes, asked for {end - start}")
        return data

    def _listed(self, prefix: str, what: str) -> "list[ObjectMeta]":
        objects: list[ObjectMeta] = []
        with self._told(what):
            for page in self._obstore.list(self._store, prefix, chunk_size=1000):
                objects.extend(page)
                if len(objects) > _MAX_LISTED:
                    raise RemoteDamaged(str(self.url), f"{what}: more than {_MAX_LISTED}")
        return objects

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Turns obstore's errors into ours, but for those of a lost race."""
        try:
            yield
        except (self._errors.AlreadyExistsError, self._errors.PreconditionError):
            raise
        except (self._errors.NotFoundError, FileNotFoundError) as error:
            raise AdapterNotFound(f"{self.url}: no {what}") from error
        except self._errors.BaseError as error:
            self._refuse(what, error)

    def _refuse(self, what: str, error: Exception) -> NoReturn:
        kind: Callable[[str, str], RemoteRefused | RemoteUnavailable] = RemoteUnavailable
        if isinstance(error, self._errors.PermissionDeniedError | self._errors.UnauthenticatedError):
            kind = RemoteRefused
        reason = str(error).partition("\n")[0]
        raise kind(str(self.url), f"{what}: {type(error).__name__}: {ascii(reason[:200])[1:-1]}") from error


def _described(blob: FileDescriptor) -> str:
    return f"blob {blob.digest} ({blob.file_name})"


def _blob_key(digest: str) -> str:
    return f"blobs/sha256/{digest_hex(digest)}"


def _referrer_key(subject: str) -> str:
    return f"referrers/{digest_hex(subject)}"


def _chunks(source: BinaryIO, sent: Sent) -> Iterator[bytes]:
    total = 0
    while chunk := source.read(CHUNK_BYTES):
        yield chunk
        total += len(chunk)
        sent(total)
