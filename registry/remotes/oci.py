"""An OCI Distribution registry as a remote: https://github.com/opencontainers/distribution-spec

Its ways are those that real registries have, not those that the specification wishes for: no upload is resumed, what
HEAD says of a blob is not believed after a push, and referrers are kept under a tag where there is no API for them.
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple, TypeVar

import httpx

from hotshoe.registry.digest import digest_hex, digest_of, is_digest
from hotshoe.registry.errors import AdapterNotFound, RemoteDamaged, RemoteError, RemoteRefused
from hotshoe.registry.manifest import INDEX_TYPE, MALFORMED, MANIFEST_TYPE, FileDescriptor
from hotshoe.registry.remotes.oci_auth import Credentials
from hotshoe.registry.remotes.oci_http import Answer, OciHttp, OciRequest, ServerFailed, quoted
from hotshoe.registry.remotes.patience import DEFAULT_PATIENCE, Patience
from hotshoe.registry.remotes.remote import CHUNK_BYTES, MAX_MANIFEST_BYTES, MAX_REFERRERS, Sent
from hotshoe.registry.remotes.remote_url import RemoteUrl

_MANIFEST_TYPES = f"{MANIFEST_TYPE}, {INDEX_TYPE}"
_REFERRERS_TAG = re.compile(r"sha256-[0-9a-f]{64}(\.[a-z]+)?")  # with .sig and .att, older tools keep theirs
_TAGS_A_PAGE = 1000
_MAX_PAGES = 100
_NEXT_PAGE = re.compile(r'<([^>]+)>\s*;\s*rel="?next"?')

_T = TypeVar("_T")


class Capabilities(NamedTuple):
    """What a registry has shown that it can do; None: not seen yet."""

    referrers: bool | None = None  # its own API for them
    ranges: bool | None = None  # blobs from an offset
    mounts: bool | None = None  # blobs taken over from another name


class OciRemote:
    """A registry, or the part of it below a prefix.

    Args:
        credentials: by "host" or "host:port"; asked when the registry wants some.
    """

    def __init__(
        self,
        url: RemoteUrl,
        *,
        credentials: Callable[[str], Credentials | None] = lambda host: None,
        patience: Patience = DEFAULT_PATIENCE,
    ) -> None:
        self.url = url
        self.patience = patience
        self.capabilities = Capabilities()
        self._http = OciHttp(url, credentials=credentials, patience=patience)

    def close(self) -> None:
        self._http.close()

    # Reading.

    def resolve(self, name: str, tag: str) -> str:
        what = f"manifest {name}:{tag}"
        digest: str = self._read_manifest("HEAD", name, tag, what).headers.get("docker-content-digest", "")
        if not digest:
            digest = digest_of(self._read_manifest("GET", name, tag, what).body)
        if not is_digest(digest):
            raise RemoteDamaged(str(self.url), f"{what}: it calls its digest {ascii(digest[:80])}")
        return digest

    def read_manifest(self, name: str, digest: str) -> bytes:
        what = f"manifest {name}@{digest}"
        document = self._read_manifest("GET", name, digest, what).body
        if digest_of(document) != digest:
            raise RemoteDamaged(str(self.url), f"{what}: its bytes have digest {digest_of(document)}")
        return document

    @contextmanager
    def open_blob(self, name: str, blob: FileDescriptor, offset: int) -> Iterator[Iterator[bytes]]:
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._http.open(self._blob_request("GET", name, blob, headers=headers)) as response:
            skip = 0
            if offset:
                self.capabilities = self.capabilities._replace(ranges=response.status_code == 206)
                skip = offset if response.status_code == 200 else 0
            declared = response.headers.get("content-length")
            expected = blob.size_bytes - offset + skip
            if declared is not None and declared != str(expected):
                raise self._wrong_size(blob, f"{ascii(declared[:20])} of {expected}")
            yield self._bounded(response, blob, skip=skip, expected=expected)

    def has_blob(self, name: str, blob: FileDescriptor) -> bool:
        try:
            answer = self._http.read(self._blob_request("HEAD", name, blob), max_bytes=0)
        except AdapterNotFound:
            return False
        return answer.headers.get("content-length") in (None, str(blob.size_bytes))

    def reads_blob(self, name: str, blob: FileDescriptor) -> bool:
        if blob.size_bytes == 0:  # no first byte
            return self.has_blob(name, blob)
        request = self._blob_request("GET", name, blob, headers={"Range": "bytes=0-0"})
        try:
            with self._http.open(request) as response:
                return next((True for chunk in response.iter_raw() if chunk), False)
        except (AdapterNotFound, RemoteError):  # a length that is not followed by bytes breaks the connection
            return False

    def list_tags(self, name: str) -> list[str]:
        tags: set[str] = set()
        page = self._path(name, f"tags/list?n={_TAGS_A_PAGE}")
        for _ in range(_MAX_PAGES):
            request = OciRequest("GET", page, f"tags of {name}", self.url.repository(name))
            answer = self._http.read(request, max_bytes=MAX_MANIFEST_BYTES)
            tags.update(
                self._parsed(answer.body, request.what, lambda value: [str(tag) for tag in value["tags"] or ()])
            )
            link = _NEXT_PAGE.search(answer.headers.get("link", ""))
            if link is None:
                break
            page = self._http.next_url(answer, link[1], request.what)
        else:
            raise RemoteDamaged(str(self.url), f"tags of {name}: more than {_MAX_PAGES} pages")
        return sorted(tag for tag in tags if not _REFERRERS_TAG.fullmatch(tag))

    def list_referrers(self, name: str, subject: str) -> list[str]:
        listed = [descriptor["digest"] for descriptor in self._referrers(name, subject)]
        return list(dict.fromkeys(listed))[-MAX_REFERRERS:]

    # Writing.

    def put_blob(self, name: str, blob: FileDescriptor, source: BinaryIO, *, sent: Sent, mount_from: str = "") -> None:
        self._http.retried(lambda: self._put_once(name, blob, source, sent, mount_from))

    def put_manifest(self, name: str, manifest: bytes) -> None:
        self._put_manifest(name, digest_of(manifest), manifest, media_type=MANIFEST_TYPE)

    def set_tag(self, name: str, tag: str, manifest: bytes, *, expected: str | None = None) -> None:
        if expected is not None:
            raise RemoteRefused(str(self.url), f"tag {name}:{tag}: OCI registries cannot compare and set")
        self._put_manifest(name, tag, manifest, media_type=MANIFEST_TYPE)

    def put_referrer(self, name: str, subject: str, manifest: bytes) -> None:
        headers = self._put_manifest(name, digest_of(manifest), manifest, media_type=MANIFEST_TYPE)
        if "oci-subject" in headers:
            self.capabilities = self.capabilities._replace(referrers=True)
            return
        # Read, changed and written: another writer at the same time may be lost, as the specification admits.
        descriptors = self._fallback_referrers(name, subject)
        if all(descriptor["digest"] != digest_of(manifest) for descriptor in descriptors):
            index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [*descriptors, _descriptor(manifest)]}
            self._put_manifest(name, _referrers_tag(subject), json.dumps(index).encode(), media_type=INDEX_TYPE)

    def _put_once(self, name: str, blob: FileDescriptor, source: BinaryIO, sent: Sent, mount_from: str) -> None:
        """One session, one PUT: a session that broke is poisoned on real registries, and is left to expire."""
        what = f"upload of {blob.file_name} to {name}"
        query = f"?mount={quoted(blob.digest)}&from={quoted(self.url.repository(mount_from))}" if mount_from else ""
        target = self._path(name, f"blobs/uploads/{query}")
        repository = self.url.repository(name)
        session = self._http.read_once(OciRequest("POST", target, what, repository, accept=(201, 202)))
        if mount_from:
            self.capabilities = self.capabilities._replace(mounts=session.status == 201)
        if session.status == 201:  # taken over
            return sent(blob.size_bytes)
        location = self._http.next_url(session, session.headers.get("location", ""), what)
        separator = "&" if "?" in location else "?"
        request = OciRequest(
            "PUT",
            f"{location}{separator}digest={quoted(blob.digest)}",
            what,
            repository,
            accept=(201, 204),
            headers={"Content-Length": str(blob.size_bytes), "Content-Type": "application/octet-stream"},
            content=lambda: _chunks(source, sent),
            size_bytes=blob.size_bytes,
        )
        self._http.read_once(request)

    def _put_manifest(self, name: str, reference: str, document: bytes, *, media_type: str) -> httpx.Headers:
        request = OciRequest(
            "PUT",
            self._path(name, f"manifests/{quoted(reference)}"),
            f"manifest {name} as {reference}",
            self.url.repository(name),
            accept=(201,),
            headers={"Content-Type": media_type, "Content-Length": str(len(document))},
            content=lambda: iter((document,)),
        )
        headers = self._http.read(request, max_bytes=CHUNK_BYTES).headers
        stored = headers.get("docker-content-digest", digest_of(document))
        if stored != digest_of(document):
            raise RemoteDamaged(str(self.url), f"{request.what}: it stored {ascii(stored[:80])}")
        return headers

    def _read_manifest(self, method: str, name: str, reference: str, what: str) -> Answer:
        target = self._path(name, f"manifests/{quoted(reference)}")
        request = OciRequest(method, target, what, self.url.repository(name), headers={"Accept": _MANIFEST_TYPES})
        try:
            return self._http.read(request, max_bytes=MAX_MANIFEST_BYTES)
        except ServerFailed as error:
            if error.status == 500:  # so do mirrors answer for what they do not have
                raise AdapterNotFound(f"{self.url}: no {what} (it answered 500)") from error
            raise

    def _referrers(self, name: str, subject: str) -> list[dict[str, Any]]:
        if self.capabilities.referrers is not False:
            target = self._path(name, f"referrers/{quoted(subject)}")
            request = OciRequest("GET", target, f"referrers of {name}@{subject}", self.url.repository(name))
            try:
                answer = self._http.read(request, max_bytes=MAX_MANIFEST_BYTES)
            except (AdapterNotFound, RemoteRefused, ServerFailed):  # older registries answer this and that
                self.capabilities = self.capabilities._replace(referrers=False)
            else:
                if answer.headers.get("content-type", "").partition(";")[0] == INDEX_TYPE:
                    self.capabilities = self.capabilities._replace(referrers=True)
                    return self._parsed(answer.body, request.what, _descriptors)
        return self._fallback_referrers(name, subject)

    def _fallback_referrers(self, name: str, subject: str) -> list[dict[str, Any]]:
        what = f"referrers' tag of {name}@{subject}"
        try:
            document = self._read_manifest("GET", name, _referrers_tag(subject), what).body
        except AdapterNotFound:
            return []
        return self._parsed(document, what, _descriptors)

    def _bounded(self, response: httpx.Response, blob: FileDescriptor, *, skip: int, expected: int) -> Iterator[bytes]:
        received = 0
        for chunk in response.iter_raw():  # as they come: what is gathered is lost when the connection breaks
            received += len(chunk)
            if received > expected:
                raise self._wrong_size(blob, f"more than {expected}")
            yield chunk[max(0, skip - (received - len(chunk))) :]
        if received < expected:
            raise self._wrong_size(blob, f"{received} of {expected}")

    def _blob_request(
        self, method: str, name: str, blob: FileDescriptor, *, headers: dict[str, str] | None = None
    ) -> OciRequest:
        return OciRequest(
            method,
            self._path(name, f"blobs/{blob.digest}"),
            f"blob {blob.digest} ({blob.file_name}) of {name}",
            self.url.repository(name),
            accept=(200, 206) if headers else (200,),
            headers=headers or {},
            size_bytes=blob.size_bytes,
        )

    def _path(self, name: str, rest: str) -> str:
        return f"/v2/{self.url.repository(name)}/{rest}"

    def _parsed(self, document: bytes, what: str, read: Callable[[Any], _T]) -> _T:
        try:
            return read(json.loads(document))
        except MALFORMED as error:
            raise RemoteDamaged(str(self.url), f"{what}: {type(error).__name__}") from error

    def _wrong_size(self, blob: FileDescriptor, found: str) -> RemoteDamaged:
        return RemoteDamaged(str(self.url), f"blob {blob.digest} ({blob.file_name}): it sends {found} bytes")


def _chunks(source: BinaryIO, sent: Sent) -> Iterator[bytes]:
    source.seek(0)
    total = 0
    while chunk := source.read(CHUNK_BYTES):
        yield chunk
        total += len(chunk)
        sent(total)


def _referrers_tag(subject: str) -> str:
    return f"sha256-{digest_hex(subject)}"


def _tags(document: Any) -> list[str]:
    return [str(tag) for tag in document["tags"] or ()]


def _descriptors(index: Any) -> list[dict[str, Any]]:
    descriptors: list[dict[str, Any]] = [dict(descriptor) for descriptor in index["manifests"]]
    if not all(is_digest(descriptor["digest"]) for descriptor in descriptors):
        raise ValueError("expected sha256 digests")
    return descriptors


def _descriptor(manifest: bytes) -> dict[str, Any]:
    document = json.loads(manifest)
    return {
        "mediaType": MANIFEST_TYPE,
        "artifactType": document["artifactType"],
        "digest": digest_of(manifest),
        "size": len(manifest),
        "annotations": document.get("annotations", {}),
    }
