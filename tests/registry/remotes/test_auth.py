"""Who we are to a registry: passwords, tokens and docker's config; and to whom none of them is told."""

import base64
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from docker_registry import DockerRegistry
from fault_proxy import FaultProxy
from store_adapters import lora_files, publish

from hotshoe.registry.errors import RemoteRefused, RemoteUnavailable
from hotshoe.registry.registry import Registry
from hotshoe.registry.remotes.oci import OciRemote
from hotshoe.registry.remotes.oci_auth import Challenge, Credentials, DockerConfig, parse_challenges
from hotshoe.registry.remotes.pull import pull
from hotshoe.registry.remotes.push import push
from hotshoe.registry.remotes.remote import parse_remote

USER, PASSWORD = "hotshoe", "s3cret-adapters"
# bcrypt of PASSWORD, with five rounds
HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuAUpRYMjA4YGFwWxItmTeK25yKfpaov.\n"
KNOWN = Credentials(USER, PASSWORD)

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed (apt: openssl)")


@pytest.fixture
def locked(own_docker: Callable[..., DockerRegistry], tmp_path: Path) -> DockerRegistry:
    """A registry that wants a password."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    return own_docker(auth={"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}})


def docker_config(path: Path, **content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_password_opens_what_is_locked(
    locked: DockerRegistry, registry: Registry, other: Registry, oci: Callable[..., OciRemote], tmp_path: Path
) -> None:
    record, _ = publish(registry, "locked", lora_files(1))
    push(registry, record, oci(locked.host, credentials=lambda host: KNOWN), tags=["v1"])
    encoded = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    config = docker_config(tmp_path / "config.json", auths={locked.host: {"auth": encoded}})
    remote = parse_remote(f"oci://{locked.host}/pre", docker_config=config)
    assert pull(other, remote, "v1", name="locked").record.digest == record.digest
    for wrong in (None, Credentials(USER, "guess"), Credentials("", PASSWORD)):
        with pytest.raises(RemoteRefused, match=f"oci://{locked.host}/pre: .*(401|wants a user)") as caught:
            oci(locked.host, credentials=lambda host, wrong=wrong: wrong).resolve("locked", "v1")
        assert PASSWORD not in str(caught.value) and "guess" not in str(caught.value)


def test_new_credentials_are_seen_without_a_restart(
    locked: DockerRegistry, registry: Registry, oci: Callable[..., OciRemote]
) -> None:
    held: list[Credentials | None] = [None]
    remote = oci(locked.host, credentials=lambda host: held[0])
    record, _ = publish(registry, "late", lora_files(1))
    with pytest.raises(RemoteRefused):
        push(registry, record, remote)
    held[0] = KNOWN
    push(registry, record, remote, tags=["v1"])
    assert remote.resolve("late", "v1") == record.digest


@needs_openssl
def test_credentials_are_not_carried_to_where_a_registry_redirects(
    own_docker: Callable[..., DockerRegistry],
    registry: Registry,
    other: Registry,
    oci: Callable[..., OciRemote],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blobs are given by another host, by TLS, as large registries do; it must not learn the password."""
    certificate = _certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    storage = own_docker(tls=certificate)
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    front = own_docker(auth={"htpasswd": {"realm": "tests", "path": str(tmp_path / "htpasswd")}})
    record, _ = publish(registry, "redirected", lora_files(1))
    push(registry, record, oci(front.host, credentials=lambda host: KNOWN), tags=["v1"])
    push(registry, record, oci(f"oci+https://{storage.host}/pre"), tags=["v1"])
    proxy = FaultProxy(front.host)

    def to_storage(answer: Any) -> None:
        answer.status = 307
        answer.headers = {"Content-Length": "0", "Location": f"https://{storage.host}{asked[-1]}"}
        answer.write(answer.head())

    asked: list[str] = []

    def is_blob(method: str, path: str) -> bool:
        asked.append(path)
        return method == "GET" and "/blobs/" in path

    proxy.spoil(is_blob, to_storage)
    seen: list[dict[str, str]] = []
    try:
        remote = oci(proxy.host, credentials=lambda host: KNOWN)
        send = remote._http._client.send
        remote._http._client.send = lambda request, **options: (  # type: ignore[method-assign]
            seen.append({"url": str(request.url), **request.headers}),
            send(request, **options),
        )[1]
        assert pull(other, remote, "v1", name="redirected").record.digest == record.digest
    finally:
        proxy.close()
    there = [headers for headers in seen if headers["url"].startswith(f"https://{storage.host}")]
    here = [headers for headers in seen if headers["url"].startswith(f"http://{proxy.host}")]
    assert len(there) == 4 and not any("authorization" in headers for headers in there)
    assert any("authorization" in headers for headers in here)


