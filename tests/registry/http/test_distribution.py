"""What OCI clients read by HTTP: every answer of the protocol, ranges, pages; and skopeo copies from here."""

import hashlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from modelpack_client import ModelPackClient
from store_adapters import ia3_files, lora_files, publish
from store_children import overwrite

from hotshoe.registry.digest import digest_of
from hotshoe.registry.http.distribution import Distribution
from hotshoe.registry.http.server import registry_http_server
from hotshoe.registry.manifest import AdapterRecord
from hotshoe.registry.registry import Registry
from hotshoe.registry.signing.bundle import ANNOTATIONS, BUNDLE_FILE, BUNDLE_TYPE, sign, verify
from hotshoe.registry.signing.keys import PrivateKey

TYPE = "application/vnd.example.report.v1+json"


@pytest.fixture
def sql(registry: Registry) -> AdapterRecord:
    return publish(registry, "team/sql", lora_files(), tags=["v1", "latest"])[0]


@pytest.fixture
def http(registry: Registry) -> Iterator[httpx.Client]:
    server = registry_http_server("127.0.0.1", 0, Distribution(registry))
    server.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=200) as client:
        yield client
    server.stop()


def error_code(response: httpx.Response) -> str:
    [error] = response.json()["errors"]
    return str(error["code"])


def test_a_client_finds_the_manifest_by_tag_and_by_digest_and_then_every_blob(
    http: httpx.Client, registry: Registry, sql: AdapterRecord
) -> None:
    assert http.get("/v2/").headers["Docker-Distribution-API-Version"] == "registry/2.0"
    for reference in ("v1", "latest", sql.digest):
        found = http.get(f"/v2/team/sql/manifests/{reference}")
        assert found.headers["Docker-Content-Digest"] == sql.digest == digest_of(found.content)
        assert found.headers["Content-Type"] == found.json()["mediaType"]
        head = http.head(f"/v2/team/sql/manifests/{reference}")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["Content-Length"] == str(len(found.content))
    manifest = found.json()
    for blob in [manifest["config"], *manifest["layers"]]:
        body = http.get(f"/v2/team/sql/blobs/{blob['digest']}").content
        assert len(body) == blob["size"] and digest_of(body) == blob["digest"]
        assert http.head(f"/v2/team/sql/blobs/{blob['digest']}").headers["Content-Length"] == str(blob["size"])


@pytest.mark.parametrize(
    "asked, expected, span",
    [
        ("bytes=0-0", slice(0, 1), "0-0"),
        ("bytes=5-9", slice(5, 10), "5-9"),
        ("bytes=7-", slice(7, None), "7-{last}"),
        ("bytes=-4", slice(-4, None), "{tail}-{last}"),
        ("bytes=3-999999999", slice(3, None), "3-{last}"),
    ],
)
def test_a_range_of_a_blob(http: httpx.Client, sql: AdapterRecord, asked: str, expected: slice, span: str) -> None:
    blob = sql.files[0]
    path = f"/v2/team/sql/blobs/{blob.digest}"
    whole = http.get(path).content
    part = http.get(path, headers={"Range": asked})
    assert (part.status_code, part.content) == (206, whole[expected])
    last = len(whole) - 1
    assert part.headers["Content-Range"] == f"bytes {span.format(last=last, tail=last - 3)}/{len(whole)}"


def test_ranges_that_do_not_fit_or_are_not_understood(http: httpx.Client, sql: AdapterRecord) -> None:
    blob = sql.files[0]
    path = f"/v2/team/sql/blobs/{blob.digest}"
    for asked in (f"bytes={blob.size_bytes}-", "bytes=9-3", "bytes=-0"):
        refused = http.get(path, headers={"Range": asked})
        assert refused.status_code == 416 and refused.headers["Content-Range"] == f"bytes */{blob.size_bytes}"
    for asked in ("lines=1-2", "bytes=1-2,4-5", "bytes=-", "bytes=a-b", "bytes=" + "9" * 5000 + "-"):
        assert http.get(path, headers={"Range": asked}).status_code == 200, "one that is not understood is ignored"


def test_tags_and_names_come_in_pages(http: httpx.Client, registry: Registry, sql: AdapterRecord) -> None:
    publish(registry, "team/other", ia3_files(), tags=["v1"])
    assert http.get("/v2/_catalog").json() == {"repositories": ["team/other", "team/sql"]}
    assert http.get("/v2/team/sql/tags/list").json() == {"name": "team/sql", "tags": ["latest", "v1"]}
    first = http.get("/v2/team/sql/tags/list?n=1")
    assert first.json()["tags"] == ["latest"]
    assert http.get(first.links["next"]["url"]).json()["tags"] == ["v1"]
    assert "next" not in http.get("/v2/team/sql/tags/list?n=2").links


