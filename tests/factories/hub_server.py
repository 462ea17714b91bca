"""A Hugging Face hub on 127.0.0.1, as far as downloads need one: https://huggingface.co/docs/hub/api

    GET /api/models/ORG/NAME/revision/REV[?blobs=true]      the commit, and its files with sizes and hashes
    HEAD, GET /ORG/NAME/resolve/REV/FILE                    a file; one that lies in LFS by a redirect to another host

Statuses, headers and error codes are those that the hub sends and huggingface_hub reads.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_REVISION = re.compile(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)")
_FILE = re.compile(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_LFS = re.compile(r"/lfs/([0-9a-f]{64})")


@dataclass
class Repository:
    """One commit and its files.

    Args:
        revisions: what points at the commit.
        lfs: how the names of the files that are kept in LFS end.
        token: without which it is not shown; "" if it is public.
        gated: shown to everyone, given to those with the token.
    """

    files: Mapping[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    lfs: tuple[str, ...] = (".safetensors", ".bin")
    token: str = ""
    gated: bool = False
    card: Mapping[str, Any] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        return hashlib.sha1(b"".join(map(_git_id_bytes, self.files.values()))).hexdigest()

    def is_lfs(self, name: str) -> bool:
        return name.endswith(self.lfs)

    def has(self, revision: str) -> bool:
        return revision in (*self.revisions, self.commit)


class HubServer:
    """Serves `repositories`, by "ORG/NAME".

    Attributes:
        requests: how often each "METHOD path" came.
        tokens: what each "METHOD path" last had as its token.
    """

    def __init__(self, repositories: Mapping[str, Repository]) -> None:
        self.repositories = dict(repositories)
        self.requests: Counter[str] = Counter()
        self.counting = threading.Lock()
        self.tokens: dict[str, str] = {}
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self.endpoint = f"http://{self.host}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def lfs_object(self, sha256: str) -> bytes | None:
        contents = (data for one in self.repositories.values() for data in one.files.values())
        return next((data for data in contents if hashlib.sha256(data).hexdigest() == sha256), None)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # a download's files are asked for at once


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path) if "/revision/" not in self.path else urlsplit(self.path).path
            with hub.counting:
                hub.requests[f"{self.command} {path}"] += 1
            self._token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.tokens[f"{self.command} {path}"] = self._token
            if found := _REVISION.fullmatch(path):
                self._list(found[1], unquote(found[2]))
            elif found := _FILE.fullmatch(path):
                self._file(*found.groups())
            elif found := _LFS.fullmatch(path):
                self._send(hub.lfs_object(found[1]) or b"", {"ETag": f'"{found[1]}"'})
            else:
                self._refuse(404, "", "Not Found")

        do_HEAD = do_GET

        def _found(self, name: str, revision: str) -> Repository | None:
            repository = hub.repositories.get(name)
            is_hidden = repository is not None and repository.token not in ("", self._token) and not repository.gated
            if repository is None or is_hidden:  # the hub does not tell those without a token which it is
                self._refuse(404 if self._token else 401, "RepoNotFound", "Repository not found")
                return None
            if not repository.has(revision):
                self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
                return None
            return repository

        def _list(self, name: str, revision: str) -> None:
            repository = self._found(name, revision)
            if repository is None:
                return
            siblings = [_sibling(repository, path, data) for path, data in repository.files.items()]
            listing = {
                "id": name,
                "modelId": name,
                "sha": repository.commit,
                "private": bool(repository.token) and not repository.gated,
                "gated": "auto" if repository.gated else False,
                "tags": [],
                "cardData": dict(repository.card),
                "siblings": siblings,
            }
            self._send(json.dumps(listing).encode(), {"Content-Type": "application/json"})

        def _file(self, name: str, revision: str, path: str) -> None:
            repository = self._found(name, revision)
            if repository is None:
                return
            if repository.gated and repository.token != self._token:
                self._refuse(403 if self._token else 401, "GatedRepo", "Access to this model is restricted.")
                return
            data = repository.files.get(path)
            if data is None:
                self._refuse(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": repository.commit})
                return
            headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{git_id(data)}"'}
            if repository.is_lfs(path):
                sha256 = hashlib.sha256(data).hexdigest()
                linked = {"X-Linked-Size": str(len(data)), "X-Linked-ETag": f'"{sha256}"'}
                # On another host, as the hub's are: there huggingface_hub sends no token.
                port = self.headers["Host"].rpartition(":")[2]
                away = f"http://localhost:{port}/lfs/{sha256}"
                self._send(b"", {**headers, **linked, "Location": away}, status=302)
            else:
                self._send(data, headers)

        def _send(self, body: bytes, headers: Mapping[str, str], *, status: int = 200) -> None:
            span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            self.send_response(206 if span and status == 200 else status)
            if span and status == 200:
                self.send_header("Content-Range", f"bytes {span[1]}-{len(body) - 1}/{len(body)}")
                body = body[int(span[1]) :]
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def _refuse(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
            told = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
            self._send(json.dumps({"error": message}).encode(), told, status=status)

        def log_message(self, *arguments: Any) -> None:
            pass

    return Handler


def _sibling(repository: Repository, path: str, data: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_id(data)}
    if repository.is_lfs(path):
        sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return sibling


def git_id(data: bytes) -> str:
    """What git calls a blob of these bytes."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _git_id_bytes(data: bytes) -> bytes:
    return git_id(data).encode()
