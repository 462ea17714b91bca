"""The read-only part of OCI Distribution over a registry: what a GET or HEAD of a path is answered with. No sockets.

/v2/<name>/manifests/<tag or digest>, /v2/<name>/blobs/<digest> with Range, /v2/<name>/tags/list,
/v2/<name>/referrers/<digest>, /v2/_catalog. So skopeo, podman and another hotshoe can pull from here.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import BinaryIO, NoReturn
from urllib.parse import parse_qs, quote, unquote, urlsplit

from hotshoe.registry.digest import is_digest
from hotshoe.registry.errors import AdapterNotFound, BlobCorrupt, InvalidReference, StoreUnavailable
from hotshoe.registry.manifest import INDEX_TYPE, MANIFEST_TYPE, canonical_json
from hotshoe.registry.reference import check_name, check_tag
from hotshoe.registry.registry import Registry

_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}
_PATH = re.compile(r"/v2/(?P<name>.+)/(?P<what>manifests|blobs|referrers|tags)/(?P<reference>[^/]+)")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_JSON = "application/json"
MAX_PAGE = 1000
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Answer:
    """A status, headers, and a body: bytes, or `length` bytes of an open file, which whoever sends it closes."""

    status: HTTPStatus
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: BinaryIO | None = None
    length: int = 0

    @property
    def content_length(self) -> int:
        return len(self.body) if self.file is None else self.length

    def chunks(self, size: int = 1 << 20) -> Iterator[bytes]:
        """The body, part by part."""
        if self.file is None:
            yield self.body
            return
        left = self.length
        while left and (part := self.file.read(min(size, left))):
            left -= len(part)
            yield part

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class _Refusal(Exception):
    """An error of the protocol, by its code."""

    def __init__(self, status: HTTPStatus, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.answer = Answer(status, {"Content-Type": _JSON, **(headers or {})}, _error(code, message))


def _error(code: str, message: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": message}]}).encode() + b"\n"


def unauthorized() -> Answer:
    """What those get who are no user, whatever they ask for."""
    asked = {"WWW-Authenticate": 'Basic realm="hotshoe", charset="UTF-8"'}
    refusal = _Refusal(HTTPStatus.UNAUTHORIZED, "UNAUTHORIZED", "expected a user and a password", asked)
    return Answer(refusal.answer.status, {**_VERSION, **refusal.answer.headers}, refusal.answer.body)


class Distribution:
    """Answers for one registry; any thread may ask."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def answer(self, method: str, target: str, *, byte_range: str = "") -> Answer:
        """What a request is answered with. Never raises for what a client or a disk may do.

        Args:
            target: path and query, as they stand in the request.
            byte_range: the Range header, "" if there is none.
        """
        try:
            if method not in ("GET", "HEAD"):
                allowed = {"Allow": "GET, HEAD"}
                raise _Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "UNSUPPORTED", "this port only reads", allowed)
            answer = self._route(target, byte_range)
        except _Refusal as refusal:
            answer = refusal.answer
        except AdapterNotFound as error:
            answer = _Refusal(HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN", str(error)).answer
        except InvalidReference as error:
            answer = _Refusal(HTTPStatus.BAD_REQUEST, "NAME_INVALID", str(error)).answer
        except (BlobCorrupt, StoreUnavailable) as error:
            answer = _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "UNAVAILABLE", str(error)).answer
        return Answer(answer.status, {**_VERSION, **answer.headers}, answer.body, answer.file, answer.length)

    def _route(self, target: str, byte_range: str) -> Answer:
        try:
            parts = urlsplit(target)
        except ValueError:  # a host in brackets that is none
            raise _Refusal(HTTPStatus.BAD_REQUEST, "UNSUPPORTED", "expected a path") from None
        path, query = unquote(parts.path), parse_qs(parts.query)
        if path in ("/v2", "/v2/"):
            return Answer(HTTPStatus.OK, {"Content-Type": _JSON}, b"{}")
        if path == "/v2/_catalog":
            return self._listing("/v2/_catalog", "repositories", self._registry.names(), query)
        found = _PATH.fullmatch(path)
        if found is None:
            raise _Refusal(HTTPStatus.NOT_FOUND, "UNSUPPORTED", "no such path; try /v2/_catalog")
        name, what, reference = check_name(found["name"]), found["what"], found["reference"]
        if what == "tags":
            return self._tags(name, reference, query)
        if what == "manifests":
            return self._manifest(name, reference)
        if not is_digest(reference):
            raise _Refusal(HTTPStatus.BAD_REQUEST, "DIGEST_INVALID", "expected sha256: and 64 lower-case hex digits")
        if what == "referrers":
            return self._referrers(name, reference, query)
        return self._blob(name, reference, byte_range)

    def _tags(self, name: str, reference: str, query: Mapping[str, list[str]]) -> Answer:
        if reference != "list":
            raise _Refusal(HTTPStatus.NOT_FOUND, "UNSUPPORTED", "expected tags/list")
        tags = self._registry.tags(name)
        return self._listing(f"/v2/{name}/tags/list", "tags", sorted(tags), query, name=name)

    def _listing(
        self, path: str, key: str, items: Sequence[str], query: Mapping[str, list[str]], **others: str
    ) -> Answer:
        """Items behind `last`, `n` at most, and where the next ones are."""
        last, wanted = query.get("last", [""])[0], query.get("n", [str(MAX_PAGE)])[0]
        if not (wanted.isascii() and wanted.isdigit() and len(wanted) <= _MAX_DIGITS):
            problem = f"n: expected a number, not {wanted[:80]!r}"
            raise _Refusal(HTTPStatus.BAD_REQUEST, "PAGINATION_NUMBER_INVALID", problem)
        left = [item for item in items if item > last]
        page = left[: min(int(wanted), MAX_PAGE)]
        headers = {"Content-Type": _JSON}
        if page and len(page) < len(left):
            headers["Link"] = f'<{path}?n={wanted}&last={quote(page[-1])}>; rel="next"'
        return Answer(HTTPStatus.OK, headers, json.dumps({**others, key: page}).encode())

    def _manifest(self, name: str, reference: str) -> Answer:
        digest = reference
        if not is_digest(reference):
            try:
                digest = self._registry.resolve(f"{name}:{check_tag(reference)}").digest
            except InvalidReference as error:
                raise _Refusal(HTTPStatus.NOT_FOUND, "MANIFEST_UNKNOWN", str(error)) from None
        headers = {"Content-Type": MANIFEST_TYPE, "Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        return Answer(HTTPStatus.OK, headers, self._registry.manifest(name, digest))

    def _referrers(self, name: str, subject: str, query: Mapping[str, list[str]]) -> Answer:
        wanted = query.get("artifactType", [""])[0]
        manifests = [
            {
                "mediaType": MANIFEST_TYPE,
                "digest": referrer.digest,
                "size": len(self._registry.manifest(name, referrer.digest)),
                "artifactType": referrer.artifact_type,
                "annotations": dict(referrer.annotations),
            }
            # The oldest first, as under the fallback tag: whoever copies them in order ends with the same latest.
            for referrer in reversed(self._registry.referrers(subject, wanted))
        ]
        headers = {"Content-Type": INDEX_TYPE, **({"OCI-Filters-Applied": "artifactType"} if wanted else {})}
        index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}
        return Answer(HTTPStatus.OK, headers, canonical_json(index))

    def _blob(self, name: str, digest: str, wanted: str) -> Answer:
        self._registry.tags(name)  # whether there is such a name
        try:
            file = self._registry.read_blob(digest)
        except AdapterNotFound as error:
            raise _Refusal(HTTPStatus.NOT_FOUND, "BLOB_UNKNOWN", str(error)) from None
        size = file.seek(0, 2)
        headers = {
            "Content-Type": "application/octet-stream",
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
        }
        span = _span(wanted, size)
        if span is None:
            file.seek(0)
            return Answer(HTTPStatus.OK, headers, file=file, length=size)
        start, end = span
        if start >= end:
            file.close()
            _refuse_range(size)
        file.seek(start)
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        return Answer(HTTPStatus.PARTIAL_CONTENT, headers, file=file, length=end - start)


def _refuse_range(size: int) -> NoReturn:
    message = f"expected a range within {size} bytes"
    raise _Refusal(
        HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, "SIZE_INVALID", message, {"Content-Range": f"bytes */{size}"}
    )


def _span(wanted: str, size: int) -> tuple[int, int] | None:
    """Start and end of the one range that is asked for; None if it is none that is understood, so all is given."""
    found = _RANGE.fullmatch(wanted.strip()) if len(wanted) < 64 else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size
    return int(found[1]), min(size, int(found[2]) + 1) if found[2] else size