@needs_openssl
def test_a_certificate_that_nobody_vouches_for_is_refused(
    own_docker: Callable[..., DockerRegistry], oci: Callable[..., OciRemote], tmp_path: Path
) -> None:
    storage = own_docker(tls=_certificate(tmp_path))
    with pytest.raises(RemoteUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        oci(f"oci+https://{storage.host}/pre").resolve("x", "v1")


@pytest.mark.parametrize(
    ("registry_host", "target", "is_followed"),
    [
        ("ghcr.io", "https://pkg-containers.example/blob", True),
        ("ghcr.io", "https://140.82.121.34/blob", True),
        ("ghcr.io", "https://10.0.0.1/blob", False),
        ("ghcr.io", "https://127.0.0.1/blob", False),
        ("ghcr.io", "https://[::1]/blob", False),
        ("ghcr.io", "https://localhost/blob", False),
        ("ghcr.io", "https://169.254.169.254/blob", False),
        ("ghcr.io", "http://ghcr.io/blob", False),
        ("10.0.0.5", "https://10.0.0.6/blob", True),
        ("10.0.0.5", "https://169.254.169.254/blob", False),
        ("10.0.0.5", "https://[fe80::1]/blob", False),
    ],
)
def test_redirects_lead_by_tls_and_not_from_the_world_into_this_network(
    registry_host: str, target: str, is_followed: bool, oci: Callable[..., OciRemote]
) -> None:
    http = oci(f"oci://{registry_host}/x")._http
    if is_followed:
        assert str(http._redirected(httpx.URL(f"https://{registry_host}/v2/"), target, "x")) == target
    else:
        with pytest.raises(RemoteRefused, match="is not followed"):
            http._redirected(httpx.URL(f"https://{registry_host}/v2/"), target, "x")


class TokenServer:
    """Gives tokens that docker-registry trusts, as https://distribution.github.io/distribution/spec/auth/jwt/ says."""

    def __init__(self, directory: Path, key: Path, *, seconds: int = 300) -> None:
        self.asked: list[tuple[str, dict[str, list[str]], str | None]] = []
        self.seconds = seconds
        self._key = key
        self._certificate = directory / "cert.pem"
        self._directory = directory
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._give(parse_qs(urlsplit(self.path).query))

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._give(parse_qs(body))

            def _give(self, query: dict[str, list[str]]) -> None:
                authorization = self.headers.get("Authorization")
                outer.asked.append((self.command, query, authorization))
                right = authorization == KNOWN.basic or query.get("refresh_token") == ["identity"]
                body = json.dumps({"token": outer.token(query["scope"][0]), "expires_in": outer.seconds}).encode()
                self.send_response(200 if right else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        return Handler

    def token(self, scope: str) -> str:
        kind, name, actions = scope.split(":")
        der = base64.b64encode(_openssl("x509", "-in", str(self._certificate), "-outform", "DER")).decode()
        header = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
        now = int(time.time())
        claims = {
            "iss": "tests",
            "aud": "registry",
            "sub": USER,
            "exp": now + 300,
            "nbf": now - 10,
            "iat": now,
            "jti": "1",
            "access": [{"type": kind, "name": name, "actions": actions.split(",")}],
        }
        signed = f"{_b64(json.dumps(header).encode())}.{_b64(json.dumps(claims).encode())}"
        return f"{signed}.{_b64(_openssl('dgst', '-sha256', '-sign', str(self._key), data=signed.encode()))}"


@pytest.fixture
def tokens(tmp_path: Path) -> Iterator[TokenServer]:
    _, key = _certificate(tmp_path)
    server = TokenServer(tmp_path, key)
    yield server
    server.close()


@needs_openssl
def test_tokens_are_fetched_for_the_password_once_and_for_our_scope_alone(
    tokens: TokenServer,
    own_docker: Callable[..., DockerRegistry],
    registry: Registry,
    other: Registry,
    oci: Callable[..., OciRemote],
    tmp_path: Path,
) -> None:
    docker = own_docker(auth=_token_auth(tokens, tmp_path))
    record, _ = publish(registry, "tokens", lora_files(1))
    push(registry, record, oci(docker.host, credentials=lambda host: KNOWN), tags=["v1"])
    scopes = [query["scope"][0] for _, query, _ in tokens.asked]
    assert sorted(scopes) == ["repository:pre/tokens:pull", "repository:pre/tokens:pull,push"]
    assert {(method, authorization) for method, _, authorization in tokens.asked} == {("GET", KNOWN.basic)}
    tokens.asked.clear()
    identity = Credentials(identity_token="identity")
    assert pull(other, oci(docker.host, credentials=lambda host: identity), "v1", name="tokens").created
    assert [(method, query["grant_type"], authorization) for method, query, authorization in tokens.asked] == [
        ("POST", ["refresh_token"], None)
    ]
    with pytest.raises(RemoteRefused, match="its token server answered 401"):
        oci(docker.host, credentials=lambda host: Credentials(USER, "guess")).resolve("tokens", "v1")


@needs_openssl
def test_a_token_that_is_refused_is_fetched_anew(
    tokens: TokenServer, own_docker: Callable[..., DockerRegistry], oci: Callable[..., OciRemote], tmp_path: Path
) -> None:
    tokens.seconds = 0  # by the specification that means a minute
    docker = own_docker(auth=_token_auth(tokens, tmp_path))
    remote = oci(docker.host, credentials=lambda host: KNOWN)
    for _ in range(2):
        assert remote.list_referrers("x", f"sha256:{'0' * 64}") == []
    assert len(tokens.asked) == 1
    remote._http._auth._known["repository:pre/x:pull"] = ("Bearer stale", float("inf"))
    assert remote.list_referrers("x", f"sha256:{'0' * 64}") == []
    assert len(tokens.asked) == 2


def _token_auth(tokens: TokenServer, directory: Path) -> dict[str, Any]:
    bundle = str(directory / "cert.pem")
    return {"token": {"realm": tokens.realm, "service": "registry", "issuer": "tests", "rootcertbundle": bundle}}


def test_challenges_are_read_as_registries_write_them() -> None:
    header = 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:x:pull"'
    assert parse_challenges([header, 'Basic realm="x, y"']) == [
        Challenge(
            "bearer",
            {"realm": "https://auth.docker.io/token", "service": "registry.docker.io", "scope": "repository:x:pull"},
        ),
        Challenge("basic", {"realm": "x, y"}),
    ]
    assert parse_challenges(['basic realm=plain, bearer realm="z"']) == [
        Challenge("basic", {"realm": "plain"}),
        Challenge("bearer", {"realm": "z"}),
    ]
    assert parse_challenges(["", "Negotiate abc", "Digest " + "a=b," * 5000]) == []


@pytest.mark.parametrize(
    ("content", "host", "expected"),
    [
        ({"auths": {"a.example": {"auth": base64.b64encode(b"u:p:q").decode()}}}, "a.example", Credentials("u", "p:q")),
        ({"auths": {"https://a.example/v1/": {"username": "u", "password": "p"}}}, "a.example", Credentials("u", "p")),
        ({"auths": {"a.example:5000": {"identitytoken": "t"}}}, "a.example:5000", Credentials(identity_token="t")),
        ({"auths": {"a.example": {"username": "u"}}}, "b.example", None),
        ({"auths": {"a.example.evil": {"username": "u"}}}, "a.example", None),
        ({"auths": {"a.example": {}}}, "a.example", None),
        ({}, "a.example", None),
    ],
)
def test_dockers_config_is_read_by_host(content: Any, host: str, expected: Credentials | None, tmp_path: Path) -> None:
    assert DockerConfig(docker_config(tmp_path / "config.json", **content)).credentials(host) == expected
    assert "secret" not in repr(Credentials("u", "secret", "secret"))


def test_a_credential_helper_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    helper = tmp_path / "docker-credential-test"
    helper.write_text(
        '#!/bin/sh\nread host\n[ "$1 $host" = "get a.example" ] || exit 1\n'
        'echo \'{"ServerURL":"a.example","Username":"u","Secret":"p"}\'\n'
    )
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for content in ({"credsStore": "test"}, {"credHelpers": {"a.example": "test"}}):
        config = DockerConfig(docker_config(tmp_path / "config.json", **content))
        assert config.credentials("a.example") == Credentials("u", "p")
    assert DockerConfig(docker_config(tmp_path / "config.json", credsStore="test")).credentials("b.example") is None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{",
        '{"auths": 3}',
        '{"auths": {"a.example": {"auth": "!"}}}',
        '{"auths": {"a.example": {"auth": "eA=="}}}',
        '{"credsStore": "../../bin/sh"}',
        '{"credsStore": "nobody-has-this"}',
    ],
)
def test_a_config_that_cannot_be_read_says_so(text: str, tmp_path: Path, oci: Callable[..., OciRemote]) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match="docker"):
        DockerConfig(tmp_path / "config.json").credentials("a.example")
    assert DockerConfig(tmp_path / "missing.json").credentials("a.example") is None


def _certificate(directory: Path) -> tuple[Path, Path]:
    certificate, key = directory / "cert.pem", directory / "key.pem"
    names = ["-subj", "/CN=tests", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1"]
    _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", *names, "-keyout", str(key), "-out", str(certificate))
    return certificate, key


def _openssl(*arguments: str, data: bytes = b"") -> bytes:
    return subprocess.run(["openssl", *arguments], input=data, check=True, capture_output=True, timeout=200).stdout


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