def test_referrers_are_listed_by_type_and_read_as_manifests(
    http: httpx.Client, registry: Registry, sql: AdapterRecord
) -> None:
    report = registry.attach(
        sql.digest, b'{"a":1}', artifact_type=TYPE, file_name="report.json", annotations={"by": "x"}
    )
    registry.attach(sql.digest, b"{}", artifact_type="application/other", file_name="other.json", annotations={})
    every = http.get(f"/v2/team/sql/referrers/{sql.digest}")
    assert len(every.json()["manifests"]) == 2 and "OCI-Filters-Applied" not in every.headers
    assert every.headers["Content-Type"] == every.json()["mediaType"] == "application/vnd.oci.image.index.v1+json"
    some = http.get(f"/v2/team/sql/referrers/{sql.digest}", params={"artifactType": TYPE})
    assert some.headers["OCI-Filters-Applied"] == "artifactType"
    [found] = some.json()["manifests"]
    assert (found["digest"], found["annotations"], found["artifactType"]) == (report.digest, {"by": "x"}, TYPE)
    manifest = http.get(f"/v2/team/sql/manifests/{found['digest']}")
    assert len(manifest.content) == found["size"] and digest_of(manifest.content) == found["digest"]
    assert http.get(f"/v2/team/sql/blobs/{manifest.json()['layers'][0]['digest']}").content == b'{"a":1}'
    assert http.get(f"/v2/team/sql/referrers/sha256:{'0' * 64}").json()["manifests"] == []


def test_a_signature_is_found_where_cosign_looks_for_it(
    http: httpx.Client, registry: Registry, sql: AdapterRecord
) -> None:
    key = PrivateKey.new()
    registry.attach(
        sql.digest, sign(sql.digest, key), artifact_type=BUNDLE_TYPE, file_name=BUNDLE_FILE, annotations=ANNOTATIONS
    )
    [found] = http.get(f"/v2/team/sql/referrers/{sql.digest}", params={"artifactType": BUNDLE_TYPE}).json()["manifests"]
    assert found["annotations"]["dev.sigstore.bundle.predicateType"] == "https://sigstore.dev/cosign/sign/v1"
    manifest = http.get(f"/v2/team/sql/manifests/{found['digest']}").json()
    [layer] = manifest["layers"]
    assert manifest["subject"]["digest"] == sql.digest and layer["mediaType"] == BUNDLE_TYPE
    bundle = http.get(f"/v2/team/sql/blobs/{layer['digest']}").content
    assert verify(bundle, sql.digest, {key.public.key_id: key.public}) == key.public.key_id


@pytest.mark.parametrize(
    "path, status, code",
    [
        ("/v2/team/sql/manifests/v9", 404, "MANIFEST_UNKNOWN"),
        ("/v2/team/none/manifests/v1", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/team/sql/manifests/sha256:{'0' * 64}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/team/sql/manifests/sha256-{'0' * 64}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/team/sql/blobs/sha256:{'0' * 64}", 404, "BLOB_UNKNOWN"),
        ("/v2/team/sql/blobs/sha256:12", 400, "DIGEST_INVALID"),
        ("/v2/team/sql/referrers/v1", 400, "DIGEST_INVALID"),
        ("/v2/Team/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/team/%2e%2e/manifests/v1", 400, "NAME_INVALID"),
        ("/v2/team/sql/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ("/v2/team/none/tags/list", 404, "MANIFEST_UNKNOWN"),
        ("/v2/team/sql/tags/other", 404, "UNSUPPORTED"),
        ("/etc/passwd", 404, "UNSUPPORTED"),
    ],
)
def test_what_is_not_there_is_told_by_the_protocol_s_codes(
    http: httpx.Client, sql: AdapterRecord, path: str, status: int, code: str
) -> None:
    response = http.get(path)
    assert (response.status_code, error_code(response)) == (status, code)


@pytest.mark.parametrize(
    "target", ["http://[/v2/", f"/v2/_catalog?n={'1' * 5000}", "/v2/_catalog?n=-1", "/v2/%00/manifests/v1"]
)
def test_a_target_that_is_none_is_answered_all_the_same(registry: Registry, target: str) -> None:
    answer = Distribution(registry).answer("GET", target)
    assert answer.status == 400 and json.loads(answer.body)["errors"]


@pytest.mark.parametrize("header", ["Content-Length: 45", "Transfer-Encoding: chunked"])
def test_the_body_of_a_get_is_not_taken_for_the_next_request(http: httpx.Client, header: str) -> None:
    hidden = "GET /v2/_catalog HTTP/1.1\r\nHost: other\r\n\r\n"
    with socket.create_connection((http.base_url.host, http.base_url.port or 0), timeout=100) as connection:
        connection.sendall(f"GET /v2/ HTTP/1.1\r\nHost: here\r\n{header}\r\n\r\n{hidden}".encode())
        answered = b""
        with suppress(ConnectionResetError):  # what was sent and not read
            while part := connection.recv(4096):
                answered += part
    assert answered.count(b"HTTP/1.1 200") <= 1 and b"repositories" not in answered


def test_nothing_is_written_by_http(http: httpx.Client, sql: AdapterRecord) -> None:
    for method in ("PUT", "POST", "PATCH", "DELETE"):
        refused = http.request(method, "/v2/team/sql/manifests/v1", content=b"x" * 1000)
        assert refused.status_code == 405 and refused.headers["Allow"] == "GET, HEAD"
    assert http.get("/v2/team/sql/manifests/v1").status_code == 200


def test_a_damaged_blob_is_not_sent(http: httpx.Client, root: Path, sql: AdapterRecord) -> None:
    blob = sql.files[0].digest
    path = root / "blobs" / "sha256" / blob.removeprefix("sha256:")
    overwrite(path, bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert http.get(f"/v2/team/sql/blobs/{blob}").status_code == 503


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed (apt: skopeo)")
def test_skopeo_pulls_from_a_registry_that_is_served_alone(
    registry: Registry, root: Path, sql: AdapterRecord, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        "hotshoe.registry",
        "serve",
        "--registry",
        str(root),
        "--http",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        address = json.loads(served.stdout.readline())["registry_http"]
        source, target = f"docker://{address}/team/sql:v1", f"dir:{tmp_path / 'copy'}"
        copy = ["skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", source, target]
        subprocess.run(copy, check=True, capture_output=True, timeout=200)
        listed = subprocess.run(
            ["skopeo", "list-tags", "--tls-verify=false", f"docker://{address}/team/sql"],
            check=True, capture_output=True, timeout=200,
        )  # fmt: skip
        served.terminate()
        assert served.wait(200) == 0
    assert json.loads(listed.stdout)["Tags"] == ["latest", "v1"]
    assert digest_of((tmp_path / "copy" / "manifest.json").read_bytes()) == sql.digest
    copied = {path.name for path in (tmp_path / "copy").iterdir()}
    assert {file.digest.removeprefix("sha256:") for file in sql.files} <= copied
    for name in copied - {"manifest.json", "version"}:
        assert hashlib.sha256((tmp_path / "copy" / name).read_bytes()).hexdigest() == name


def test_a_strict_modelpack_client_takes_an_adapter_for_a_valid_artifact(
    http: httpx.Client, registry: Registry, sql: AdapterRecord, tmp_path: Path
) -> None:
    client = ModelPackClient(insecure=True)
    client.pull(f"{http.base_url.host}:{http.base_url.port}/team/sql@{sql.digest}", tmp_path / "pulled")
    files = registry.adapter_files(sql.digest)
    pulled = {path.name: path.read_bytes() for path in (tmp_path / "pulled").iterdir()}
    assert pulled.keys() >= files.keys()
    for name, path in files.items():
        assert pulled[name] == path.read_bytes(), name


def test_a_registry_that_is_served_alone_says_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments, problem in (
        (["--http", "nowhere"], "is not HOST:PORT"),
        (["--http", "0.0.0.0:0"], "--insecure-bind"),
        (["--http", "192.0.2.1:1", "--insecure-bind"], "192.0.2.1:1: Cannot assign requested address"),
        (["--registry", str(tmp_path / "file")], "file: expected a directory"),
    ):
        command = [
            sys.executable,
            "-P",
            "-m",
            "hotshoe.registry",
            "serve",
            "--registry",
            str(tmp_path / "r"),
            *arguments,
        ]
        result = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert result.returncode == 2 and problem in result.stderr and result.stderr.count("\n") == 1
